"""What people thought of samples: `marks.json` beside the shards, sample id -> "good" or "bad"."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from stages.contract.errors import InputError
from stages.storage import write_text

MARKS: Final = ("good", "bad")

FILE_NAME: Final = "marks.json"


def read_marks(dataset: Path) -> dict[str, str]:
    """Marks by sample id; empty if nobody marked anything. Raises InputError for a damaged file."""
    path = dataset / FILE_NAME
    try:
        marks = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is damaged: {error}") from error
    if not isinstance(marks, dict) or not all(mark in MARKS for mark in marks.values()):
        raise InputError(f"{path}: expected sample ids with {' or '.join(map(repr, MARKS))}")
    return marks


def write_marks(dataset: Path, marks: Mapping[str, str]) -> None:
    """Replace the marks atomically. Raises OSError if the folder cannot be written, ValueError for another mark."""
    wrong = {mark for mark in marks.values() if mark not in MARKS}
    if wrong:
        raise ValueError(f"expected marks from {MARKS}, got {sorted(wrong)}")
    write_text(dataset / FILE_NAME, json.dumps(dict(sorted(marks.items())), indent=0, ensure_ascii=False) + "\n")
