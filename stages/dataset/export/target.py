"""The folder of an export: it appears when it is finished, and replaces nothing but an export.

An export is written to `.NAME.unfinished` beside its target and takes its name at the end. It holds
`.phrasebox-export.json`, which says what it is and which files belong to it.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

from stages.contract.errors import ConfigError
from stages.storage import place_of, write_text

MARK: Final = ".phrasebox-export.json"
"""Hidden, because some loaders read every JSON file that they see."""

_LOCK: Final = ".lock"
_NUMBERED: Final = re.compile(r"[0-9]{16}\.[a-z]+")


class Target:
    """What an export writes to, while it is written.

    folder  the temporary folder
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: list[str] = []
        self._numbered: list[str] = []
        self.finished = False

    def file(self, name: str) -> Path:
        """Path of a file of the export, "labels/a.json", its folder made."""
        self._files.append(name)
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def numbered(self, name: str) -> Path:
        """Path of a folder of the export, made, for files that are named `number_name`."""
        self._numbered.append(name)
        path = self.folder / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def renamed(self, old: str, new: str) -> None:
        """Give a file another name in the same folder."""
        self._files[self._files.index(old)] = new
        (self.folder / old).rename(self.folder / new)

    def finish(self, about: Mapping[str, Any]) -> None:
        """Mark the export as whole. about: what it is, without times and places, so that it can be compared."""
        mark = {**about, "files": sorted(self._files), "numbered": sorted(self._numbered)}
        write_text(self.folder / MARK, json.dumps(mark, indent=1, ensure_ascii=False) + "\n")
        self.finished = True


def number_name(number: int, extension: str) -> str:
    """Name of a file after an id below 2^53: "0000000000000042.jpg". No name of a sample gets into a path."""
    return f"{number:016d}.{extension}"


@contextmanager
def opened(out: Path, *, overwrite: bool) -> Iterator[Target]:
    """A target that becomes `out` when the block ends and `finish` was called; else nothing is left of it.

    overwrite  let it take the place of another export

    Raises ConfigError if `out` holds something, or cannot be written, or another export is writing to it.
    """
    path = place_of(out)
    if not isinstance(path, Path):
        raise ConfigError(f"--out: {path} is a URL; exports are written to local and mounted folders")
    temporary = path.with_name(f".{path.name}.unfinished")
    try:
        check_free(path, overwrite=overwrite)
        lock = _begun(temporary)
        with lock:
            try:
                target = Target(temporary)
                yield target
                if target.finished:
                    (temporary / _LOCK).unlink()
                    check_free(path, overwrite=overwrite)
                    _take_place(temporary, path)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise ConfigError(f"--out: cannot write to {path}: {error.strerror or error}") from error


def _begun(temporary: Path) -> IO[str]:
    """The new temporary folder's lock. What a killed export left behind is deleted."""
    temporary.mkdir(parents=True, exist_ok=True)
    lock = (temporary / _LOCK).open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise ConfigError(f"--out: another export is writing to {temporary}; wait for it") from error
    for entry in temporary.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != _LOCK:
            entry.unlink()
    return lock


def _take_place(temporary: Path, path: Path) -> None:
    """Give the finished folder its name. An old export goes away after that."""
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
            raise ConfigError(f"--out: {path} is a link to a folder that does not exist")
        return
    if not path.is_dir() or path.is_symlink():
        raise ConfigError(f"--out: {path} is there and is not a folder")
    if not any(path.iterdir()):
        return
    mark = _mark(path)
    if mark is None:
        raise ConfigError(f"--out: {path} is not empty and no export wrote it; give another folder")
    if not overwrite:
        raise ConfigError(f"--out: {path} holds an export; give another folder, or --overwrite to replace it")
    strange = list(_strangers(path, mark))
    if strange:
        raise ConfigError(
            f"--out: {path} holds files that no export wrote ({', '.join(strange[:5])}): move them away, or give "
            "another folder"
        )


def _mark(path: Path) -> dict[str, Any] | None:
    try:
        mark = json.loads((path / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    is_mark = isinstance(mark, dict) and isinstance(mark.get("files"), list) and isinstance(mark.get("numbered"), list)
    return mark if is_mark else None


def _strangers(path: Path, mark: Mapping[str, Any]) -> Iterator[str]:
    """Files and links below `path` that are not the export's."""
    files, numbered = {MARK, *mark["files"]}, set(mark["numbered"])
    for folder, folders, names in os.walk(path):
        place = Path(folder).relative_to(path)
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        for name in sorted([*names, *links]):
            own = place.as_posix() in numbered and _NUMBERED.fullmatch(name)
            if not own and (place / name).as_posix() not in files:
                yield (place / name).as_posix()
