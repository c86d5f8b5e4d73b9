"""The files of an input: their search, names that are the same on every machine, kind and fingerprint."""

from __future__ import annotations

import json
import os
import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from glob import glob
from hashlib import sha256
from typing import Any, Final

from phrasebox.stages.contract.errors import ConfigError, InputError, RowFault
from phrasebox.stages.contract.records import storable
from phrasebox.stages.contract.values import Json
from phrasebox.stages.files.storage import absolute, is_local, location_of, network_errors, parent, resolve
from phrasebox.stages.read.base import Reader
from phrasebox.stages.read.streams import PEEK_BYTES, begins_list, open_plain

_GLOB: Final = re.compile(r"[*?\[]")
_RANGE: Final = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MAX_EXPANDED: Final = 1_000_000
_THREADS: Final = 32

_EXPECTED: Final = (
    "expected .jsonl or .ndjson, .csv or .tsv, .parquet, .tar (webdataset) or .json (COCO "
    "captions, or a list of objects), a glob or a folder of these, or a folder of images each "
    "with a .txt beside it"
)
_TABLES: Final = ("parquet", "jsonl", "csv")

_STAMPS: Final = (
    "size",
    "mtime",
    "created",
    "ETag",
)  # Names of file systems for size, time or version of a file

Stamps = dict[str, str]  # Location of each file -> size and time from its file system; "" for local files


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    """A file of the input.

    Attributes:
        url: Absolute location.
        name: Path relative to the common folder of all entries of `path`. It is the same on
            every machine, and does not change when files are added to a folder.
        stamp: Size and time of a file behind a URL, else empty.
    """

    url: str
    name: str
    stamp: str = ""


def find_files(paths: str | tuple[str, ...], suffixes: tuple[str, ...]) -> list[SourceFile]:
    """Return the files of the entries of `input.path`, in their order; files of an entry are sorted, none is repeated.

    `suffixes`, in lower case and with the dot, choose files in folders and among the matches of
    a glob. Files that are entries themselves may have any name. Raise InputError if there are
    no such files, ConfigError without an entry.
    """
    entries = (paths,) if isinstance(paths, str) else paths
    if not entries or not all(entries):
        raise ConfigError(
            "expected a file, a folder, a glob or a list of these, got nothing",
            key="input.path",
        )
    found_entries = [_find_entry(entry, suffixes) for entry in entries]
    common = _common_folder([root for _, root in found_entries])
    stamps = {url: stamp for files, _ in found_entries for url, stamp in files.items()}
    return [
        SourceFile(
            url=url,
            name=storable(_relative(url, common)),
            stamp=stamp,
        )
        for url, stamp in stamps.items()
    ]


def root_of(entry: str) -> str:
    """Return the folder of an entry of `input.path`, below which its files are."""
    location = absolute(entry)
    if match := _GLOB.search(location) or _RANGE.search(location):
        return parent(location[: match.start()] + "x")
    return location if not is_local(location) or os.path.isdir(location) else parent(location)


def kind_of(entry: str, readers: Mapping[str, type[Reader]]) -> str:
    """Return the kind of one entry of `input.path`. See `phrasebox.stages.read.guess_kind`."""
    location = absolute(entry)
    filesystem, path = resolve(location)
    if filesystem.isdir(path):
        return _kind_of_folder(entry, readers)
    kind = next(
        (kind for kind, reader in readers.items() if location.lower().endswith(reader.suffixes)), ""
    )
    if kind == "folder":
        raise InputError(f"{entry} is an image: {_EXPECTED}")
    is_file = filesystem.isfile(path)
    if is_file and kind == "coco_captions":
        return _kind_of_json(location)
    if is_file and location.lower().endswith(".txt"):
        return "csv"  # its reader reports a first line that names no columns
    if not kind:
        find_files(entry, ())  # reports a file that does not exist
        raise InputError(f"cannot see the kind of input {entry}: {_EXPECTED}; or set input.kind")
    return kind


