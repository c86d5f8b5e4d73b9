"""Files of an input as streams of bytes or lines, decompressed while they are read.

There are two kinds of errors. A failure of the disk or the network is an InputError and ends
the run: no row is the cause. Damage within a compressed file is a RowFault and becomes a bad
row.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import lzma
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any, Final

import pyarrow as pa

from phrasebox.stages.contract.errors import InputError, RowFault, one_line
from phrasebox.stages.files.storage import is_local, network_errors, open_file

Stream = Any  # Has `read(size)`, `seek(position)` and `tell()`, in bytes from the start

Line = tuple[int, int, bytes | RowFault]
"""Number of the line, its first byte, and its content without the line feed, or its fault."""

MAX_LINE_BYTES: Final = 16 * 1024 * 1024
"""Longer lines are faults, so that a file without line ends does not fill the memory."""

MAX_WHOLE_BYTES: Final = 2 * 1024**3
"""Most bytes of a file that is read whole. A small compressed file may hold any number."""

TO_UTF_8: Final = "convert it to UTF-8, for example with iconv -f UTF-16 -t UTF-8"

PEEK_BYTES: Final = 1024 * 1024  # Bytes at the begin of a file that show its kind

_BLOCK_BYTES: Final = 1024 * 1024
_CHUNK_BYTES: Final = 64 * 1024
"""Read size of a compressed file. A larger one loses more of the content before some damage."""

_DECOMPRESS_ERRORS: Final = (EOFError, OSError, zlib.error, lzma.LZMAError, pa.ArrowInvalid)


def is_special(url: str) -> bool:
    """Return whether a local path leads to a pipe or a device, which would give bytes for ever, or none."""
    return is_local(url) and os.path.exists(url) and not (os.path.isfile(url) or os.path.isdir(url))


class InputFile:
    """A file of the input. Raise InputError with its name if it cannot be opened or read."""

    def __init__(self, url: str) -> None:
        self._url = url
        if is_special(url):
            raise InputError(f"{url} is no plain file, and so is not read")
        with input_errors(url):
            self._file = open_file(url)
        self.tell = self._file.tell
        self.close = self._file.close

    @property
    def closed(self) -> bool:
        """True after `close`."""
        return self._file.closed

    def read(self, size: int = -1) -> bytes:
        """Return at most `size` bytes; none at the end."""
        with input_errors(self._url):
            return self._file.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a byte, as `io.IOBase.seek`."""
        with input_errors(self._url):
            return self._file.seek(offset, whence)


class Forward:
    """A stream that is only read forward: to seek, it reads and drops the bytes between.

    The last chunk can be read again, for tarfile: it steps back if a chunk has no header.
    """

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        self._last = b""
        self._unread = b""
        self._position = 0

    def tell(self) -> int:
        """Return the place of the next byte."""
        return self._position

    def seek(self, position: int) -> int:
        """Go to a byte. Raise RowFault if it is before the last chunk."""
        if position < self._position:
            back = self._position - position
            if self._unread or back > len(self._last):
                raise RowFault("bad_row", f"byte {self._position} leads back to byte {position}")
            self._unread = self._last[-back:]
            self._position = position
        while self._position < position and self.read(min(_BLOCK_BYTES, position - self._position)):
            pass
        return self._position

    def read(self, size: int) -> bytes:
        """Return at most `size` bytes; none at the end."""
        if self._unread:
            content = self._unread[:size]
            self._unread = self._unread[size:]
        else:
            content = self._last = self._read(size)
        self._position += len(content)
        return content


def is_compressed(name: str) -> bool:
    """Return whether a file is decompressed while it is read, so that it has no random access."""
    return name.lower().endswith(tuple(f".{extension}" for extension in _DECOMPRESSORS))


@contextmanager
def open_plain(url: str) -> Iterator[Stream]:
    """Open a file of the input, decompressed by its extension. Raise InputError."""
    with closing(InputFile(url)) as file:
        yield Forward(_decompressor(file, url.lower().rpartition(".")[2])) if is_compressed(url) else file


def read_whole(url: str) -> bytes:
    """Return the content of a file that cannot be read in parts, decompressed.

    Raise InputError if it has more than `MAX_WHOLE_BYTES`, RowFault if it is damaged.
    """
    blocks: list[bytes] = []
    size = 0
    with open_plain(url) as stream:
        while block := stream.read(_BLOCK_BYTES):
            blocks.append(block)
            size += len(block)
            if size > MAX_WHOLE_BYTES:
                raise InputError(
                    f"{url} holds more than {MAX_WHOLE_BYTES:,} bytes, and a JSON file is read whole: give JSON Lines, "
                    "which are read in parts, or several files"
                )
    return b"".join(blocks)


