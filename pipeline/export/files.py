"""The folder of an export, which replaces only exports; names of images in it; Parquet.

An export is written to `.NAME.unfinished` beside its target and takes its name at the end. It holds
`.phrasebox-export.json` with the settings and a digest of its files: all names and sizes, and the content of
all but images, of which there is too much.
"""

from __future__ import annotations

import json
import os
import posixpath
import re
import shutil
import unicodedata
from array import array
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from phrasebox.pipeline.dataset.folder import Dataset
from phrasebox.pipeline.dataset.rows import Row
from phrasebox.stages.contract.errors import ConfigError
from phrasebox.stages.contract.records import stable_id
from phrasebox.stages.contract.values import Json
from phrasebox.stages.files.disk import sync_all, sync_folder
from phrasebox.stages.files.parquet import RollingParquet
from phrasebox.stages.files.shards import sha256_of
from phrasebox.stages.files.storage import exclusive_lock, place_of, write_text

MARK: Final = ".phrasebox-export.json"  # Hidden, because some loaders read every JSON file that they see
_ROWS_AT_ONCE: Final = 32  # kept as Python objects, which are ten times as large as Arrow's
_MOST_BYTES: Final = 200  # of a part of a path; file systems take 255
_EXTENSION: Final = re.compile(r"\.(jpe?g|png|webp|gif|bmp|tiff?)$", re.IGNORECASE)
_SAME_EXTENSION: Final = {".jpeg": ".jpg", ".tiff": ".tif"}
_NUMBER: Final = re.compile(r"[0-9]{16}")
_UNSAFE: Final = re.compile(
    r"""[<>:"/\\|?*\x00-\x1f\x7f]  # Windows takes none of them
    | ^\. | [. ]$ | ^$             # hidden, or not what Windows would call it
    | ^(con|prn|aux|nul|com[0-9]|lpt[0-9])(\.|$)  # devices of Windows
    """,
    re.IGNORECASE | re.VERBOSE,
)


class ExportFolder:
    """The temporary folder of an export.

    Attributes:
        path: The folder.
        open_files: Files that are closed when the export ends or fails.
        is_finished: Whether the export is complete.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.open_files = ExitStack()
        self.is_finished = False

    def file(self, name: str) -> Path:
        """Return the path of a file of the export, such as "labels/a.json"; make its folder."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def text(self, name: str) -> IO[str]:
        """Open a text file of the export until it ends."""
        return self.open_files.enter_context(self.file(name).open("w", encoding="utf-8", newline="\n"))

    def make(self, name: str) -> None:
        """Make a folder, which may stay empty."""
        (self.path / name).mkdir(parents=True, exist_ok=True)

    def finish(self, settings: Json) -> None:
        """Mark the export as complete; settings without times and places make exports equal."""
        self.open_files.close()
        sync_all()
        mark = {**settings, "content": _digest_of_content(self.path)}
        write_text(self.path / MARK, json.dumps(mark, indent=1, ensure_ascii=False) + "\n")
        self.is_finished = True


@contextmanager
def export_folder(out: Path, *, overwrite: bool) -> Iterator[ExportFolder]:
    """Yield a folder that becomes `out` if `finish` is called in the block.

    With `overwrite`, it may replace another export. Raise ConfigError if `out` holds anything
    else, or cannot be written, or another export is writing to it.
    """
    path = place_of(out)
    if not isinstance(path, Path):
        raise ConfigError(f"{path} is a URL; exports are written to local and mounted folders", key="out")
    if not path.name:
        raise ConfigError(f"{path} is no folder of an export; give one below it", key="out")
    temporary = path.with_name(f".{path.name}.unfinished")
    try:
        _check_free(path, overwrite=overwrite)
        temporary.mkdir(parents=True, exist_ok=True)
        with exclusive_lock(temporary / ".lock"):
            try:
                folder = ExportFolder(temporary / "export")
                if folder.path.exists():  # a killed export has left it
                    shutil.rmtree(folder.path)
                folder.path.mkdir()
                with folder.open_files:
                    yield folder
                if folder.is_finished:
                    _check_free(path, overwrite=overwrite)
                    _take_place(folder.path, path)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    except BlockingIOError as error:
        raise ConfigError(f"another export is writing to {temporary}; wait for it", key="out") from error
    except OSError as error:
        raise ConfigError(f"cannot write to {path}: {error.strerror or error}", key="out") from error


def _take_place(new: Path, path: Path) -> None:
    """Give the finished folder its name, and then delete the export that had it."""
    if not path.exists():
        sync_folder(new.rename(path).parent)
        return
    old = path.rename(path.with_name(f".{path.name}.{os.getpid()}.old"))
    try:
        new.rename(path)
    except OSError:
        old.rename(path)
        raise
    sync_folder(path.parent)
    shutil.rmtree(old)


