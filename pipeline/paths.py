"""Settings that are paths. The same file may be written in many ways, also from another folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from stages.shared.storage import absolute

_PATHS: Final[dict[str, dict[str, tuple[str, ...]]]] = {
    "input": {"path": (), "image_root": ()},
    "model": {"checkpoint": (), "weights": (), "config": ()},
    "regions": {"calibration": ("auto", "none")},
    "source": {"pool": ("captions",), "truth": (), "detections": ()},
}
"""Section -> its keys whose values are paths -> the words that such a value may be instead."""


def with_absolute_paths(plain: Mapping[str, Any]) -> dict[str, Any]:
    """The values of `RunConfig.rows_depend_on` with the same path for the same file, however it was written."""
    answer = dict(plain)
    for section, keys in _PATHS.items():
        for key, words in keys.items():
            value = (plain.get(section) or {}).get(key)
            if value is not None and value not in words:
                path = absolute(value) if isinstance(value, str) else [absolute(one) for one in value]
                answer[section] = {**answer[section], key: path}
    return answer