@contextmanager
def enough_memory(url: str) -> Iterator[None]:
    """Raise InputError if a file that is read whole does not fit into the memory within the block."""
    try:
        yield
    except MemoryError as error:
        raise InputError(
            f"{url} does not fit into the memory, and a JSON file is read whole: give JSON Lines, which are read in "
            "parts, or several files"
        ) from error


def is_utf_16(start: bytes) -> bool:
    """Return whether a file begins with the byte order mark of UTF-16, as files of spreadsheets do."""
    return start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))


def begins_list(start: bytes) -> bool:
    """Return whether a JSON file with these first bytes is one list."""
    return start.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")


def iter_lines(
    stream: Stream,
    start: int = 0,
    stop: int | None = None,
    number: int = 1,
) -> Iterator[Line]:
    r"""Yield the lines of a newly opened stream, split at "\n" only.

    A line above MAX_LINE_BYTES has a RowFault as its content, and so has the point where a
    compressed file is damaged.

    Args:
        stream: Bytes.
        start: First byte to read, the begin of a line.
        stop: End of the bytes to read, exclusive; None for the end of the stream.
        number: Number of the line at `start`.
    """
    position = start
    rest = b""
    overlong = 0
    for block in _blocks(stream, start, stop):
        if isinstance(block, RowFault):
            yield number, position, block
            return
        parts = (rest + block).split(b"\n")
        rest = parts.pop()
        if overlong and parts:
            size = overlong + len(parts.pop(0))
            yield number, position, _too_long(size)
            number += 1
            position += size + 1
            overlong = 0
        for part in parts:
            yield number, position, part if len(part) <= MAX_LINE_BYTES else _too_long(len(part))
            number += 1
            position += len(part) + 1
        if overlong or len(rest) > MAX_LINE_BYTES:
            overlong += len(rest)
            rest = b""
    if overlong:
        yield number, position, _too_long(overlong + len(rest))
    elif rest:
        yield number, position, rest


def _blocks(stream: Stream, start: int, stop: int | None) -> Iterator[bytes | RowFault]:
    """The bytes from `start` to `stop`.

    In a damaged compressed file, the bytes before the damage and a RowFault.
    """
    stream.seek(start)
    remaining = None if stop is None else stop - start
    while True:
        try:
            block = stream.read(_BLOCK_BYTES if remaining is None else min(_BLOCK_BYTES, remaining))
        except RowFault as fault:
            yield RowFault(
                "bad_row",
                f"the compressed file is damaged from here on: {fault.error.detail}",
            )
            return
        if not block:
            return
        if remaining is not None:
            remaining -= len(block)
        yield block


def _too_long(size: int) -> RowFault:
    return RowFault(
        "bad_row",
        f"the line has {size} bytes, more than the {MAX_LINE_BYTES} that are read",
    )


@contextmanager
def input_errors(url: str) -> Iterator[None]:
    """Raise InputError with the file's name for errors of the disk or the network."""
    try:
        yield
    except network_errors() as error:
        raise InputError(f"cannot read {url}: {getattr(error, 'strerror', None) or error}") from error


_DECOMPRESSORS: Final[dict[str, Callable[[Any], Any]]] = {
    "gz": lambda file: gzip.GzipFile(fileobj=file),
    "tgz": lambda file: gzip.GzipFile(fileobj=file),
    "bz2": bz2.BZ2File,
    "xz": lzma.LZMAFile,
    "zst": lambda file: pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd"),
}


def _decompressor(file: InputFile, extension: str) -> Callable[[int], bytes]:
    stream = _DECOMPRESSORS[extension](file)
    damage: RowFault | None = None

    def read(size: int) -> bytes:
        """`size` bytes, or all if negative.

        Fewer at the end and before damage, which the next call raises.
        """
        nonlocal damage
        chunks: list[bytes] = []
        remaining = size
        while remaining and damage is None:
            try:
                chunk: bytes = stream.read1(min(_CHUNK_BYTES, remaining) if remaining > 0 else _CHUNK_BYTES)
            except _DECOMPRESS_ERRORS as error:
                damage = RowFault("bad_row", one_line(error))
                break
            if not chunk:
                break
            chunks.append(chunk)
            remaining -= len(chunk) if remaining > 0 else 0
        if damage is not None and (not chunks or size < 0):
            raise damage
        return b"".join(chunks)

    return read
