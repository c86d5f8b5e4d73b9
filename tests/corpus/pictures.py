"""Image files of every bad kind: name -> what is in the file, or what makes it, and what its row must say.

A new case is one line in `PICTURES`. The name is also the file's name, so that its ending may be part of the case.
"""

import io
import random
import struct
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Content = bytes | Callable[[Path], None]  # The bytes of a file, or what makes the thing at a path that is not there yet

SIDE_PX = 96


@cache
def scene() -> Image.Image:
    """A red square on a shaded ground, RGB."""
    y, x = np.mgrid[0:SIDE_PX, 0:SIDE_PX]
    pixels = np.stack([90 + x // 2, 120 + y // 2, 200 - x // 2], -1).astype(np.uint8)
    pixels[30:66, 24:60] = (220, 20, 30)
    return Image.fromarray(pixels)


def encode(kind: str, mode: str = "RGB", image: Image.Image | None = None, **options: Any) -> bytes:
    stream = io.BytesIO()
    (scene() if image is None else image).convert(mode).save(stream, kind, **options)
    return stream.getvalue()


def animation(kind: str) -> bytes:
    stream = io.BytesIO()
    scene().save(stream, kind, save_all=True, append_images=[scene().rotate(90), scene().rotate(180)], duration=50)
    return stream.getvalue()


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


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


# PNG, chunk by chunk


def chunk(name: bytes, body: bytes, *, crc: int | None = None) -> bytes:
    return (
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body) if crc is None else crc)
    )


