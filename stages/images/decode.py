"""Encoded images: their bytes from memory, a file or a URL, and from bytes to pixels.

This is the only decoder. JPEG, PNG, WebP, GIF, BMP and TIFF become uint8 RGB, upright (the EXIF
orientation is applied):

- Grey, palette, CMYK, YCbCr: Pillow's conversion, without colour management.
- Transparency of any kind is laid over white, as web pages show it. (open_clip's own transform
  drops the alpha channel instead, which uncovers whatever colour lies beneath.)
- 16-bit grey: the upper 8 bits. Pillow itself would cut everything above 255 to white.
- Float and 32-bit grey, whose range nobody states, are not read.
- Animations and files of several pages: the first picture.

A file that ends too early is a fault, never a picture with a grey remainder. Silent repairs of
the decoders are not noticed: libjpeg conceals damage within the compressed data, and Pillow
leaves the rows black that are missing from a PNG of fewer rows than its header says. The size
is known from the header and checked before anything is decoded; it bounds the memory that
decoding takes, at most 16 bytes a pixel.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Final, Literal

import numpy as np
from PIL import Image

from phrasebox.stages.contract.errors import RowFault
from phrasebox.stages.contract.records import ImageRef
from phrasebox.stages.contract.values import Rgb, Sides
from phrasebox.stages.files.storage import is_local, network_errors, open_file
from phrasebox.stages.images.faults import (
    DECODE_ERRORS,
    FORMATS,
    DecodeLimits,
    check_bytes,
    check_pixels,
    raise_row_faults,
    suppress_warnings,
)

_NAME_CHARS: Final = 200  # Longest part of a file's name in a message
_TRIES: Final = 3
_FIRST_PAUSE_S: Final = 0.5


def load_image_bytes(image: ImageRef, limits: DecodeLimits) -> bytes:
    """Return the encoded image. A symbolic link is followed; a pipe or device is not opened.

    Raise RowFault: missing_image, bad_location, image_too_large, or bad_image if the file is
    too short.
    """
    if image.content is not None:
        check_bytes(len(image.content), limits)
        return image.content
    if image.url is None:
        raise RowFault("missing_image", "the row names no image")
    name = repr(
        image.file_name if len(image.file_name) <= _NAME_CHARS else image.file_name[:_NAME_CHARS] + "…"
    )
    try:
        read = _read_local if is_local(image.url) else _read_remote
        content = read(image.url, image.offset, image.size, limits)
    except FileNotFoundError as error:
        is_link = is_local(image.url) and os.path.islink(image.url)
        problem = (
            "is a link to a file that does not exist" if is_link else "does not exist below the image root"
        )
        raise RowFault("missing_image", f"{name} {problem}") from error
    except OSError as error:
        raise RowFault(
            "missing_image",
            f"{name} cannot be read: {error.strerror or error}",
        ) from error
    except ValueError as error:
        raise RowFault("bad_location", f"{name} cannot be the name of a file: {error}") from error
    if len(content) < image.size:
        raise RowFault(
            "bad_image",
            f"{name}: the file holds only {len(content)} of the image's {image.size} bytes",
        )
    return content


def _read_local(path: str, offset: int, size: int, limits: DecodeLimits) -> bytes:
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise OSError("it is a folder" if stat.S_ISDIR(status.st_mode) else "it is not a plain file")
    byte_count = size if size >= 0 else max(0, status.st_size - offset)
    check_bytes(byte_count, limits)
    with open(path, "rb", buffering=0) as file:
        file.seek(offset)
        return file.read(byte_count)


def _read_remote(url: str, offset: int, size: int, limits: DecodeLimits) -> bytes:
    """Read as `_read_local`, and try again where the network may be at fault."""
    check_bytes(size, limits)
    for attempt in range(_TRIES):
        try:
            with open_file(url) as file:
                file.seek(offset)
                content = file.read(size if size >= 0 else limits.max_bytes + 1)
            break
        except network_errors() as error:
            # fsspec says "not found" whatever a server answers.
            is_gone = isinstance(error, FileNotFoundError) and getattr(error.__cause__, "status", 404) in (
                404,
                410,
            )
            if is_gone or isinstance(error, PermissionError | IsADirectoryError):
                raise
            if attempt == _TRIES - 1:
                raise OSError(f"{error} ({_TRIES} tries)") from error
            time.sleep(_FIRST_PAUSE_S * 4**attempt)
    check_bytes(len(content), limits)
    return content


Interpolation = Literal["bicubic", "bilinear"]

_EXTENSIONS: Final = {
    "JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "png", "BMP": "bmp", "TIFF": "tif",
}  # fmt: skip
RESAMPLING: Final = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
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


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedImage:
    """A decoded, upright image.

    Attributes:
        rgb: Pixels uint8 (H, W, 3) in the target size.
        width_px, height_px: Size of the upright original.
    """

    rgb: Rgb
    width_px: int
    height_px: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UprightImage:
    """An encoded image with upright pixels.

    Attributes:
        content: The encoded image.
        extension: Extension of a file with this content, without a dot.
        width_px, height_px: Size of the pixels in `content`.
        is_reencoded: Whether the content differs from that of the original.
    """

    content: bytes
    extension: str
    width_px: int
    height_px: int
    is_reencoded: bool


def decode_rgb(content: bytes, limits: DecodeLimits) -> Rgb:
    """Return uint8 (H, W, 3) of an encoded image in its full size, upright.

    Raise RowFault as `decode_resized`.

    >>> stream = BytesIO()
    >>> Image.new("RGB", (3, 2), "white").save(stream, "PNG")
    >>> decode_rgb(stream.getvalue(), DecodeLimits()).shape
    (2, 3, 3)
    """
    return decode_resized(content, limits, lambda width, height: (width, height)).rgb


def decode_resized(
    content: bytes,
    limits: DecodeLimits,
    target: Callable[[int, int], Sides],
    *,
    interpolation: Interpolation = "bicubic",
    shrink_jpeg: bool = False,
    resize: Literal["pillow", "torch"] = "pillow",
) -> DecodedImage:
    """Decode, turn upright and resize (antialiased, as open_clip's transforms do).

    Args:
        content: The encoded image.
        limits: Larger images are faults.
        target: (width, height) in pixels of the upright original -> (width, height) of the
            result.
        interpolation: The filter.
        shrink_jpeg: Let the JPEG decoder halve the size, up to three times, down to twice the
            target at least. For 224 px photographs of 1280 px then take 0.75 of the time, those
            of 4000 px 0.15, and 640 px as long as before. Grey levels differ by 0.1 on average
            and by 12 at an edge, from 4000 px by 0.5 and 32. Below twice the target edges would
            differ by 100 levels, and box recall would fall by 0.010 (0.001-0.020).
        resize: The library that resizes; torch takes half of Pillow's time. Of 300 photographs
            2 % of the values differ, by 3 grey levels at most; noise of black and white pixels
            by up to 30, where both passes of the filter are done in another order.

    Raise RowFault: bad_image or image_too_large.
    """
    with suppress_warnings():
        image = _open_image(content, limits)
        stored_wh = image.size
        draft = None
        if shrink_jpeg and image.format in ("JPEG", "MPO"):
            orientation = _orientation(image)
            width, height = _turn(target(*_turn(stored_wh, orientation)), orientation)
            draft = image.draft("", (2 * width, 2 * height))
        with raise_row_faults(content):
            image.load()
            rgb = _to_rgb(image)
        # Newer Pillow turns TIFFs itself while loading, and then no longer reports their orientation.
        if image.format == "TIFF":
            stored_wh = rgb.size
        orientation = _orientation(image)
        original_wh = _turn(stored_wh, orientation)
        size_wh = _turn(target(*original_wh), orientation)
        with raise_row_faults(content):
            if rgb.size != size_wh and resize == "torch":
                rgb = Image.fromarray(_resize_by_torch(np.array(rgb), size_wh, interpolation))
            elif rgb.size != size_wh:
                # The last pixels that the JPEG decoder has shrunk may lie partly beyond the image.
                rgb = rgb.resize(size_wh, RESAMPLING[interpolation], box=draft and draft[1])
            if orientation in _UPRIGHT:
                rgb = rgb.transpose(_UPRIGHT[orientation])
            pixels = np.array(rgb)
        return DecodedImage(rgb=pixels, width_px=original_wh[0], height_px=original_wh[1])


def _resize_by_torch(
    rgb: Rgb,
    size_wh: Sides,
    mode: Interpolation,
) -> Rgb:
    import torch  # noqa: PLC0415  it takes seconds, which readers of single images need not wait for

    planes = torch.from_numpy(rgb).permute(2, 0, 1)[None]
    planes = torch.nn.functional.interpolate(planes, size_wh[::-1], mode=mode, antialias=True)
    pixels: Rgb = planes[0].permute(1, 2, 0).contiguous().numpy()
    return pixels


def upright_image(content: bytes, limits: DecodeLimits) -> UprightImage:
    """Return an image for readers that know neither EXIF orientation nor GIF; the same bytes if they can read it.

    An image that must be turned is encoded again: JPEG in quality 95 without subsampling, other
    formats as PNG. For others only the header is read. Raise RowFault as `decode_resized`.
    """
    with suppress_warnings():
        image = _open_image(content, limits)
        is_reencoded = _orientation(image) in _UPRIGHT or image.format == "GIF"
    extension = _EXTENSIONS[image.format or ""]
    width, height = image.size
    if is_reencoded:
        rgb = decode_rgb(content, limits)
        height, width = rgb.shape[:2]
        buffer = BytesIO()
        if extension == "jpg":
            Image.fromarray(rgb).save(buffer, "JPEG", quality=95, subsampling=0)
        else:
            extension = "png"
            Image.fromarray(rgb).save(buffer, "PNG")
        content = buffer.getvalue()
    return UprightImage(
        content=content, extension=extension, width_px=width, height_px=height, is_reencoded=is_reencoded
    )


def _open_image(content: bytes, limits: DecodeLimits) -> Image.Image:
    """Read the header of an image, and check its size. Raise RowFault as `decode_resized`."""
    check_bytes(len(content), limits)
    with raise_row_faults(content):
        image: Image.Image = Image.open(BytesIO(content), formats=FORMATS)
    check_pixels(*image.size, limits)
    return image


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation 1 .. 8; 1 if it is missing or damaged, which is not a fault of the image."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except DECODE_ERRORS:
        return 1
    return value if isinstance(value, int) and value in _UPRIGHT else 1


def _turn(size_wh: Sides, orientation: int) -> Sides:
    """Turn (width, height) of stored pixels to that of upright ones, or back."""
    width, height = size_wh
    return (height, width) if orientation >= 5 else size_wh


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert to mode RGB, by the rules in the docstring of the module."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "I" and image.format == "PNG":  # 16 bits, in older Pillow
        return Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise RowFault(
            "bad_image",
            "grey values of 32 bits are not read, since their range is not known",
        )
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        with_alpha = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        canvas = Image.new("RGB", image.size, "white")
        canvas.paste(with_alpha, mask=with_alpha.getchannel("A"))
        return canvas
    return image if image.mode == "RGB" else image.convert("RGB")
