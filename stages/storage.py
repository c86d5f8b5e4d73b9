"""Files by location, for reading: a local path, or `protocol://...`.

Local paths are opened by Python itself, URLs by the fsspec filesystem of their protocol; `s3`, `gs`
and `hdfs` fall back on pyarrow's own filesystems where s3fs or gcsfs is not installed. Credentials
and endpoints come from each library's usual places (environment, profiles). fsspec's chained URLs
(`zip://a::s3://b`) are not understood, on purpose: a name read from a caption file must never be
able to choose a filesystem.
"""

from __future__ import annotations

import os
import posixpath
from functools import cache
from typing import IO, Any, Final, cast

import fsspec
import pyarrow as pa
import pyarrow.fs as pa_fs
from fsspec.implementations.arrow import ArrowFSWrapper

from stages.contract.errors import InputError

_ARROW_PROTOCOLS: Final = ("s3", "gs", "gcs", "hdfs")


def is_local(location: str) -> bool:
    """Whether the location is a path on this machine (`file://` included)."""
    return "://" not in location or location.startswith("file://")


def absolute(location: str) -> str:
    """The location without `file://`, `~` and relative parts, so that every process means the same file."""
    if not is_local(location):
        return location.rstrip("/")
    return os.path.abspath(os.path.expanduser(location.removeprefix("file://")))


def parent(location: str) -> str:
    """The folder of an absolute location."""
    if is_local(location):
        return os.path.dirname(location)
    return posixpath.dirname(location.rstrip("/"))


def join(folder: str, relative: str) -> str:
    """A normalised relative path under a folder; slashes separate, on every system."""
    return f"{folder.rstrip('/')}/{relative}"


def filesystem_of(location: str) -> Any:
    """The fsspec filesystem of a location; the same object for every location it serves.

    Raises InputError for a protocol that is unknown or needs a package that is not installed.
    """
    if is_local(location):
        return fsspec.filesystem("file")
    protocol = location.partition("://")[0]
    try:
        options = fsspec.get_filesystem_class(protocol)._get_kwargs_from_urls(location)
        return fsspec.filesystem(protocol, **options)
    except ImportError as error:
        if protocol in _ARROW_PROTOCOLS:
            bucket = location.removeprefix(f"{protocol}://").partition("/")[0]
            return _arrow_filesystem(f"{protocol}://{bucket}")
        raise InputError(f"cannot open {location}: {error}") from error
    except ValueError as error:
        raise InputError(f"cannot open {location}: {error}") from error


@cache
def _arrow_filesystem(root: str) -> Any:
    """The filesystem of a bucket; made from its URL, it finds the bucket's region and AWS_ENDPOINT_URL."""
    try:
        return ArrowFSWrapper(pa_fs.FileSystem.from_uri(root)[0])
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"cannot open {root}: {error}") from error


def path_in(filesystem: Any, location: str) -> str:
    """The location as its filesystem names it."""
    return cast(str, filesystem._strip_protocol(location))


def location_of(filesystem_path: str, like: str) -> str:
    """Inverse of `path_in`, for a path found in the filesystem of `like`."""
    if is_local(like) or "://" in filesystem_path:
        return filesystem_path
    return f"{like.partition('://')[0]}://{filesystem_path.lstrip('/')}"


def open_file(location: str) -> IO[bytes]:
    """Open for reading. Raises OSError, or InputError for a filesystem that cannot be used."""
    if is_local(location):
        return open(location, "rb")
    filesystem = filesystem_of(location)
    return cast(IO[bytes], filesystem.open(path_in(filesystem, location), "rb"))
