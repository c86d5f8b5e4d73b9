"""The faults of images: above the limits, or damaged.

Pillow's exceptions become faults of the row; its warnings and log lines are not shown.
"""

from __future__ import annotations

import logging
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final

from PIL import Image, UnidentifiedImageError

from phrasebox.stages.contract.errors import RowFault, one_line

MAX_PIXELS_CEILING: Final = (
    178_956_970  # The highest limit: Pillow rejects larger images as decompression bombs
)

FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""Pillow's names. No others are tried: each decoder is a door to untrusted input."""

_OTHER_FILES: Final = {  # How files begin that are no images (in lower case), and advice
    b"<!doctype html": "a web page was saved instead of the image",
    b"<html": "a web page was saved instead of the image",
    b"version https://git-lfs": "a Git LFS pointer: run git lfs pull",
}

DECODE_ERRORS: Final = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, EOFError, struct.error,
    zlib.error,
)  # fmt: skip
"""Exceptions of Pillow's decoders on damaged files.

The first three were seen in fuzzing; the others are those that Pillow's own code catches."""

# Pillow logs some damage in TIFFs, which the row's error states; without a handler Python would print it.
logging.getLogger("PIL").addHandler(logging.NullHandler())


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeLimits:
    """The largest image that is decoded.

    Attributes:
        max_pixels: Width x height. The default fits a 100-megapixel camera and takes 384 MB as
            RGB.
        max_bytes: Size of the encoded image.
    """

    max_pixels: int = 128_000_000
    max_bytes: int = 256 * 1024 * 1024


_QUIET: Final = ContextVar("quiet", default=False)


class _ActivePattern:
    """The pattern of a warning filter; it matches every warning within `suppress_warnings`, and no other."""

    def match(self, text: str) -> bool:
        return _QUIET.get()


_FILTER: Final[Any] = ("ignore", _ActivePattern(), Warning, None, 0)
"""`warnings.catch_warnings` changes the filters of the whole process, so that only one thread at a time could decode
under it. This filter may stay: it hides nothing outside of `suppress_warnings`."""


@contextmanager
def suppress_warnings() -> Iterator[None]:
    """Show no warnings of this thread, such as Pillow's about damaged EXIF or large images."""
    filters: Any = warnings.filters  # a list, whatever typeshed says
    if filters[:1] != [_FILTER]:  # others may have put theirs in front
        filters.insert(0, _FILTER)
    token = _QUIET.set(True)
    try:
        yield
    finally:
        _QUIET.reset(token)


@contextmanager
def raise_row_faults(content: bytes) -> Iterator[None]:
    """Turn Pillow's exceptions on a bad image within the block into RowFault."""
    try:
        yield
    except UnidentifiedImageError as error:  # its text holds a memory address
        raise RowFault("bad_image", describe(content)) from error
    except Image.DecompressionBombError as error:
        raise RowFault(
            "image_too_large",
            f"more than {MAX_PIXELS_CEILING} pixels, by its header",
        ) from error
    except MemoryError as error:
        raise RowFault(
            "image_too_large",
            "the worker has not enough memory to decode it",
        ) from error
    except DECODE_ERRORS as error:
        detail = f"the image is damaged, incomplete or of a kind that is not read ({len(content)} bytes): "
        raise RowFault("bad_image", detail + one_line(error)) from error


def check_bytes(size: int, limits: DecodeLimits) -> None:
    """Raise RowFault (image_too_large) if the size of an encoded image is above the limit."""
    if size > limits.max_bytes:
        raise RowFault(
            "image_too_large",
            f"the file has {size} bytes, the limit is {limits.max_bytes}",
        )


def check_pixels(width: int, height: int, limits: DecodeLimits) -> None:
    """Raise RowFault (image_too_large) if the size of an image is above the limit."""
    if width * height > limits.max_pixels:
        detail = f"{width} x {height} pixels, the limit is {limits.max_pixels} in all (max_pixels)"
        raise RowFault("image_too_large", detail)


def describe(content: bytes) -> str:
    """Describe bytes that are not a readable image."""
    if not content:
        return "the file is empty"
    start = content[:24].lower()
    for mark, meaning in _OTHER_FILES.items():
        if start.startswith(mark):
            return meaning
    return f"starts with {content[:24]!r}, which is no readable header of {', '.join(FORMATS)}"
