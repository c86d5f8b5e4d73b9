"""Image files of every bad kind: name -> what is in the file, or what makes it, and what its row must say.

A new case is one line in `PICTURES`. The name is also the file's name, so that its ending may be part of the case.
"""

import random
import struct
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.build.records import image_bytes

Content = (
    bytes | Callable[[Path], None]
)  # The bytes of a file, or what makes the thing at a path that is not there yet

SIDE_PX = 96


@cache
def scene() -> Image.Image:
    """A red square on a shaded ground, RGB."""
    y, x = np.mgrid[0:SIDE_PX, 0:SIDE_PX]
    pixels = np.stack([90 + x // 2, 120 + y // 2, 200 - x // 2], -1).astype(np.uint8)
    pixels[30:66, 24:60] = (220, 20, 30)
    return Image.fromarray(pixels)


def encode(kind: str, mode: str = "RGB", image: Image.Image | None = None, **options: Any) -> bytes:
    return image_bytes((scene() if image is None else image).convert(mode), kind, **options)


def animation(kind: str) -> bytes:
    frames = [scene().rotate(90), scene().rotate(180)]
    return image_bytes(scene(), kind, save_all=True, append_images=frames, duration=50)


def cut(content: bytes, share: float) -> bytes:
    return content[: int(len(content) * share)]


def put(content: bytes, place: int, new: bytes) -> bytes:
    """Other bytes at a place, counted from the end if negative."""
    place %= len(content)
    return content[:place] + new + content[place + len(new) :]


def after(content: bytes, mark: bytes, new: bytes, skip: int = 0) -> bytes:
    """Other bytes `skip` bytes after the first `mark`."""
    return put(content, content.index(mark) + len(mark) + skip, new)


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


# PNG, chunk by chunk


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int = 8, height: int = 8, *, extra: bytes = b"", pixels: bytes | None = None) -> bytes:
    """An RGB PNG of black pixels."""
    if pixels is None:
        pixels = zlib.compress(b"\0" * ((1 + 3 * width) * height))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


@cache
def zipped_zeros(size: int) -> bytes:
    packer = zlib.compressobj(1)
    block = b"\0" * 1_000_000
    return b"".join(packer.compress(block) for _ in range(size // len(block))) + packer.flush()


BOMB_BYTES = 30_000_000  # What the compressed parts of the bombs would become

# GIF, by hand


def gif(frame: bytes = b"") -> bytes:
    return b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff" + frame + b";"


# What is no plain file


def link(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


def sparse(size: int) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        with path.open("wb") as file:
            file.truncate(size)

    return make


JPEG = encode("JPEG")
PNG = encode("PNG")


PICTURES: dict[str, tuple[Content, str]] = {
    # JPEG
    "plain.jpg": (JPEG, "annotated"),
    "cut after its header.jpg": (JPEG[: JPEG.index(b"\xff\xda") + 2], "bad_image"),
    "no width.jpg": (after(JPEG, b"\xff\xc0", b"\0\0", 5), "bad_image"),
    "65500 px wide.jpg": (after(JPEG, b"\xff\xc0", b"\xff\xdc\xff\xdc", 3), "image_too_large"),
    "something before it.jpg": (b"\r\n" + JPEG, "bad_image"),
    "several pictures.jpg": (animation("MPO"), "annotated"),
    "exif of noise.jpg": (encode("JPEG", exif=b"Exif\0\0" + noise(500)), "annotated"),
    "exif that points at itself.jpg": (
        encode("JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x69\x87\x04\0\x01\0\0\0\x08\0\0\0\x08\0\0\0"),
        "annotated",
    ),
    # PNG
    "wrong checksum of its pixels.png": (put(PNG, -14, b"\0\0"), "annotated"),
    "unknown filter.png": (png(pixels=zlib.compress((b"\x09" + b"\0" * 24) * 8)), "bad_image"),
    "no width.png": (png(0, 8), "bad_image"),
    # WebP
    "a container alone.webp": (b"RIFF\x04\0\0\0WEBP", "bad_image"),
    "a sound file.webp": (b"RIFF\x24\0\0\0WAVEfmt " + b"\0" * 40, "bad_image"),
    # GIF
    "no frame.gif": (gif(), "bad_image"),
    "frame beyond its edge.gif": (
        gif(b"," + struct.pack("<HHHHBB", 60_000, 60_000, 8, 8, 0, 2) + b"\x02\x84\x51\0"),
        "image_too_large",
    ),
    # TIFF
    "lab.tif": (encode("TIFF", "LAB"), "annotated"),
    "no tags.tif": (b"II*\0\x08" + b"\0" * 9, "bad_image"),
    # Bombs
    "pixels of 30 MB.png": (png(pixels=zipped_zeros(BOMB_BYTES)), "annotated"),
    "text of 30 MB.png": (png(extra=chunk(b"zTXt", b"a\0\0" + zipped_zeros(BOMB_BYTES))), "bad_image"),
    "300 MB of nothing.jpg": (sparse(300_000_000), "image_too_large"),
    # No images at all
    "empty.jpg": (b"", "bad_image"),
    "html.jpg": (b"<!DOCTYPE html><html><body>404</body></html>", "bad_image"),
    "text.jpg": (b"404: not found\n", "bad_image"),
    "svg.jpg": (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "bad_image"),
    "pointer.jpg": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "bad_image"),
    "photo.heic": (b"\0\0\0\x18ftypheic" + b"\0" * 40, "bad_image"),
    "photo.jp2": (encode("JPEG2000"), "bad_image"),
    # Names and places
    "a png.jpg": (PNG, "annotated"),
    "with\na line end.jpg": (JPEG, "annotated"),
    "\N{CAT FACE} \u202e\u05d7\u05ea\u05d5\u05dc e\u0301.jpg": (JPEG, "annotated"),
    "n" * 250 + ".jpg": (JPEG, "annotated"),
    "a device.jpg": (link("/dev/zero"), "missing_image"),
    "a link.jpg": (link("plain.jpg"), "annotated"),
}
"""File name -> content and outcome. Those of an image that libjpeg or Pillow mend in silence are `annotated`."""