def fingerprint_of(files: Sequence[SourceFile]) -> str:
    """Return the SHA-256 of names, sizes and times of files, in order; no file is read.

    Raise InputError.
    """
    digest = sha256()
    try:
        for file in files:
            stamp = file.stamp
            if is_local(file.url):
                local = os.stat(file.url)
                stamp = f"{local.st_size} {local.st_mtime_ns}"
            digest.update(f"{file.name}\0{stamp}\n".encode())
    except OSError as error:
        raise InputError(
            f"cannot look into {error.filename or files[0].url}: {error.strerror or error}"
        ) from error
    return digest.hexdigest()


def _find_entry(entry: str, suffixes: tuple[str, ...]) -> tuple[Stamps, str]:
    location = absolute(entry)
    filesystem, path = resolve(location)
    try:
        if filesystem.isfile(path):
            return {location: _stamp(location, filesystem.info(path))}, parent(location)
        if filesystem.isdir(path):
            if is_local(location):
                stamps = _local_stamps(_walk(path))
            else:
                stamps = _stamps_of(location, filesystem.find(path, detail=True))
            files = _choose(stamps, location, suffixes)
            if not files:
                first = _relative(next(iter(stamps), ""), location)
                example = (
                    f"it holds {len(stamps)} other files, such as {first}" if stamps else "it is empty"
                )
                plain = [  # .jsonl stands for .jsonl.gz, too
                    name for name in suffixes if not any(name.startswith(f"{other}.") for other in suffixes)
                ]
                raise InputError(f"no {' or '.join(plain)} file in the folder {location}: {example}")
            return files, location
        if _RANGE.search(location):
            return _find_range(location), parent(location[: location.index("{")] + "x")
        if match := _GLOB.search(location):
            folder = parent(location[: match.start()] + "x")
            if is_local(location) and "**" not in path:  # since ** would follow links in circles
                stamps = _local_stamps(place for place in glob(path) if not os.path.isdir(place))
            else:
                stamps = _stamps_of(location, filesystem.glob(path, detail=True))
            if not stamps:
                _raise_cause(filesystem, path)
                raise InputError(f"no file matches {location}", key="input.path")
            return _choose(stamps, folder, suffixes) or stamps, folder
        _raise_cause(filesystem, path)
    except network_errors() as error:
        raise InputError(
            f"cannot look into {location}: {getattr(error, 'strerror', None) or error}"
        ) from error
    raise InputError(f"no such file or folder: {location}", key="input.path")


def _stamp(location: str, info: Json) -> str:
    return "" if is_local(location) else " ".join(str(info[key]) for key in _STAMPS if key in info)


def _raise_cause(filesystem: Any, path: str) -> None:
    """Raise OSError if storage does not answer or denies access: fsspec would report a missing file."""
    with suppress(FileNotFoundError, ValueError):  # the latter for a name with NUL
        filesystem.info(path)


def _local_stamps(paths: Iterable[str]) -> Stamps:
    return dict.fromkeys(sorted(paths), "")


def _walk(folder: str) -> Iterator[str]:
    """Yield the files below a local folder.

    Follow links, and read each folder once. Raise OSError.
    """

    def fail(error: OSError) -> None:
        raise error

    visited_folders: set[str] = set()
    for place, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        folders.sort()
        if (target := os.path.realpath(place)) in visited_folders:
            folders.clear()
        else:
            visited_folders.add(target)
            yield from (os.path.join(place, name) for name in names)


def _stamps_of(location: str, infos: Mapping[str, Json]) -> Stamps:
    files = {
        location_of(path, location): info for path, info in infos.items() if info["type"] != "directory"
    }
    return {url: _stamp(url, files[url]) for url in sorted(files)}


def _choose(stamps: Stamps, folder: str, suffixes: tuple[str, ...]) -> Stamps:
    """The files with one of the suffixes that are not hidden below the folder."""

    def is_hidden(url: str) -> bool:
        return any(part.startswith((".", "__MACOSX")) for part in _relative(url, folder).split("/"))

    return {
        url: stamp for url, stamp in stamps.items() if url.lower().endswith(suffixes) and not is_hidden(url)
    }


