"""Files of an input as streams, decompressed on the way.

Two kinds of trouble are told apart. What the disk or network does is an InputError, which ends the
run: no row is to blame. Damaged content of a compressed file is a RowFault, which becomes a bad row.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import pyarrow as pa

from stages.contract.errors import InputError, RowFault, one_line
from stages.storage import open_file

Stream = Any
"""Has `read(size)`, `seek(position)` and `tell()`, in bytes from the start."""

_BLOCK_BYTES: Final = 1024 * 1024
_PIECE_BYTES: Final = 64 * 1024
"""Read at once from a compressed file: what comes before the damage in a larger piece would be lost with it."""

_DECOMPRESS_ERRORS: Final = (EOFError, OSError, zlib.error, lzma.LZMAError, pa.ArrowInvalid)


class InputFile:
    """A file of the input. Raises InputError, naming it, if it cannot be opened or read."""

    def __init__(self, url: str) -> None:
        self._url = url
        try:
            self._file = open_file(url)
        except OSError as error:
            raise _unreadable(url, error) from error

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._file.closed

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes; none at the end."""
        try:
            return self._file.read(size)
        except OSError as error:
            raise _unreadable(self._url, error) from error

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a byte, as `io.IOBase.seek`."""
        try:
            return self._file.seek(offset, whence)
        except OSError as error:
            raise _unreadable(self._url, error) from error

    def tell(self) -> int:
        """The byte that is read next."""
        return self._file.tell()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Forward:
    """A stream that is only read forward; what lies before a sought place is read and dropped.

    The last piece can be read again: tarfile, having found no header in it, leaves it to be looked at.
    """

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        self._last = b""
        self._back = b""
        self._position = 0

    def tell(self) -> int:
        """The byte that is read next."""
        return self._position

    def seek(self, position: int) -> int:
        """Go to a byte. Raises RowFault if it lies before the last piece."""
        if position < self._position:
            back = self._position - position
            if self._back or back > len(self._last):
                raise RowFault("bad_row", f"byte {self._position} leads back to byte {position}")
            self._back, self._position = self._last[-back:], position
        while self._position < position and self.read(min(_BLOCK_BYTES, position - self._position)):
            pass
        return self._position

    def read(self, size: int) -> bytes:
        """At most `size` bytes; none at the end."""
        if self._back:
            content, self._back = self._back[:size], self._back[size:]
        else:
            content = self._last = self._read(size)
        self._position += len(content)
        return content


def is_compressed(name: str) -> bool:
    """Whether a file is decompressed while it is read, and so can only be read from its start."""
    return name.lower().endswith((".gz", ".tgz", ".bz2", ".xz", ".zst"))


@contextmanager
def open_plain(url: str) -> Iterator[Stream]:
    """Open a file of the input, decompressed as its extension says. Raises InputError."""
    file = InputFile(url)
    try:
        if is_compressed(url):
            yield Forward(_decompressor(file, url.lower().rpartition(".")[2]))
        else:
            yield file
    finally:
        file.close()


def _unreadable(url: str, error: OSError) -> InputError:
    return InputError(f"cannot read {url}: {error.strerror or error}")


def _decompressor(file: InputFile, extension: str) -> Callable[[int], bytes]:
    packed: Any = file
    stream: Any
    if extension in {"gz", "tgz"}:
        stream = gzip.GzipFile(fileobj=packed)
    elif extension == "bz2":
        stream = bz2.BZ2File(packed)
    elif extension == "xz":
        stream = lzma.LZMAFile(packed)  # noqa: SIM115  (`open_plain` closes the file below it)
    else:
        stream = pa.CompressedInputStream(pa.PythonFile(packed, mode="r"), "zstd")

    damage: RowFault | None = None

    def read(size: int) -> bytes:
        """`size` bytes, or all if negative; fewer at the end and where the damage begins, which the next call tells."""
        nonlocal damage
        pieces: list[bytes] = []
        left = size
        while left and damage is None:
            try:
                piece: bytes = stream.read1(min(_PIECE_BYTES, left) if left > 0 else _PIECE_BYTES)
            except _DECOMPRESS_ERRORS as error:
                damage = RowFault("bad_row", one_line(error))
                break
            if not piece:
                break
            pieces.append(piece)
            left -= len(piece) if left > 0 else 0
        if damage is not None and (not pieces or size < 0):
            raise damage
        return b"".join(pieces)

    return read
