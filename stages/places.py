"""Where a dataset lies: a local or mounted folder (pathlib), or object storage, by the same few methods.

An object appears whole or not at all, so one put is what a rename is on a local disk. Folders there are only the
beginning of names: renaming one copies what is in it, and is not atomic.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, Final

import pyarrow as pa
import pyarrow.fs as pa_fs

from stages.contract.errors import ConfigError, one_line

_URL: Final = re.compile(r"([a-z][a-z0-9+.-]+):/+(.+)")
"""Also as pathlib writes it, with one slash."""

_PROTOCOLS: Final = ("s3", "gs", "gcs", "hdfs")


@dataclass(frozen=True, slots=True, order=True)
class ObjectPath:
    """A name in object storage, with pathlib's methods as far as a dataset needs them.

    protocol  "s3"
    key       bucket and name
    """

    protocol: str
    key: PurePosixPath

    def __str__(self) -> str:
        return f"{self.protocol}://{self.key}"

    def __truediv__(self, name: str) -> ObjectPath:
        return ObjectPath(self.protocol, self.key / name)

    @property
    def name(self) -> str:
        """The last part."""
        return self.key.name

    @property
    def stem(self) -> str:
        """The last part without its last extension."""
        return self.key.stem

    @property
    def parent(self) -> ObjectPath:
        """The folder."""
        return ObjectPath(self.protocol, self.key.parent)

    @property
    def filesystem(self) -> Any:
        """pyarrow's filesystem, in which this is `str(key)`."""
        return _filesystem(self.protocol, self.key.parts[0])

    def glob(self, pattern: str) -> Iterator[ObjectPath]:
        """Objects and folders right below whose name fits."""
        selector = pa_fs.FileSelector(str(self.key), allow_not_found=True)
        for info in self.filesystem.get_file_info(selector):
            if fnmatchcase(info.base_name, pattern):
                yield self / info.base_name

    def is_file(self) -> bool:
        """Whether there is an object of this name."""
        return bool(self._type() == pa_fs.FileType.File)

    def exists(self) -> bool:
        """Whether there is an object of this name, or one below it."""
        return bool(self._type() != pa_fs.FileType.NotFound)

    def mkdir(self, *, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing: there are no folders."""

    def open(self, mode: str = "rb") -> Any:
        """For reading. Raises FileNotFoundError."""
        if mode != "rb":
            raise ValueError(f"expected the mode rb, got {mode}")
        return self.filesystem.open_input_file(str(self.key))

    def read_bytes(self) -> bytes:
        """The content. Raises FileNotFoundError."""
        with self.open() as stream:
            content: bytes = stream.read()
        return content

    def read_text(self, encoding: str = "utf-8") -> str:
        """The content as text. Raises FileNotFoundError."""
        return self.read_bytes().decode(encoding)

    def write_bytes(self, content: bytes) -> None:
        """Put the object, whole."""
        with self.filesystem.open_output_stream(str(self.key)) as stream:
            stream.write(content)

    def unlink(self, *, missing_ok: bool = False) -> None:
        """Delete the object."""
        try:
            self.filesystem.delete_file(str(self.key))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def rename(self, target: ObjectPath) -> None:
        """Copy to another name, the objects below too, then delete."""
        if self.is_file():
            self.filesystem.move(str(self.key), str(target.key))
            return
        for inner in list(self.glob("*")):
            inner.rename(target / inner.name)
        remove_tree(self)

    def _type(self) -> Any:
        return self.filesystem.get_file_info(str(self.key)).type


AnyPath = Path | ObjectPath
"""A place of either kind."""


def place_of(path: Path | str) -> AnyPath:
    """The place that a user's path means; absolute if it is local. Raises ConfigError for an unknown protocol."""
    match = _URL.fullmatch(str(path).rstrip("/"))
    if match is None:
        return Path(path).expanduser().absolute()
    if match[1] not in _PROTOCOLS:
        raise ConfigError(f"cannot use {match[1]}://{match[2]}: expected a folder or a URL of {', '.join(_PROTOCOLS)}")
    return ObjectPath(match[1], PurePosixPath(match[2]))


def found_in(folder: AnyPath, pattern: str) -> list[AnyPath]:
    """What lies right in a folder and fits, by name."""
    found: list[AnyPath] = [*folder.glob(pattern)]
    return sorted(found, key=str)


def move(path: AnyPath, target: AnyPath) -> None:
    """Rename a file or folder within its own file system."""
    if isinstance(path, ObjectPath):
        if not isinstance(target, ObjectPath):
            raise ValueError(f"expected a place in object storage, got {target}")
        path.rename(target)
    else:
        path.rename(str(target))


def remove_tree(path: AnyPath) -> None:
    """Delete a folder with all that is in it; nothing if it is not there."""
    if isinstance(path, Path):
        shutil.rmtree(path, ignore_errors=True)
    elif path.exists():
        path.filesystem.delete_dir(str(path.key))


@cache
def _filesystem(protocol: str, bucket: str) -> Any:
    """The filesystem of a bucket; made from its URL, it finds the bucket's region and AWS_ENDPOINT_URL."""
    try:
        return pa_fs.FileSystem.from_uri(f"{protocol}://{bucket}")[0]
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"cannot open {protocol}://{bucket}: {one_line(error)}") from error
