"""Images as files of an export: under their own names where these are safe and no other image has them.

A name is safe if every file system takes it as it is and none takes it for another one. All others get the id of their
row in 16 digits, as `number_name` has it, and a line in `names.csv`, which says whose image it is.
"""

from __future__ import annotations

import csv
import posixpath
import re
import unicodedata
from array import array
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import pyarrow.compute as pc

from pipeline.dataset.folder import Dataset
from pipeline.export.base import ChosenSample, ExportJob
from pipeline.export.files import is_among, number_name
from stages.contract.records import stable_id

NAMES: Final = "names.csv"
"""Table of the images that are not written under their `file_name`."""

RENAMED: Final = f"images under another name than their own: {NAMES} says which"

_MOST_BYTES: Final = 200
"""Length of a part of a path; file systems take 255."""

_ENDING: Final = re.compile(r"\.(jpe?g|png|webp|gif|bmp|tiff?)$", re.IGNORECASE)
_SAME: Final = {".jpeg": ".jpg", ".tiff": ".tif"}

_UNSAFE: Final = re.compile(
    r"""[<>:"/\\|?*\x00-\x1f\x7f]  # Windows takes none of them
    | ^\. | [. ]$ | ^$             # hidden, or not what Windows would call it
    | ^(con|prn|aux|nul|com[0-9]|lpt[0-9])(\.|$)  # devices of Windows
    """,
    re.IGNORECASE | re.VERBOSE,
)
_NUMBER: Final = re.compile(r"[0-9]{16}")


class ImageFolders:
    """Images as files of an export, one folder for each split; or only their names, where they are not written.

    Args:
        job: The export.
        folder: With `{split}`: "images/{split}".
        written: Whether images are written; else an entry of the export names the file below the image root.
        flat: Whether the format's readers look for images in no folder below.
    """

    def __init__(self, job: ExportJob, folder: str, *, written: bool, flat: bool = False) -> None:
        self._job = job
        self._folder = folder
        self._names = ImageNames(job.dataset, flat=flat) if written else None
        self._table: Any = None
        for split in job.splits if written else ():
            job.folder.make(folder.format(split=split))

    def place(self, sample: ChosenSample) -> str:
        """Write the image if images are written, and return its name for the export's entry, relative to its folder."""
        own: str = sample.row["file_name"]
        if sample.image is None or self._names is None:
            return own
        name = self._names.name_of(sample.row, sample.image.extension)
        path = f"{self._folder.format(split=sample.split)}/{name}"
        self._job.folder.named(path).write_bytes(sample.image.content)
        if name != own:
            if self._table is None:
                self._table = csv.writer(self._job.folder.text(NAMES), lineterminator="\n")
                self._table.writerow(["written", "file_name", "sample_id"])
            self._table.writerow([path, own, sample.row["sample_id"]])
            self._job.report.notes[RENAMED] += 1
        return name


class ImageNames:
    """The name of each image of a dataset. It does not depend on what is chosen of the dataset.

    Reads all `file_name`s once and keeps 8 bytes of each. Names that differ only by case, by how accents are composed,
    or by their extension count as equal: on some system they are, and YOLO's labels have no extension of the image.
    """

    def __init__(self, dataset: Dataset, *, flat: bool) -> None:
        self._flat = flat
        keys = array("q")
        for table in dataset.tables(["file_name", "error"], batch_rows=8192):
            for name in table.filter(pc.is_null(table["error"]))["file_name"].to_pylist():
                stem, _ = _parted(name, flat=flat)
                keys.append(_key(stem))
        found, counts = np.unique(np.frombuffer(keys, np.int64), return_counts=True)
        self._twice = found[counts > 1]

    def name_of(self, row: Mapping[str, Any], extension: str) -> str:
        """Return the path below the images' folder; `extension` is that of the encoded image, without a dot."""
        stem, ending = _parted(row["file_name"], flat=self._flat)
        *folders, last = stem.split("/")
        is_safe = not _NUMBER.fullmatch(last) and all(
            not _UNSAFE.search(part) and len(part.encode()) <= _MOST_BYTES for part in (*folders, last)
        )
        if not is_safe or any(map(_ENDING.search, folders)) or is_among(_key(stem), self._twice):
            return number_name(row["id"], extension)
        is_kept = _SAME.get(ending.lower(), ending.lower()) == f".{extension}"
        return f"{stem}{ending}" if is_kept else f"{stem}.{extension}"


def _parted(file_name: str, *, flat: bool) -> tuple[str, str]:
    """A normal path, or only its last part, and the extension of an image, if it has one."""
    path = posixpath.normpath(file_name)
    path = posixpath.basename(path) if flat else path
    ending = _ENDING.search(path)
    return (path, "") if ending is None else (path[: ending.start()], ending[0])


def _key(stem: str) -> int:
    return stable_id(unicodedata.normalize("NFC", stem.casefold()))
