"""People's marks of samples, good or bad: `marks.jsonl` beside the shards.

One JSON object a line, see `append_log`. The latest mark of a sample counts, and an empty one
takes it away:

    {"version": 1, "time": "2026-01-31T12:00:00Z", "sample_id": "riders", "mark": "good"}

Earlier versions wrote `marks.json`, one object of all marks, which is read and counts as older.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import ClassVar, Final, Literal, get_args

from pydantic import Field

from phrasebox.pipeline.dataset.append_log import LONGEST_TEXT, LogLine, append_lines, read_log
from phrasebox.stages.contract.values import Json
from phrasebox.stages.contract.versions import StoredFormat
from phrasebox.stages.files.json_files import read_json_as
from phrasebox.stages.files.storage import AnyPath

MarkName = Literal["good", "bad"]
MARKS: Final[tuple[str, ...]] = get_args(MarkName)

MARKS_LOG: Final = "marks"
EARLIER_FILE: Final = "marks.json"

_log = logging.getLogger(__name__)


class Mark(LogLine):
    """One line of the file: a sample's mark, or none any more."""

    form: ClassVar[StoredFormat[Json]] = StoredFormat(
        name="version of marks", current=1, remedy="it has no such version"
    )

    sample_id: str = Field(max_length=LONGEST_TEXT)
    mark: MarkName | Literal[""]


def read_marks(dataset: AnyPath) -> dict[str, str]:
    """Return the marks in a dataset's folder by sample id.

    Raise InputError for a file that is damaged, unreadable, or a link.
    """
    marks: dict[str, str] = dict(read_earlier_marks(dataset))
    lines, unreadable_lines = read_log(dataset, MARKS_LOG, Mark)
    marks |= {line.sample_id: line.mark for line in lines}
    if unreadable_lines:
        _log.warning("lines of the marks of %s that cannot be read: %d", dataset, unreadable_lines)
    return {sample_id: mark for sample_id, mark in marks.items() if mark}


def read_earlier_marks(dataset: AnyPath) -> dict[str, MarkName]:
    """Return the marks that an earlier version wrote, by sample id; raise InputError for a damaged file."""
    path = dataset / EARLIER_FILE
    return read_json_as(path, dict[str, MarkName]) if path.exists() else {}


def append_marks(dataset: AnyPath, marks: Mapping[str, str]) -> None:
    """Give samples, by their ids, one of `MARKS`, or take theirs away with "". The marks of others stay.

    They are on disk when this returns. Raise OSError if they cannot be written, and
    pydantic.ValidationError for another mark or an id of more than `LONGEST_TEXT` letters.
    """
    lines = [Mark.model_validate({"sample_id": name, "mark": mark}) for name, mark in marks.items()]
    append_lines(dataset, MARKS_LOG, lines)
