"""Cases of a parametrised test by name."""

from collections.abc import Mapping
from typing import Any

import pytest


def cases(names: str | tuple[str, ...], table: Mapping[str, Any]) -> pytest.MarkDecorator:
    """Parametrise a test: name of a case -> its value, or one value for each of the names."""
    return pytest.mark.parametrize(names, table.values(), ids=table)