def _check_free(path: Path, *, overwrite: bool) -> None:
    if path.is_symlink() or path.is_file():
        raise ConfigError(f"{path} exists and is not a folder", key="out")
    if not path.exists() or not any(path.iterdir()):
        return
    try:
        mark = json.loads((path / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        mark = None
    if not isinstance(mark, dict) or not {"content", "names"} & mark.keys():
        raise ConfigError(f"{path} is not empty and no export wrote it; give another folder", key="out")
    if not overwrite:
        raise ConfigError(
            f"{path} holds an export; give another folder, or --overwrite to replace it", key="out"
        )
    is_same = (
        mark["content"] == _digest_of_content(path)
        if "content" in mark
        else mark["names"] == _digest_of_names(path)  # of a version before
    )
    if not is_same:
        raise ConfigError(
            f"{path} holds other files than its export wrote, or changed ones: move yours away "
            f"(find {path} -cnewer {path / MARK}), or give another folder",
            key="out",
        )


def _digest_of_content(folder: Path) -> int:
    """Return a digest of the names, sizes and content of all files below, see above; but for the mark."""
    digest = _digest_of_names(folder)
    for place, _, names in os.walk(folder):
        for path in (Path(place, name) for name in names if name != MARK):
            if path.is_symlink():
                content = os.readlink(path)
            elif _EXTENSION.search(path.name):
                content = str(path.stat().st_size)
            else:
                content = sha256_of(path)
            digest += stable_id(f"{path.relative_to(folder).as_posix()}\0{content}")
    return digest


def _digest_of_names(folder: Path) -> int:
    """Return a digest of the names of all files, links and folders below; but for the mark."""
    digest = 0
    for place, folders, names in os.walk(folder):
        relative = Path(place).relative_to(folder)
        digest += sum(
            stable_id((relative / name).as_posix()) for name in (*folders, *names) if name != MARK
        )
    return digest


def number_name(number: int, extension: str) -> str:
    """Return a file name for an id below 2^53: "0000000000000042.jpg".

    It is safe on every file system.
    """
    return f"{number:016d}.{extension}"


class ImageNames:
    """File names for the images of a dataset. They do not depend on the choice of samples.

    An image keeps its name if the name is safe on every file system and unique in the dataset.
    Other images get the id of their row, see `number_name`. Names that differ only by case,
    Unicode composition or extension count as equal: some file systems cannot tell them apart, and
    YOLO's labels drop the extension. The constructor reads all `file_name`s once and keeps 8
    bytes of each.
    """

    def __init__(self, dataset: Dataset, *, flat: bool) -> None:
        self._flat = flat
        keys = array("q")
        for table in dataset.tables(["file_name", "error"], batch_rows=8192):
            names = table.filter(pc.is_null(table["error"]))["file_name"].to_pylist()
            keys.extend(_key(self._split_extension(name)[0]) for name in names)
        unique, counts = np.unique(np.frombuffer(keys, np.int64), return_counts=True)
        self._ambiguous_keys = set(unique[counts > 1].tolist())

    def name_of(self, row: Row, extension: str) -> str:
        """Return the path below the image folder; `extension` has no dot."""
        stem, suffix = self._split_extension(row["file_name"])
        *folders, last = stem.split("/")
        is_safe = not _NUMBER.fullmatch(last) and all(
            not _UNSAFE.search(part) and len(part.encode()) <= _MOST_BYTES for part in (*folders, last)
        )
        if not is_safe or any(map(_EXTENSION.search, folders)) or _key(stem) in self._ambiguous_keys:
            return number_name(row["id"], extension)
        has_extension = _SAME_EXTENSION.get(suffix.lower(), suffix.lower()) == f".{extension}"
        return f"{stem}{suffix}" if has_extension else f"{stem}.{extension}"

    def _split_extension(self, file_name: str) -> tuple[str, str]:
        """Return the normalised path without its extension, and the extension or ""."""
        path = posixpath.normpath(file_name)
        path = posixpath.basename(path) if self._flat else path
        match = _EXTENSION.search(path)
        return (path, "") if match is None else (path[: match.start()], match[0])


def _key(stem: str) -> int:
    return stable_id(unicodedata.normalize("NFC", stem.casefold()))


def compact_json(value: Any) -> str:
    """Return compact JSON in one line."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


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


class ParquetParts:
    """Rows of one split as numbered files, as `datasets` names them.

    For example data/SPLIT-00000-of-00003.parquet.

    A split without rows has no file: `datasets` rejects files and splits without rows.
    """

    def __init__(
        self, folder: ExportFolder, split: str, schema: Any, per_file: int, per_group: int
    ) -> None:
        self._folder = folder
        self._split = split
        self._schema = schema
        self._rows: list[Row] = []
        self._paths: list[Path] = []
        self._writer = RollingParquet(self._file, rows_per_file=per_file, rows_per_group=per_group)
        folder.open_files.callback(self._writer.abandon)

    def add(self, row: Row) -> None:
        """Add a row; may write a row group."""
        self._rows.append(row)
        if len(self._rows) == _ROWS_AT_ONCE:
            self._pack()

    def close(self) -> None:
        """Write all remaining rows and give the files their names."""
        self._pack()
        self._writer.close()
        for number, path in enumerate(self._paths):
            path.rename(path.with_name(f"{self._split}-{number:05d}-of-{len(self._paths):05d}.parquet"))

    def _pack(self) -> None:
        self._writer.write(pa.Table.from_pylist(self._rows, schema=self._schema))
        self._rows = []

    @contextmanager
    def _file(self, number: int) -> Iterator[Path]:
        self._paths.append(self._folder.file(f"data/{self._split}-{number:05d}.parquet"))
        yield self._paths[-1]