def png(
    width: int = 8,
    height: int = 8,
    *,
    depth: int = 8,
    colour: int = 2,
    extra: bytes = b"",
    pixels: bytes | None = None,
    interlaced: int = 0,
    header: bytes | None = None,
) -> bytes:
    """A PNG of black pixels. colour: 0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGB and alpha."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(colour, 1)
    if pixels is None:
        pixels = zlib.compress(b"\0" * ((1 + -(-width * channels * depth // 8)) * height))
    start = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced) if header is None else header
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", start) + extra + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@cache
def zipped_zeros(size: int) -> bytes:
    packer = zlib.compressobj(1)
    block = b"\0" * 1_000_000
    return b"".join(packer.compress(block) for _ in range(size // len(block))) + packer.flush()


BOMB_BYTES = 30_000_000  # What the compressed parts of the bombs would become

# GIF and BMP, by hand


def gif(*blocks: bytes, width: int = 8, height: int = 8) -> bytes:
    return (
        b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff" + b"".join(blocks) + b";"
    )


def gif_frame(*, left: int = 0, top: int = 0, width: int = 8, height: int = 8, code: int = 2, data: bytes) -> bytes:
    parts = b"".join(bytes([len(data[i : i + 255])]) + data[i : i + 255] for i in range(0, len(data), 255))
    return b"," + struct.pack("<HHHHBB", left, top, width, height, 0, code) + parts + b"\0"


def bmp(width: int, height: int, bits: int, body: bytes, *, compression: int = 0, palette: bytes = b"") -> bytes:
    offset = 54 + len(palette)
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(body), 0, 0, len(palette) // 4, 0)
    return b"BM" + struct.pack("<IHHI", offset + len(body), 0, 0, offset) + header + palette + body


# TIFF, tag by tag


def tiff(tags: dict[int, Any], body: bytes = b"", *, next_ifd: int = 0) -> bytes:
    """A little-endian TIFF: its body at byte 8, then its tags. Values are LONGs, or (type, count, number)."""
    entries = b""
    for tag, value in sorted(tags.items()):
        kind, count, number = value if isinstance(value, tuple) else (4, 1, value)
        entries += struct.pack("<HHII", tag, kind, count, number)
    return (
        b"II*\0" + struct.pack("<I", 8 + len(body)) + body + struct.pack("<H", len(tags)) + entries
        + struct.pack("<I", next_ifd)
    )  # fmt: skip


def grey_tiff(
    width: int = 8, height: int = 8, body: bytes = b"\x80" * 64, *, next_ifd: int = 0, **changed: Any
) -> bytes:
    """changed: `t259=5` sets tag 259, compression, to 5; None leaves it out."""
    tags = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: len(body)}
    tags |= {int(name[1:]): value for name, value in changed.items()}
    return tiff({tag: value for tag, value in tags.items() if value is not None}, body, next_ifd=next_ifd)


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
    "zeros over its tables.jpg": (put(JPEG, 20, b"\0" * 300), "bad_image"),
    "no width.jpg": (after(JPEG, b"\xff\xc0", b"\0\0", 5), "bad_image"),
    "65500 px wide.jpg": (after(JPEG, b"\xff\xc0", b"\xff\xdc\xff\xdc", 3), "image_too_large"),
    "larger than its data.jpg": (after(JPEG, b"\xff\xc0", b"\x07\xd0\x07\xd0", 3), "annotated"),
    "something before it.jpg": (b"\r\n" + JPEG, "bad_image"),
    "several pictures.jpg": (animation("MPO"), "annotated"),
    "orientation 99.jpg": (encode("JPEG", exif=exif(99)), "annotated"),
    "exif of noise.jpg": (encode("JPEG", exif=b"Exif\0\0" + noise(500)), "annotated"),
    "exif that points at itself.jpg": (
        encode("JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x69\x87\x04\0\x01\0\0\0\x08\0\0\0\x08\0\0\0"),
        "annotated",
    ),
    "colour profile of noise.jpg": (encode("JPEG", icc_profile=noise(3000)), "annotated"),
    # PNG
    "plain.png": (PNG, "annotated"),
    "16 bit colour.png": (png(depth=16), "annotated"),
    "interlaced.png": (png(1, 1, interlaced=1), "annotated"),
    "wrong checksum of its pixels.png": (put(PNG, -14, b"\0\0"), "annotated"),
    "unknown filter.png": (png(pixels=zlib.compress((b"\x09" + b"\0" * 24) * 8)), "bad_image"),
    "no width.png": (png(0, 8), "bad_image"),
    "no palette.png": (png(colour=3), "annotated"),
    # WebP
    "a container alone.webp": (b"RIFF\x04\0\0\0WEBP", "bad_image"),
    "a sound file.webp": (b"RIFF\x24\0\0\0WAVEfmt " + b"\0" * 40, "bad_image"),
    # GIF
    "no frame.gif": (gif(), "bad_image"),
    "65535 px wide.gif": (gif(gif_frame(data=b"\x84\x51"), width=65535, height=65535), "image_too_large"),
    "frame beyond its edge.gif": (gif(gif_frame(left=60000, top=60000, data=b"\x84\x51")), "image_too_large"),
    "pixels of noise.gif": (gif(gif_frame(data=noise(100))), "bad_image"),
    # BMP
    "from the top.bmp": (bmp(4, -4, 24, b"\0" * 48), "annotated"),
    "run lengths.bmp": (bmp(4, 1, 8, b"\x04\x01\0\0\0\x01", compression=1, palette=b"\0\0\0\0\xff\0\0\0"), "annotated"),
    "2 billion pixels wide.bmp": (bmp(2**31 - 1, 2**31 - 1, 24, b""), "image_too_large"),
    # TIFF
    "lab.tif": (encode("TIFF", "LAB"), "annotated"),
    "group 4.tif": (encode("TIFF", "1", compression="group4"), "annotated"),
    "no tags.tif": (tiff({}), "bad_image"),
    "page that points at itself.tif": (grey_tiff(next_ifd=72), "annotated"),
    "pixels beyond its end.tif": (grey_tiff(t273=999_999), "bad_image"),
    "a million strips.tif": (grey_tiff(t273=(4, 10**6, 8)), "bad_image"),
    "60000 px wide.tif": (grey_tiff(60_000, 60_000), "image_too_large"),
    "unknown compression.tif": (grey_tiff(t259=5555), "bad_image"),
    "2000 samples a pixel.tif": (grey_tiff(t277=2000), "bad_image"),
    # Bombs
    "pixels of 30 MB.png": (png(pixels=zipped_zeros(BOMB_BYTES)), "annotated"),
    "text of 30 MB.png": (png(extra=chunk(b"zTXt", b"a\0\0" + zipped_zeros(BOMB_BYTES))), "bad_image"),
    "ten thousand texts.png": (png(extra=chunk(b"tEXt", b"a\0" + b"b" * 1000) * 10_000), "annotated"),
    "300 MB of nothing.jpg": (sparse(300_000_000), "image_too_large"),
    # No images at all
    "empty.jpg": (b"", "bad_image"),
    "html.jpg": (b"<!DOCTYPE html><html><body>404</body></html>", "bad_image"),
    "text.jpg": (b"404: not found\n", "bad_image"),
    "svg.jpg": (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "bad_image"),
    "pdf.jpg": (b"%PDF-1.7\n" + noise(50), "bad_image"),
    "pointer.jpg": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "bad_image"),
    "photo.heic": (b"\0\0\0\x18ftypheic" + b"\0" * 40, "bad_image"),
    "photo.jp2": (encode("JPEG2000"), "bad_image"),
    "zeros.jpg": (b"\0" * 5000, "bad_image"),
    # Names and places
    "a png.jpg": (PNG, "annotated"),
    "with\na line end.jpg": (JPEG, "annotated"),
    "\N{CAT FACE} \u202e\u05d7\u05ea\u05d5\u05dc e\u0301.jpg": (JPEG, "annotated"),
    "n" * 250 + ".jpg": (JPEG, "annotated"),
    "a device.jpg": (link("/dev/zero"), "missing_image"),
    "a link.jpg": (link("plain.jpg"), "annotated"),
}
"""File name -> content and outcome. Those of an image that libjpeg or Pillow mend in silence are `annotated`."""
