"""Encoded images to pixels: the only decoder.

JPEG, PNG, WebP, GIF, BMP and TIFF become uint8 RGB, upright (EXIF orientation applied):

- grey, palette, CMYK, YCbCr: Pillow's conversion, without colour management
- transparency of any kind is laid over white, as web pages show it (open_clip's own transform drops
  the alpha channel instead, which uncovers whatever colour lies beneath)
- 16-bit grey: the upper 8 bits; Pillow itself would cut everything above 255 to white
- float and 32-bit grey: 0 .. 1 if float, else 0 .. 255, else 0 .. 65535, by the first of these ranges
  that holds all values, else from the smallest to the largest value
- animations and files of several pages: the first

A file that ends too early is a fault, never a picture with a grey remainder; what the decoders mend in
silence is not: libjpeg conceals damage within the compressed data, and Pillow leaves the rows black that are
missing from a PNG of fewer rows than its header says. The size is known from the header and
checked before anything is decoded, and what decoding takes is bounded by it: at most 16 bytes a pixel.
"""

from __future__ import annotations

import logging
import os
import stat
import struct
import threading
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from stages.contract.errors import RowFault, one_line
from stages.contract.records import ImageRef
from stages.storage import is_local, open_file

FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""Pillow's names. No others are tried: each decoder is a door to untrusted input."""

_EXTENSIONS: Final = {
    "JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "png", "BMP": "bmp", "TIFF": "tif",
}  # fmt: skip

MAX_PIXELS_CEILING: Final = 178_956_970
"""No limit can be set above this: Pillow itself refuses larger images as decompression bombs."""

_SIGNATURES: Final = {
    "JPEG": (b"\xff\xd8",),
    "PNG": (b"\x89PNG",),
    "WEBP": (b"RIFF",),
    "GIF": (b"GIF8",),
    "BMP": (b"BM",),
    "TIFF": (b"II*\0", b"MM\0*"),
}
"""How files of `FORMATS` begin."""

Interpolation = Literal["bicubic", "bilinear"]

_RESAMPLING: Final = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
_ORIENTATION_TAG: Final = 0x0112
_UPRIGHT: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_NAME_CHARS: Final = 200
"""Of a file's name in messages."""

_BLOCK_VALUES: Final = 1_000_000
_TRIES: Final = 3
_FIRST_PAUSE_S: Final = 0.5

# What Pillow's plugins raise on damaged files: the first three in fuzzing, its own code catches the others.
_DECODE_ERRORS: Final = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, EOFError, struct.error,
    zlib.error,
)  # fmt: skip

# Of some damaged TIFFs: what is wrong stands in the row, and without a handler Python would print it.
logging.getLogger("PIL").addHandler(logging.NullHandler())

