"""The one file system of phrasebox, for reading and for writing: local paths, and URLs such as `s3://bucket/name`.

Local files are Python's own. `s3`, `gs` and `hdfs` are pyarrow's file systems, which Ray Data
writes to as well; they take credentials and endpoint from the usual places
(`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, profiles). Every other protocol is fsspec's, and can
only be read. fsspec's chained URLs (`zip://a::s3://b`) are not understood on purpose: a name
that is read from a caption file must never be able to choose a file system.

Inputs and images are locations, plain text that travels in rows. A dataset lies in an
`AnyPath`: a local `Path`, or an `ObjectPath` with the same methods. An object appears whole or
not at all, as a renamed file does: it is sent under another name, and then copied within the
storage. Renaming a folder of objects copies its content, and is not atomic.
"""

from __future__ import annotations

import errno
import fcntl
import os
import posixpath
import re
import shutil
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from functools import cache
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import IO, Any, Final, cast

import fsspec
import pyarrow as pa
import pyarrow.fs as pa_fs
import pyarrow.parquet as pq
from fsspec.core import url_to_fs
from fsspec.implementations.arrow import ArrowFSWrapper

from phrasebox.stages.contract.errors import ConfigError, InputError, OutputError, one_line
from phrasebox.stages.files.disk import sync_folder

_WRITABLE: Final = ("s3", "gs", "gcs", "hdfs")  # The protocols of pyarrow's file systems

_WRITE_ERRORS: Final = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO, errno.ESTALE)

_COPY_BYTES: Final = 8 << 20

_URL: Final = re.compile(
    r"([a-z][a-z0-9+.-]+):/+(.+)"
)  # A URL, also with the one slash that pathlib leaves of two


def is_local(location: str) -> bool:
    """Return whether the location is a path on this machine (`file://` included)."""
    return "://" not in location or location.startswith("file://")


def absolute(location: str) -> str:
    """Return the location without `file://`, `~` and relative parts, so that every process means the same file."""
    if not is_local(location):
        return location.rstrip("/")
    return os.path.abspath(os.path.expanduser(location.removeprefix("file://")))


def parent(location: str) -> str:
    """Return the folder of an absolute location.

    >>> parent("s3://bucket/photos/1.jpg")
    's3://bucket/photos'
    """
    return os.path.dirname(location) if is_local(location) else posixpath.dirname(location.rstrip("/"))


def join(folder: str, relative: str) -> str:
    """Return a normalised relative path below a folder; slashes separate its parts on every system."""
    return f"{folder.rstrip('/')}/{relative}"


def resolve(location: str) -> tuple[Any, str]:
    """Return the fsspec file system of a location, and the name that the location has there.

    All locations of one storage get the same object. Raise InputError if the protocol is
    unknown, needs a package that is not installed, or its storage does not answer.
    """
    if is_local(location):
        return fsspec.filesystem("file"), location.removeprefix("file://")
    protocol, _, name = location.partition("://")
    if protocol in _WRITABLE:
        return _arrow_filesystem(f"{protocol}://{name.partition('/')[0]}", os.getpid()), name
    try:
        if "::" in location:
            raise ValueError("chained URLs are not read")
        filesystem, path = url_to_fs(location)
    except (ImportError, ValueError) as error:
        raise InputError(f"cannot open {location}: {error}") from error
    return filesystem, path


@cache
def _arrow_filesystem(bucket_url: str, process: int) -> Any:
    """Return the file system of a bucket. pyarrow finds the bucket's region and AWS_ENDPOINT_URL from the URL.

    A client's threads do not survive a fork, so each process, named by its id, makes its own
    client.
    """
    try:
        return ArrowFSWrapper(pa_fs.FileSystem.from_uri(bucket_url)[0])
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"cannot open {bucket_url}: {one_line(error)}") from error


def location_of(filesystem_path: str, like: str) -> str:
    """Return the location of a path in the file system of `like`."""
    if is_local(like) or "://" in filesystem_path:
        return filesystem_path
    return f"{like.partition('://')[0]}://{filesystem_path.lstrip('/')}"


def network_errors() -> tuple[type[Exception], ...]:
    """Return OSError, and the errors that loaded network libraries raise instead."""
    names = (("aiohttp", "ClientError"), ("httpx", "HTTPError"))
    # Another thread may be importing such a module: it is there then, and has no names yet.
    errors = (getattr(sys.modules.get(module), name, None) for module, name in names)
    return (OSError, *(error for error in errors if error is not None))


def open_file(location: str) -> IO[bytes]:
    """Open for reading. Raise OSError, or InputError for a file system that cannot be used."""
    if is_local(location):
        return open(location, "rb")
    filesystem, path = resolve(location)
    return cast(IO[bytes], filesystem.open(path, "rb"))