def _find_range(location: str) -> Stamps:
    urls = _expand_ranges(location)

    def info(url: str) -> Json:
        filesystem, path = resolve(url)
        with suppress(FileNotFoundError):
            details: Json = filesystem.info(path)
            return details
        return {"type": "missing"}

    with ThreadPoolExecutor(_THREADS) as pool:
        infos = dict(zip(urls, pool.map(info, urls), strict=True))
    absent_urls = [url for url in urls if infos[url]["type"] != "file"]
    if absent_urls:
        subject = f"{len(absent_urls)} of the {len(urls)} files of {location}"
        raise InputError(f"{subject} do not exist, the first is {absent_urls[0]}")
    return {url: _stamp(url, details) for url, details in infos.items()}


def _expand_ranges(text: str) -> list[str]:
    """Expand `{08..10}` like the shell and webdataset, also downwards as in `{10..08}`."""
    match = _RANGE.search(text)
    if match is None:
        return [text]
    first, last = match.groups()
    step = 1 if int(first) <= int(last) else -1
    numbers = range(int(first), int(last) + step, step)
    is_padded = any(len(bound) > 1 and bound.startswith("0") for bound in (first, last))
    digits = max(len(first), len(last)) if is_padded else 1
    if len(numbers) > _MAX_EXPANDED:
        raise ConfigError(
            f"{match.group()} means more than {_MAX_EXPANDED} files",
            key="input.path",
        )
    begin = text[: match.start()]
    ends = _expand_ranges(text[match.end() :])
    return [f"{begin}{str(number).zfill(digits)}{end}" for number in numbers for end in ends]


def _common_folder(roots: list[str]) -> str:
    """The deepest folder above all roots; "" if they are in different filesystems."""
    protocols = {"" if is_local(root) else root.partition("://")[0] for root in roots}
    if len(protocols) > 1:
        return ""
    start = f"{protocols.pop()}://".removeprefix("://")
    return start + posixpath.commonpath([root.removeprefix(start) for root in roots])


def _relative(url: str, folder: str) -> str:
    return url[len(folder) :].lstrip("/") if folder and url.startswith(folder) else url


def _kind_of_folder(entry: str, readers: Mapping[str, type[Reader]]) -> str:
    suffixes = tuple(suffix for reader in readers.values() for suffix in reader.suffixes)
    names = [file.name.lower() for file in find_files(entry, suffixes)]
    kinds = [
        kind for kind, reader in readers.items() if any(name.endswith(reader.suffixes) for name in names)
    ]
    tables = [kind for kind in kinds if kind in _TABLES]
    table_names = {name.removesuffix(".parquet") for name in names if name.endswith(".parquet")}
    if kinds[0] == "parquet" and any(posixpath.dirname(name) in table_names for name in names):
        return "folder"  # img2dataset puts 00000.parquet, which holds no images, beside the folder 00000
    if kinds[0] in _TABLES and len(tables) > 1:
        raise InputError(
            f"{entry} holds files of several kinds, {' and '.join(tables)}: give the files of one, or set input.kind"
        )
    return kinds[0]


def _kind_of_json(location: str) -> str:
    """Tell COCO captions from a list of rows and from JSON Lines under another name."""
    try:
        with open_plain(location) as stream:
            start = stream.read(PEEK_BYTES)
        if begins_list(start):
            return "jsonl"
        lines = start.strip().split(b"\n", 1)
        first = json.loads(lines[0])
    except RowFault as fault:
        raise InputError(f"cannot read {location}: {fault.error.detail}") from fault
    except (ValueError, RecursionError):
        return "coco_captions"  # one object over several lines, or no JSON, which its reader reports
    is_row = isinstance(first, dict) and len(lines) > 1 and "images" not in first
    return "jsonl" if is_row else "coco_captions"
