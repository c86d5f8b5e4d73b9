"""Finding the files of an input, and naming them the same way on every machine."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from typing import Final

from stages.contract.errors import ConfigError, InputError
from stages.storage import absolute, filesystem_of, is_local, location_of, parent, path_in

_GLOB: Final = re.compile(r"[*?\[]")
_BRACES: Final = re.compile(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}")
_MAX_EXPANDED: Final = 1_000_000
_CHECK_THREADS: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundFile:
    """A file of the input.

    url   absolute location
    name  path relative to the folder that all entries of `path` have in common: the same wherever
          the input lies, and unchanged when files are added to a folder
    """

    url: str
    name: str


def find_files(paths: str | tuple[str, ...], suffixes: tuple[str, ...]) -> list[FoundFile]:
    """The files that `path` means: entries in the order given, files of an entry sorted, none twice.

    suffixes: lower case, with the dot; they choose files in folders and among the matches of a
        glob, not files named one by one.
    Raises InputError naming what was looked for, ConfigError for an empty list.
    """
    entries = (paths,) if isinstance(paths, str) else paths
    if not entries or not all(entries):
        raise ConfigError("input.path is empty: expected a file, a folder, a glob or a list of these")
    found: dict[str, None] = {}
    roots: list[str] = []
    for entry in entries:
        urls, root = _find_entry(entry, suffixes)
        found.update(dict.fromkeys(urls))
        roots.append(root)
    common = _common_folder(roots)
    return [FoundFile(url=url, name=printable(_relative(url, common))) for url in found]


def printable(text: str) -> str:
    r"""The text with lone surrogates, which no table can store, written as `\udc80`."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _find_entry(entry: str, suffixes: tuple[str, ...]) -> tuple[list[str], str]:
    """Locations and root folder of one entry of `path`."""
    location = absolute(entry)
    filesystem = filesystem_of(location)
    path = path_in(filesystem, location)
    try:
        if filesystem.isfile(path):
            return [location], parent(location)
        if filesystem.isdir(path):
            return _find_in_folder(location, suffixes), location
        if _BRACES.search(location):
            return _find_range(location), parent(location[: location.index("{")] + "x")
        if match := _GLOB.search(location):
            folder = parent(location[: match.start()] + "x")
            return _find_matches(location, folder, suffixes), folder
    except OSError as error:
        raise InputError(f"cannot look into {location}: {error.strerror or error}") from error
    raise InputError(f"no such file or folder: {location} (input.path)")


def _find_in_folder(location: str, suffixes: tuple[str, ...]) -> list[str]:
    filesystem = filesystem_of(location)
    every = sorted(location_of(path, location) for path in filesystem.find(path_in(filesystem, location)))
    fitting = _fitting(every, location, suffixes)
    if not fitting:
        example = f"it holds {len(every)} other files, such as {_relative(every[0], location)}" if every else ""
        raise InputError(f"no {' or '.join(suffixes)} file in the folder {location}: {example or 'it is empty'}")
    return fitting


def _find_matches(location: str, folder: str, suffixes: tuple[str, ...]) -> list[str]:
    filesystem = filesystem_of(location)
    found = filesystem.glob(path_in(filesystem, location), detail=True)
    every = sorted(location_of(path, location) for path, info in found.items() if info["type"] != "directory")
    if not every:
        raise InputError(f"no file matches {location} (input.path)")
    return _fitting(every, folder, suffixes) or every


def _fitting(urls: list[str], folder: str, suffixes: tuple[str, ...]) -> list[str]:
    """Those with one of the suffixes that are not hidden below the folder."""
    return [url for url in urls if url.lower().endswith(suffixes) and not _is_hidden(_relative(url, folder))]


def _find_range(location: str) -> list[str]:
    urls = list(_expand_braces(location))
    filesystem = filesystem_of(location)
    with ThreadPoolExecutor(_CHECK_THREADS) as pool:
        present = list(pool.map(lambda url: filesystem.isfile(path_in(filesystem, url)), urls))
    missing = [url for url, is_file in zip(urls, present, strict=True) if not is_file]
    if missing:
        raise InputError(
            f"{len(missing)} of the {len(urls)} files of {location} do not exist, the first is {missing[0]}"
        )
    return urls


def _expand_braces(text: str) -> Iterator[str]:
    """`{08..10}` and `{a,b}` as the shell and webdataset write them; not nested."""
    choices: list[Sequence[str]] = []
    position = 0
    for match in _BRACES.finditer(text):
        first, last, names = match.groups()
        if names is None:
            span = range(int(first), int(last) + 1)
            if len(span) > _MAX_EXPANDED:
                raise ConfigError(f"input.path: {match.group()} means more than {_MAX_EXPANDED} files")
            expanded = [str(number).zfill(len(first)) for number in span]
        else:
            expanded = names.split(",")
        choices += [[text[position : match.start()]], expanded]
        position = match.end()
    return map("".join, product(*choices, [text[position:]]))


def _is_hidden(relative: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in relative.split("/"))


def _common_folder(roots: list[str]) -> str:
    """The deepest folder above all roots; "" if they lie in different filesystems."""
    if len(set(map(_protocol, roots))) > 1:
        return ""
    return posixpath.commonpath(roots) if is_local(roots[0]) else _common_url(roots)


def _common_url(roots: list[str]) -> str:
    return f"{_protocol(roots[0])}://{posixpath.commonpath([root.partition('://')[2] for root in roots])}"


def _protocol(url: str) -> str:
    return "file" if is_local(url) else url.partition("://")[0]


def _relative(url: str, folder: str) -> str:
    return url[len(folder) :].lstrip("/") if folder and url.startswith(folder) else url
