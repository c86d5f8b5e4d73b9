"""Files of JSON records: a line each, or one list."""

from __future__ import annotations

from pipeline.export.base import compact_json
from pipeline.export.files import ExportFolder
from stages.contract.values import Json


class RecordLines:
    """A file of JSON records, a line each, written in one pass."""

    def __init__(self, folder: ExportFolder, name: str) -> None:
        self._file = folder.text(name)

    def add(self, record: Json) -> None:
        """Add a record."""
        self._file.write(compact_json(record) + "\n")

    def close(self) -> None:
        """Complete the file."""


class RecordList(RecordLines):
    """A file of JSON records, all in one list, written in one pass."""

    _is_empty = True

    def add(self, record: Json) -> None:
        """Add a record."""
        self._file.write(("[\n" if self._is_empty else ",\n") + compact_json(record))
        self._is_empty = False

    def close(self) -> None:
        """Complete the file."""
        self._file.write("[]\n" if self._is_empty else "\n]\n")
