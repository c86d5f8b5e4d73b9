"""The program that makes the reference pages. It is no package, and another one may be called `docs`."""

import runpy
from collections.abc import Callable
from typing import Final

from tests.architecture.source import ROOT

PAGES: Final[dict[str, Callable[[], str]]] = runpy.run_path(str(ROOT / "docs" / "generate.py"))["PAGES"]
"""Name of a page -> function that returns its text."""