# `warnings.catch_warnings` changes the whole process: one thread at a time may do it.
_WARNINGS_LOCK: Final = threading.Lock()


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeLimits:
    """What is decoded at most.

    max_pixels  width x height; 128 million are a 100-megapixel camera's picture, 384 MB as RGB
    max_bytes   of the encoded image
    """

    max_pixels: int = 128_000_000
    max_bytes: int = 256 * 1024 * 1024

    def __post_init__(self) -> None:
        if not 1 <= self.max_pixels <= MAX_PIXELS_CEILING:
            raise ValueError(f"expected max_pixels in 1 .. {MAX_PIXELS_CEILING}, got {self.max_pixels}")
        if self.max_bytes < 1:
            raise ValueError(f"expected max_bytes >= 1, got {self.max_bytes}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedImage:
    """A decoded image.

    rgb                  uint8 (H, W, 3), upright, in the size that was asked for
    width_px, height_px  of the original, upright
    """

    rgb: NDArray[np.uint8]
    width_px: int
    height_px: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UprightImage:
    """An encoded image whose pixels are stored upright.

    extension            of a file with this content, without a dot
    width_px, height_px  as stored
    encoded_again        whether the content is not that of the original
    """

    content: bytes
    extension: str
    width_px: int
    height_px: int
    encoded_again: bool


def load_image_bytes(image: ImageRef, limits: DecodeLimits) -> bytes:
    """The encoded image. A symbolic link is followed, a pipe or device is not opened.

    Raises RowFault: missing_image, image_too_large, or bad_image if the file is too short.
    """
    name = repr(image.file_name if len(image.file_name) <= _NAME_CHARS else image.file_name[:_NAME_CHARS] + "…")
    if image.content is not None:
        _check_bytes(len(image.content), limits)
        return image.content
    if image.url is None:
        raise RowFault("missing_image", "the row names no image")
    try:
        read = _read_local if is_local(image.url) else _read_remote
        content = read(image.url, image.offset, image.size, limits)
    except FileNotFoundError as error:
        is_link = is_local(image.url) and os.path.islink(image.url)
        what = "is a link to a file that does not exist" if is_link else "does not exist below the image root"
        raise RowFault("missing_image", f"{name} {what}") from error
    except OSError as error:
        detail = f"{name} cannot be read: {error.strerror or error}"
        raise RowFault("missing_image", detail) from error
    except ValueError as error:
        raise RowFault("bad_location", f"{name} cannot be the name of a file: {error}") from error
    if len(content) < image.size:
        missing = f"{len(content)} of the image's {image.size} bytes"
        raise RowFault("bad_image", f"{name}: the file holds only {missing}")
    return content


def decode_rgb(content: bytes, limits: DecodeLimits) -> NDArray[np.uint8]:
    """uint8 (H, W, 3) of an encoded image in its full size, upright.

    Raises RowFault: bad_image or image_too_large.
    """
    return decode_resized(content, limits, lambda width, height: (width, height)).rgb


def decode_resized(
    content: bytes,
    limits: DecodeLimits,
    target: Callable[[int, int], tuple[int, int]],
    *,
    interpolation: Interpolation = "bicubic",
    shrink_jpeg: bool = False,
) -> DecodedImage:
    """Decode, turn upright and resize at once (antialiased, Pillow's, as open_clip's transforms do).

    target: (width, height) in pixels of the upright original -> (width, height) wanted
    shrink_jpeg: let the JPEG decoder halve the size while at least twice the target is left. 2 to 5 times
        faster from 1920 x 1080 on; pixels differ by 1 or 2 grey levels, by up to 7 in noise of saturated
        colours (measured at 224 x 224).
    Raises RowFault: bad_image or image_too_large.
    """
    _check_bytes(len(content), limits)
    with _quiet():
        with _faults(content):
            image: Image.Image = Image.open(BytesIO(content), formats=FORMATS)
        _check_pixels(*image.size, limits)
        stored = image.size
        if shrink_jpeg and image.format in ("JPEG", "MPO"):
            turned = _orientation(image) >= 5
            width, height = target(*(stored[::-1] if turned else stored))
            image.draft("", (2 * height, 2 * width) if turned else (2 * width, 2 * height))
        with _faults(content):
            image.load()
            rgb = _to_rgb(image)
        # Newer Pillow turns TIFFs itself while loading, and then no longer reports their orientation.
        stored = rgb.size if image.format == "TIFF" else stored
        orientation = _orientation(image)
        original = stored[::-1] if orientation >= 5 else stored
        wanted = target(*original)
        with _faults(content):
            if orientation in _UPRIGHT:
                rgb = rgb.transpose(_UPRIGHT[orientation])
            if rgb.size != wanted:
                rgb = rgb.resize(wanted, _RESAMPLING[interpolation])
            pixels = np.array(rgb)
        return DecodedImage(rgb=pixels, width_px=original[0], height_px=original[1])


def upright_image(content: bytes, limits: DecodeLimits) -> UprightImage:
    """An image for readers that know neither EXIF orientation nor GIF; the same bytes if there is nothing to do.

    What must be turned is encoded again: JPEG in quality 95 without subsampling, all else as PNG. Only the header is
    read of the others. Raises RowFault: bad_image or image_too_large.
    """
    _check_bytes(len(content), limits)
    with _quiet():
        with _faults(content):
            image: Image.Image = Image.open(BytesIO(content), formats=FORMATS)
        _check_pixels(*image.size, limits)
        form, orientation = image.format or "", _orientation(image)
        if orientation not in _UPRIGHT and form != "GIF":
            width, height = image.size
            extension = _EXTENSIONS[form]
            return UprightImage(
                content=content, extension=extension, width_px=width, height_px=height, encoded_again=False
            )
    rgb = decode_rgb(content, limits)
    is_jpeg = _EXTENSIONS[form] == "jpg"
    buffer = BytesIO()
    if is_jpeg:
        Image.fromarray(rgb).save(buffer, "JPEG", quality=95, subsampling=0)
    else:
        Image.fromarray(rgb).save(buffer, "PNG")
    height, width = rgb.shape[:2]
    return UprightImage(
        content=buffer.getvalue(),
        extension="jpg" if is_jpeg else "png",
        width_px=width,
        height_px=height,
        encoded_again=True,
    )


def describe(content: bytes) -> str:
    """What bytes that are no readable image look like, for people."""
    if not content:
        return "the file is empty"
    start = content[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for mark, meaning in (
        (b"<!doctype html", "looks like HTML: a web page was saved instead of the image"),
        (b"<html", "looks like HTML: a web page was saved instead of the image"),
        (b"version https://git-lfs", "is a Git LFS pointer: run git lfs pull"),
        (b"%pdf", "looks like PDF"),
        (b"pk\x03\x04", "looks like a ZIP archive"),
        (b"\x1f\x8b", "looks like gzip"),
        (b"{", "looks like JSON"),
    ):
        if start.startswith(mark):
            return f"starts with {content[:24]!r}, {meaning}"
    if b"<svg" in start:
        return f"starts with {content[:24]!r}, looks like SVG: vector drawings are not read"
    if content[4:8] == b"ftyp":
        brand = content[8:12].decode("ascii", "replace")
        return f"looks like {brand} (AVIF, HEIC or video): convert it to JPEG or PNG"
    if not content.strip(b"\0"):
        return f"all its {len(content)} bytes are zero"
    for name, marks in _SIGNATURES.items():
        if content.startswith(marks) and (name != "WEBP" or content[8:12] == b"WEBP"):
            return f"begins like {name}, but its header is damaged, cut off or of a kind that is not read"
    return f"starts with {content[:16]!r}, which is none of {', '.join(FORMATS)}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Pillow's warnings about damaged EXIF, large images and the like; one thread at a time."""
    with _WARNINGS_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _faults(content: bytes) -> Iterator[None]:
    """Turn what Pillow raises on a bad image into RowFault."""
    try:
        yield
    except RowFault:
        raise
    except UnidentifiedImageError as error:  # its text holds a memory address
        raise RowFault("bad_image", describe(content)) from error
    except Image.DecompressionBombError as error:
        raise RowFault("image_too_large", f"more than {MAX_PIXELS_CEILING} pixels, by its header") from error
    except MemoryError as error:
        raise RowFault("image_too_large", "the worker has not enough memory to decode it") from error
    except _DECODE_ERRORS as error:
        detail = f"the image is damaged, incomplete or of a kind that is not read ({len(content)} bytes): "
        detail += one_line(error)
        raise RowFault("bad_image", detail) from error


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1 .. 8; 1 if it is missing or damaged, which is no fault of the image."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except _DECODE_ERRORS:
        return 1
    return value if isinstance(value, int) and value in _UPRIGHT else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    """Mode RGB, by the rules of the module's docstring."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "I" and image.format == "PNG":  # 16 bits, in older Pillow
        return Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        return Image.fromarray(_to_8_bits(np.asarray(image))).convert("RGB")
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        with_alpha = image.convert("LA") if image.mode == "La" else image
        if with_alpha.mode != "RGBA":  # of the same mode, `convert` would make a copy
            with_alpha = with_alpha.convert("RGBA")
        canvas = Image.new("RGB", image.size, "white")
        canvas.paste(with_alpha, mask=with_alpha.getchannel("A"))
        return canvas
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_8_bits(values: NDArray[np.float32] | NDArray[np.int32]) -> NDArray[np.uint8]:
    """Grey values (H, W) of unknown range as uint8, same shape; not finite ones as the smallest or largest.

    A few rows at a time: in float64 at once, a file of 1 MB would take 5 GB.
    """
    rows = max(1, _BLOCK_VALUES // max(1, values.shape[1]))
    blocks = [slice(start, start + rows) for start in range(0, values.shape[0], rows)]
    ranges = [_finite_range(values[part]) for part in blocks]
    low, high = min(low for low, _ in ranges), max(high for _, high in ranges)
    grey = np.zeros(values.shape, np.uint8)
    if low > high:
        return grey
    for part in blocks:
        wide = np.nan_to_num(values[part].astype(np.float64), nan=low, posinf=high, neginf=low)
        if low >= 0 and high <= 1 and values.dtype.kind == "f":
            wide *= 255.0
        elif low >= 0 and high <= 65535:
            wide /= 1.0 if high <= 255 else 257.0
        else:
            wide = (wide - low) / (high - low or 1.0) * 255.0
        grey[part] = np.rint(wide)
    return grey


def _finite_range(values: NDArray[np.float32] | NDArray[np.int32]) -> tuple[float, float]:
    """The smallest and the largest finite value; infinity and minus infinity if there is none."""
    finite = values[np.isfinite(values)]
    return (float(finite.min()), float(finite.max())) if finite.size else (np.inf, -np.inf)


def _read_local(path: str, offset: int, size: int, limits: DecodeLimits) -> bytes:
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        what = "it is a folder" if stat.S_ISDIR(status.st_mode) else "it is not a plain file"
        raise OSError(what)
    wanted = size if size >= 0 else max(0, status.st_size - offset)
    _check_bytes(wanted, limits)
    with open(path, "rb", buffering=0) as file:
        file.seek(offset)
        return file.read(wanted)


def _read_remote(url: str, offset: int, size: int, limits: DecodeLimits) -> bytes:
    """Like `_read_local`; tried again where the network may be at fault."""
    _check_bytes(size, limits)
    wanted = size if size >= 0 else limits.max_bytes + 1
    pause_s = _FIRST_PAUSE_S
    for attempt in range(1, _TRIES + 1):
        try:
            with open_file(url) as file:
                file.seek(offset)
                content = file.read(wanted)
            break
        except (FileNotFoundError, PermissionError, IsADirectoryError):
            raise
        except OSError as error:
            if attempt == _TRIES:
                raise OSError(f"{error} ({_TRIES} tries)") from error
            time.sleep(pause_s)
            pause_s *= 4
    _check_bytes(len(content), limits)
    return content


def _check_bytes(size: int, limits: DecodeLimits) -> None:
    if size > limits.max_bytes:
        raise RowFault("image_too_large", f"the file has {size} bytes, the limit is {limits.max_bytes}")


def _check_pixels(width: int, height: int, limits: DecodeLimits) -> None:
    if width * height > limits.max_pixels:
        raise RowFault(
            "image_too_large",
            f"{width} x {height} pixels, the limit is {limits.max_pixels} in all (max_pixels)",
        )
