"""The lines of a file, or of a range of its bytes."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from typing import Final

from stages.contract.errors import RowFault
from stages.read.streams import Stream

MAX_LINE_BYTES: Final = 16 * 1024 * 1024
"""Longer lines are faults, so that a file without line ends does not fill the memory."""

_BLOCK_BYTES: Final = 1024 * 1024


Line = tuple[int, int, bytes | RowFault]
"""Number of the line, its first byte, its content without the line feed or why it could not be read."""

TO_UTF_8: Final = "convert it to UTF-8, for example with iconv -f UTF-16 -t UTF-8"


def is_utf_16(start: bytes) -> bool:
    """Whether a file begins with the byte order mark of UTF-16, as spreadsheets write it."""
    return start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))


def iter_lines(stream: Stream, *, start: int = 0, stop: int | None = None, number: int = 1) -> Iterator[Line]:
    r"""Lines of the bytes `start` .. `stop`, split at "\n" only.

    stream: newly opened
    start: the first byte of a line; number: that line's number
    A line above MAX_LINE_BYTES, and the point where a compressed file breaks off, give a RowFault.
    """
    stream.seek(start)
    position, rest, overlong = start, b"", 0
    left = None if stop is None else stop - start
    while True:
        try:
            block = stream.read(_BLOCK_BYTES if left is None else min(_BLOCK_BYTES, left))
        except RowFault as fault:
            yield (
                number,
                position,
                _damaged(fault),
            )
            return
        if not block:
            break
        if left is not None:
            left -= len(block)
        parts = (rest + block).split(b"\n")
        rest = parts.pop()
        if overlong and parts:
            size = overlong + len(parts.pop(0))
            yield number, position, _too_long(size)
            number, position, overlong = number + 1, position + size + 1, 0
        for part in parts:
            yield number, position, part if len(part) <= MAX_LINE_BYTES else _too_long(len(part))
            number += 1
            position += len(part) + 1
        if overlong or len(rest) > MAX_LINE_BYTES:
            overlong, rest = overlong + len(rest), b""
    if overlong:
        yield number, position, _too_long(overlong + len(rest))
    elif rest:
        yield number, position, rest


def _damaged(fault: RowFault) -> RowFault:
    return RowFault("bad_row", f"the compressed file is damaged from here on: {fault.error.detail}")


def _too_long(size: int) -> RowFault:
    return RowFault("bad_row", f"the line has {size} bytes, more than the {MAX_LINE_BYTES} that are read")