class ObjectPath(PurePosixPath):
    """A name behind a URL, such as s3://bucket/name, with those methods of `pathlib.Path` that a dataset needs."""

    __slots__ = ()

    def __str__(self) -> str:
        return super().__str__().replace(":/", "://", 1)

    @property
    def protocol(self) -> str:
        """The protocol, such as "s3"."""
        return self.parts[0].removesuffix(":")

    @property
    def filesystem(self) -> Any:
        """The fsspec file system."""
        return resolve(str(self))[0]

    def glob(self, pattern: str) -> Iterator[ObjectPath]:
        """Yield the objects and folders directly below this name that match a pattern."""
        yield from self.sizes(pattern)

    def sizes(self, pattern: str) -> dict[ObjectPath, int]:
        """Return the results of `glob` with their bytes, by as few requests as a listing takes."""
        try:
            entries = self.filesystem.ls(self._path, detail=True)
        except FileNotFoundError:
            return {}
        sizes = {
            ObjectPath(f"{self.protocol}:", entry["name"].strip("/")): entry["size"] or 0
            for entry in entries
        }
        return {
            path: size
            for path, size in sizes.items()
            if path.parent == self and fnmatchcase(path.name, pattern)
        }

    def is_file(self) -> bool:
        """Return whether there is an object of this name."""
        return self._kind() == "file"

    def is_dir(self) -> bool:
        """Return whether there are objects below this name."""
        return self._kind() == "directory"

    def exists(self) -> bool:
        """Return whether there is an object of this name, or one below it."""
        return self._kind() is not None

    def mkdir(self, **_: Any) -> None:
        """Do nothing: there are no folders."""

    def open(self, mode: str = "rb") -> Any:
        """Open for reading. Raise FileNotFoundError."""
        if mode != "rb":
            raise ValueError(f"expected the mode rb, got {mode}")
        filesystem = self.filesystem
        if isinstance(filesystem, ArrowFSWrapper):
            return filesystem.fs.open_input_file(
                self._path
            )  # pyarrow reads its own files without Python in between
        return filesystem.open(self._path, "rb")

    def read_bytes(self) -> bytes:
        """Return the content. Raise FileNotFoundError."""
        with self.open() as stream:
            return cast(bytes, stream.read())

    def read_text(self, encoding: str = "utf-8") -> str:
        """Return the content as text. Raise FileNotFoundError."""
        return self.read_bytes().decode(encoding)

    def write_bytes(self, content: bytes) -> None:
        """Put the object, whole. Raise OSError if it cannot be written."""
        self.write_from(BytesIO(content))

    def write_from(self, source: IO[bytes], confirm: Callable[[], None] = lambda: None) -> None:
        """Put an object with the rest of a stream, a few MB at a time. Raise as `write_bytes`.

        A stream that is closed early leaves a short object, so that one gets another name first.

        confirm: Called when all is sent. What it raises leaves the object as it was.
        """
        filesystem = self.filesystem
        temporary = self.with_name(f".{self.name}.{uuid.uuid4().hex}.tmp")
        try:
            with filesystem.open(temporary._path, "wb") as stream:
                shutil.copyfileobj(source, stream, _COPY_BYTES)
            confirm()
            filesystem.mv(temporary._path, self._path)
        except (NotImplementedError, ValueError) as error:
            raise OSError(errno.EROFS, "files of this URL can only be read", str(self)) from error
        except BaseException:
            with suppress(*network_errors()):
                temporary.unlink(missing_ok=True)
            raise

    def unlink(self, *, missing_ok: bool = False) -> None:
        """Delete the object."""
        try:
            self.filesystem.rm_file(self._path)
        except FileNotFoundError:
            if not missing_ok:
                raise

    @property
    def _path(self) -> str:
        return resolve(str(self))[1]

    def _kind(self) -> str | None:
        try:
            return cast(str, self.filesystem.info(self._path)["type"])
        except FileNotFoundError:
            return None


AnyPath = Path | ObjectPath  # A local path, or a name behind a URL


def place_of(path: AnyPath | str) -> AnyPath:
    """Return the meaning of a user's path: an absolute local path, or a URL with any protocol.

    >>> place_of("s3:/bucket/out/")
    ObjectPath('s3://bucket/out')
    """
    if isinstance(path, ObjectPath):
        return path
    match = _URL.fullmatch(str(path).rstrip("/"))
    if match is None:
        return Path(path).expanduser().absolute()
    return Path(f"/{match[2]}") if match[1] == "file" else ObjectPath(f"{match[1]}:", match[2])


def writable_place(path: Path | str) -> AnyPath:
    """Return the meaning of a user's path, as `place_of`. Raise ConfigError for a protocol that can only be read."""
    place = place_of(path)
    if isinstance(place, ObjectPath) and place.protocol not in _WRITABLE:
        raise ConfigError(f"cannot write to {place}: expected a folder or a URL of {', '.join(_WRITABLE)}")
    return place


@contextmanager
def parquet_file(path: AnyPath, *, buffer_bytes: int = 0, pre_buffer: bool = False) -> Iterator[Any]:
    """Open a `pyarrow.parquet.ParquetFile`, which verifies checksums, and reads without Python where it can.

    pre_buffer: Read columns that lie side by side by one request. Of images it would read a row
    group into memory.

    Raise OSError or pyarrow.ArrowException, also in the block, if the file cannot be read or is
    not Parquet.
    """
    with (
        pa.OSFile(str(path)) if isinstance(path, Path) else path.open() as content,
        pq.ParquetFile(
            content, pre_buffer=pre_buffer, buffer_size=buffer_bytes, page_checksum_verification=True
        ) as file,
    ):
        yield file


