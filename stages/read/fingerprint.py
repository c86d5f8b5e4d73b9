"""The fingerprint of an input: its files, their sizes and when they were written. It is cheap, and reads no file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from typing import Any, Final

from stages.contract.errors import InputError
from stages.read.find import FoundFile
from stages.shared.storage import filesystem_of, is_local, parent, path_in

_THREADS: Final = 16

_LISTED_FROM: Final = 50
"""Files of a folder behind a URL from which on one listing is cheaper than a question for each."""

_TELLING: Final = ("size", "mtime", "created", "ETag")
"""Names that file systems give to the size, the time or the version of a file."""


def fingerprint_of(files: Sequence[FoundFile]) -> str:
    """SHA-256 of the names, sizes and times of an input's files, in order. Raises InputError if one cannot be found."""
    digest = sha256()
    try:
        for file, stamp in zip(files, _stamps(files), strict=True):
            digest.update(f"{file.name}\0{stamp}\n".encode())
    except OSError as error:
        raise InputError(f"cannot look into {error.filename or files[0].url}: {error.strerror or error}") from error
    return digest.hexdigest()


def _stamps(files: Sequence[FoundFile]) -> Iterator[str]:
    folders: dict[str, list[str]] = {}
    for file in files:
        if not is_local(file.url):
            folders.setdefault(parent(file.url), []).append(file.url)
    listed = {folder: _listed(folder) for folder, urls in folders.items() if len(urls) >= _LISTED_FROM}

    def stamp(file: FoundFile) -> str:
        if is_local(file.url):
            found = os.stat(file.url)
            return f"{found.st_size} {found.st_mtime_ns}"
        filesystem = filesystem_of(file.url)
        path = path_in(filesystem, file.url)
        info = listed.get(parent(file.url), {}).get(path) or filesystem.info(path)
        return " ".join(str(info[key]) for key in _TELLING if key in info)

    if not folders:
        yield from map(stamp, files)
        return
    with ThreadPoolExecutor(_THREADS) as pool:
        yield from pool.map(stamp, files)


def _listed(folder: str) -> dict[str, Any]:
    """Return the entries of a folder by their path in the file system."""
    filesystem = filesystem_of(folder)
    return {entry["name"]: entry for entry in filesystem.ls(path_in(filesystem, folder), detail=True)}
