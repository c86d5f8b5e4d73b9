"""The files of an export: its folder, which appears when it is finished and replaces only exports, and Parquet in it.

An export is written to `.NAME.unfinished` beside its target and takes its name at the end. It holds
`.phrasebox-export.json`, which says what it is and which files belong to it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import pyarrow as pa

from stages.contract.errors import ConfigError
from stages.contract.records import stable_id
from stages.shared.storage import held, place_of, write_text
from stages.write import RollingParquet

MARK: Final = ".phrasebox-export.json"
"""Hidden, because some loaders read every JSON file that they see."""

LIST: Final = ".phrasebox-files.txt"
"""Names of the files that are too many for the mark, one a line."""

_LOCK: Final = ".lock"

_ROWS_AT_ONCE: Final = 32
"""Rows kept as Python objects, which are ten times as large as Arrow's."""


class ExportFolder:
    """The temporary folder that an export is written to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files: list[str] = []
        self._texts: list[IO[str]] = []
        self._list: IO[str] | None = None
        self.finished = False

    def file(self, name: str) -> Path:
        """Path of a file of the export, such as "labels/a.json"; makes its folder."""
        self._files.append(name)
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def text(self, name: str) -> IO[str]:
        """A text file of the export, open until it ends."""
        file = self.file(name).open("w", encoding="utf-8", newline="\n")
        self._texts.append(file)
        return file

    def named(self, name: str) -> Path:
        """Path of one of very many files, which a list beside the mark knows; makes its folder."""
        self._list = self._list or self.text(LIST)
        self._list.write(f"{name}\n")
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def make(self, name: str) -> None:
        """Make a folder, which may stay empty."""
        (self.path / name).mkdir(parents=True, exist_ok=True)

    def renamed(self, old: str, new: str) -> None:
        """Gives a file another name in the same folder."""
        self._files[self._files.index(old)] = new
        (self.path / old).rename(self.path / new)

    def finish(self, about: Mapping[str, Any]) -> None:
        """Marks the export as whole; `about` says what it is, without times and places, so that exports compare."""
        self.close()
        mark = {**about, "files": sorted(self._files)}
        write_text(self.path / MARK, json.dumps(mark, indent=1, ensure_ascii=False) + "\n")
        self.finished = True

    def close(self) -> None:
        """Close what `text` and `named` have opened."""
        for file in self._texts:
            file.close()


def is_among(key: int, ordered: Any) -> bool:
    """Return whether a whole number is in a sorted array of them."""
    place = int(np.searchsorted(ordered, key))
    return place < len(ordered) and int(ordered[place]) == key


def number_name(number: int, extension: str) -> str:
    """Name of a file after an id below 2^53: "0000000000000042.jpg", which is safe whatever a sample is called."""
    return f"{number:016d}.{extension}"


@contextmanager
def export_folder(out: Path, *, overwrite: bool) -> Iterator[ExportFolder]:
    """A folder that becomes `out` when the block ends and `finish` was called; otherwise it is deleted.

    Args:
        out: The folder of the finished export.
        overwrite: Let it replace another export.

    Raises:
        ConfigError: `out` holds something, or cannot be written, or another export is writing to it.
    """
    path = place_of(out)
    if not isinstance(path, Path):
        raise ConfigError(f"out: {path} is a URL; exports are written to local and mounted folders")
    temporary = path.with_name(f".{path.name}.unfinished")
    try:
        check_free(path, overwrite=overwrite)
        with _begun(temporary):
            try:
                folder = ExportFolder(temporary)
                with closing(folder):
                    yield folder
                if folder.finished:
                    (temporary / _LOCK).unlink()
                    check_free(path, overwrite=overwrite)
                    _take_place(temporary, path)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise ConfigError(f"out: cannot write to {path}: {error.strerror or error}") from error


@contextmanager
def _begun(temporary: Path) -> Iterator[None]:
    """Hold the new temporary folder; delete the files that a killed export left behind."""
    temporary.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(held(temporary / _LOCK))
        except BlockingIOError as error:
            raise ConfigError(f"out: another export is writing to {temporary}; wait for it") from error
        for entry in temporary.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry.name != _LOCK:
                entry.unlink()
        yield


def _take_place(temporary: Path, path: Path) -> None:
    """Gives the finished folder its name, and then deletes the export that had it."""
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    replaces = path.is_dir() and any(path.iterdir())
    if replaces:
        path.rename(old)
    try:
        temporary.rename(path)
    except OSError:
        if replaces:
            old.rename(path)
        raise
    if replaces:
        shutil.rmtree(old)


def check_free(path: Path, *, overwrite: bool) -> None:
    """Raises ConfigError unless an export may go to `path`."""
    if not path.exists():
        if path.is_symlink():
            raise ConfigError(f"out: {path} is a link to a folder that does not exist")
        return
    if not path.is_dir() or path.is_symlink():
        raise ConfigError(f"out: {path} exists and is not a folder")
    if not any(path.iterdir()):
        return
    mark = _mark(path)
    if mark is None:
        raise ConfigError(f"out: {path} is not empty and no export wrote it; give another folder")
    if not overwrite:
        raise ConfigError(f"out: {path} holds an export; give another folder, or --overwrite to replace it")
    strange = list(_strangers(path, mark))
    if strange:
        raise ConfigError(
            f"out: {path} holds files that no export wrote ({', '.join(strange[:5])}): move them away, or give "
            "another folder"
        )


def _mark(path: Path) -> dict[str, Any] | None:
    try:
        mark = json.loads((path / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return mark if isinstance(mark, dict) and isinstance(mark.get("files"), list) else None


def _strangers(path: Path, mark: Mapping[str, Any]) -> Iterator[str]:
    """Gives files and links below `path` that do not belong to the export."""
    files = {MARK, *mark["files"]}
    listed = _listed(path / LIST) if LIST in files else np.zeros(0, np.int64)
    for folder, folders, names in os.walk(path):
        place = Path(folder).relative_to(path)
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        for name in sorted([*names, *links]):
            whole = (place / name).as_posix()
            if whole not in files and not is_among(stable_id(whole), listed):
                yield whole


def _listed(path: Path) -> Any:
    """The hashes of the names in a list, sorted: 8 bytes each of millions."""
    with path.open(encoding="utf-8", newline="\n") as lines:
        return np.sort(np.fromiter((stable_id(line.removesuffix("\n")) for line in lines), np.int64))


class ParquetParts:
    """Rows of one split as numbered files: data/SPLIT-00000-of-00003.parquet, the names that `datasets` knows.

    Only one row group is in memory.

    Args:
        folder: Of the export.
        split: Name of the split.
        schema: Arrow schema of the rows.
        rows_per_file: Rows of every file except the last.
        rows_per_group: Rows of every row group except a file's last.
    """

    def __init__(
        self, folder: ExportFolder, split: str, schema: Any, *, rows_per_file: int, rows_per_group: int
    ) -> None:
        self._folder = folder
        self._split = split
        self._schema = schema
        self._rows: list[Mapping[str, Any]] = []
        self._files: list[str] = []
        self._writer = RollingParquet(self._place, rows_per_file=rows_per_file, rows_per_group=rows_per_group)

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a row; may write a row group."""
        self._rows.append(row)
        if len(self._rows) == _ROWS_AT_ONCE:
            self._pack()

    def close(self) -> None:
        """Write the remaining rows and give the files their names.

        A split without rows has no file: `datasets` rejects files and splits without rows.
        """
        self._pack()
        self._writer.close()
        for number, name in enumerate(self._files):
            self._folder.renamed(name, f"data/{self._split}-{number:05d}-of-{len(self._files):05d}.parquet")

    def abandon(self) -> None:
        """Close the file."""
        self._writer.abandon()

    def _pack(self) -> None:
        self._writer.write(pa.Table.from_pylist(self._rows, schema=self._schema))
        self._rows = []

    @contextmanager
    def _place(self, number: int) -> Iterator[Path]:
        self._files.append(f"data/{self._split}-{number:05d}.parquet")
        yield self._folder.file(self._files[-1])