def found_in(folder: AnyPath, pattern: str) -> list[AnyPath]:
    """Return the files and folders directly in a folder that match, by name; no folder holds nothing."""
    return sorted([*folder.glob(pattern)], key=str)


def sizes_in(folder: AnyPath, pattern: str) -> dict[AnyPath, int]:
    """Return the files directly in a folder that match, with their bytes."""
    if isinstance(folder, ObjectPath):
        return dict[AnyPath, int](folder.sizes(pattern).items())
    return {path: path.stat().st_size for path in folder.glob(pattern)}


def move(path: AnyPath, target: AnyPath) -> None:
    """Rename a file, or a folder with all that is in it, within its own file system."""
    if isinstance(path, Path):
        sync_folder(path.rename(str(target)).parent)
    elif not isinstance(target, ObjectPath):
        raise ValueError(f"expected a place in object storage, got {target}")
    elif path.is_file():
        path.filesystem.mv(path._path, target._path)
    else:
        for inner in list(path.glob("*")):
            move(inner, target / inner.name)
        remove_tree(path)


def copy(path: AnyPath, target: AnyPath) -> None:
    """Copy a file; within a disk as a link, within object storage without its bytes coming here."""
    if isinstance(path, Path) and isinstance(target, Path):
        with replacing(target) as temporary:
            try:
                os.link(path, temporary)
            except OSError:  # another disk, or a file system without links
                shutil.copyfile(path, temporary)
    elif (
        isinstance(path, ObjectPath) and isinstance(target, ObjectPath) and path.protocol == target.protocol
    ):
        filesystem = path.filesystem
        if isinstance(filesystem, ArrowFSWrapper):
            filesystem.fs.copy_file(path._path, target._path)
        else:
            filesystem.cp_file(path._path, target._path)
    else:
        with replacing(target) as temporary:
            temporary.write_bytes(path.read_bytes())


def remove_tree(path: AnyPath) -> None:
    """Delete a folder with all that is in it; nothing if it is not there."""
    if isinstance(path, Path):
        shutil.rmtree(path, ignore_errors=True)
    elif path.exists():
        path.filesystem.rm(path._path, recursive=True)


@contextmanager
def replacing(path: AnyPath, confirm: Callable[[], None] = lambda: None) -> Iterator[Path]:
    """Yield a temporary path to write to, which takes the place of `path` when the block ends without an error.

    So the file is either whole or not there. The temporary path is beside `path`, or local for
    object storage.

    confirm: Called last of all before the file takes its place. What it raises prevents that.
    """
    if isinstance(path, Path):
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")  # processes share numbers
        try:
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            confirm()
            temporary.replace(path)
            sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / path.name
        with (Path(folder) / path.name).open("rb") as file:
            path.write_from(file, confirm)


def write_text(path: AnyPath, text: str, confirm: Callable[[], None] = lambda: None) -> None:
    """Write UTF-8 text atomically. `confirm` as in `replacing`."""
    with replacing(path, confirm) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def exclusive_lock(lock: Path) -> Iterator[None]:
    """Hold the kernel's lock on a file, which is made and stays.

    Raise BlockingIOError if another process holds it. The lock ends with the process.
    """
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not lock.exists() or os.fstat(file.fileno()).st_ino != lock.stat().st_ino:
            raise BlockingIOError(f"{lock} was deleted by its holder")
        yield


def is_about_writing(path: AnyPath, error: OSError) -> bool:
    """Return whether the error came from writing below `path`: its number or its text says so.

    Errors of object storage have neither a number nor a file's name. Those of reading become
    InputError (`phrasebox.stages.read.read_piece`), so an error without a file's name counts as one of
    writing there.
    """
    if error.errno in _WRITE_ERRORS or _is_named(path, error):
        return True
    return isinstance(path, ObjectPath) and _file_of(error) is None


def cannot_write(path: AnyPath, error: OSError) -> OutputError:
    """Return the error to raise for a write below `path` that failed."""
    reason = os.strerror(error.errno) if error.errno else one_line(error)
    place = path if _is_named(path, error) else _file_of(error) or path
    return OutputError(
        f"cannot write to {place}: {reason}. Finished rows are kept: fix that, and the same command resumes the run"
    )


def _is_named(path: AnyPath, error: OSError) -> bool:
    """Return whether the text of an error names a path or a file below it, and not just another with this beginning."""
    name = re.escape(str(path))
    return re.search(rf"""(['"]){name}(/|\1)|(^|[\s(]){name}([\s/.,:;)]|$)""", str(error)) is not None


def _file_of(error: OSError) -> str | None:
    """Return the file that an error names; Ray puts advice of its own in that place when it passes an error on."""
    name = error.filename
    return name if isinstance(name, str) and os.path.isabs(name) else None
