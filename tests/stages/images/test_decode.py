import io
import os
import struct
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from phrasebox.stages.contract.errors import RowFault
from phrasebox.stages.contract.records import ImageRef
from phrasebox.stages.images import decode
from phrasebox.stages.images.decode import (
    RESAMPLING,
    Interpolation,
    decode_resized,
    decode_rgb,
    load_image_bytes,
    upright_image,
)
from phrasebox.stages.images.faults import DecodeLimits
from tests.build.datasets import Json
from tests.build.records import image_bytes

LIMITS = DecodeLimits()
WHITE = (255, 255, 255)
GREY = (128, 128, 128)
RED = (255, 0, 0)
BLUE = (0, 0, 255)


def picture(height: int = 40, width: int = 60) -> NDArray[np.uint8]:
    """Smooth, and different in every corner and channel."""
    y, x = np.mgrid[0:height, 0:width]
    channels = [
        x * 255 / max(1, width - 1),
        y * 255 / max(1, height - 1),
        (x + y) * 255 / max(1, width + height - 2),
    ]
    return np.stack(channels, axis=-1).astype(np.uint8)


def turned(
    upright: NDArray[np.uint8], orientation: int, kind: str, mode: str = "RGB", **options: Any
) -> bytes:
    """A file whose pixels the EXIF orientation turns upright.

    EXIF 2.32, tag 274: where row 0 and column 0 of the stored image are in the upright one.
    """
    stored = upright.transpose(1, 0, 2) if orientation >= 5 else upright
    stored = stored[::-1] if orientation in (3, 4, 6, 7) else stored
    stored = stored[:, ::-1] if orientation in (2, 3, 7, 8) else stored
    exif = Image.Exif()
    exif[0x0112] = orientation
    return image_bytes(
        Image.fromarray(np.ascontiguousarray(stored)).convert(mode), kind, exif=exif, **options
    )


def fault(content: bytes, limits: DecodeLimits = LIMITS) -> str:
    with pytest.raises(RowFault) as caught:
        decode_rgb(content, limits)
    return str(caught.value.error)


KINDS: list[tuple[str, Json, int]] = [
    ("PNG", {}, 0), ("BMP", {}, 0), ("TIFF", {"compression": "tiff_lzw"}, 0), ("WEBP", {"quality": 90}, 12),
    ("JPEG", {"quality": 95}, 8), ("JPEG", {"quality": 95, "progressive": True}, 8), ("GIF", {}, 60),
]  # fmt: skip
"""Pillow's name, its options, and the difference to the original in grey levels."""


@pytest.mark.parametrize(("kind", "options", "tolerance"), KINDS)
def test_formats(kind: str, options: Json, tolerance: int) -> None:
    rgb = decode_rgb(image_bytes(Image.fromarray(picture()), kind, **options), LIMITS)
    assert rgb.shape == (40, 60, 3)
    assert rgb.dtype == np.uint8
    assert rgb.flags.writeable
    assert np.abs(rgb.astype(int) - picture().astype(int)).max() <= tolerance


def flat(mode: str, colour: Any) -> Image.Image:
    return Image.new(mode, (8, 6), colour)


def palette(colour: tuple[int, int, int]) -> Image.Image:
    image = Image.new("P", (8, 6), 1)
    image.putpalette([0, 0, 0, *colour])
    return image


def wide(values: list[list[float]], dtype: Any) -> Image.Image:
    return Image.fromarray(np.array(values, dtype))


@pytest.mark.parametrize(
    ("content", "colour"),
    [
        (image_bytes(flat("L", 128), "PNG"), GREY),
        (image_bytes(flat("RGBA", (0, 0, 0, 128)), "PNG"), (127, 127, 127)),
        (image_bytes(flat("RGBA", (0, 0, 255, 0)), "WEBP", lossless=True, exact=True), WHITE),
        (image_bytes(palette(BLUE), "PNG", transparency=b"\xff\x80"), (127, 127, 255)),
        (image_bytes(palette(BLUE), "GIF", transparency=1), WHITE),
        (image_bytes(flat("RGB", RED), "PNG", transparency=RED), WHITE),
        (image_bytes(flat("CMYK", (0, 255, 255, 0)), "JPEG", quality=100, subsampling=0), (255, 0, 0)),
        (image_bytes(flat("YCbCr", (76, 85, 255)), "TIFF"), (254, 0, 0)),
        (image_bytes(wide([[0x8000, 0x80FF] * 4] * 6, np.uint16), "PNG"), GREY),
        (image_bytes(wide([[0x80FF] * 8] * 6, np.uint16), "TIFF"), GREY),
    ],
)
def test_modes(content: bytes, colour: tuple[int, int, int]) -> None:
    rgb = decode_rgb(content, LIMITS)
    assert rgb.shape == (6, 8, 3)
    assert np.abs(rgb.astype(int) - colour).max() <= 2, rgb[0, 0]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation(kind: str, orientation: int) -> None:
    upright = picture(24, 40)
    options: Json = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    content = turned(upright, orientation, kind, **options)
    sizes: list[tuple[int, int]] = []

    def target(width: int, height: int) -> tuple[int, int]:
        sizes.append((width, height))
        return width, height

    for shrink_jpeg in (False, True):
        image = decode_resized(content, LIMITS, target, shrink_jpeg=shrink_jpeg)
        assert (image.width_px, image.height_px) == (40, 24)
        assert set(sizes) == {(40, 24)}
        assert image.rgb.shape == (24, 40, 3)
        assert np.abs(image.rgb.astype(int) - upright).max() <= 4


@pytest.mark.parametrize(("kind", "options"), [entry[:2] for entry in KINDS])
def test_truncation_is_a_fault_or_changes_nothing(kind: str, options: Json) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    content = image_bytes(Image.fromarray(noise), kind, **options)
    whole = decode_rgb(content, LIMITS)
    faults = 0
    for length in {
        *range(0, len(content), max(1, len(content) // 97)),
        *range(len(content) - 24, len(content)),
    }:
        try:
            rgb = decode_rgb(content[:length], LIMITS)
        except RowFault as error:
            assert error.error.reason == "bad_image"  # noqa: PT017
            faults += 1
        else:
            np.testing.assert_array_equal(rgb, whole, err_msg=f"{length} of {len(content)} bytes")
    assert faults >= 90


def test_limits_and_grey_values_of_32_bits() -> None:
    assert "bad_image: grey values of 32 bits" in fault(image_bytes(wide([[0, 1, 2]], np.float32), "TIFF"))
    content = image_bytes(Image.fromarray(picture(40, 60)), "PNG")
    assert decode_rgb(content, DecodeLimits(max_pixels=2400)).shape == (40, 60, 3)
    assert "60 x 40 pixels, the limit is 2399" in fault(content, DecodeLimits(max_pixels=2399))
    assert "bytes, the limit is 10" in fault(content, DecodeLimits(max_bytes=10))


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(640, 480), (200, 200), (1, 3000)])
def test_both_libraries_resize_by_the_same_filter(
    size: tuple[int, int], interpolation: Interpolation
) -> None:
    source = Image.fromarray(picture(*size[::-1]))
    exact, quick = (
        decode_resized(
            image_bytes(source, "PNG"),
            LIMITS,
            lambda *_: (224, 160),
            resize=library,
            interpolation=interpolation,
        ).rgb
        for library in ("pillow", "torch")
    )
    np.testing.assert_array_equal(exact, np.asarray(source.resize((224, 160), RESAMPLING[interpolation])))
    difference = np.abs(exact.astype(int) - quick)
    assert difference.max() <= 3
    assert (difference > 1).mean() < 0.01
    assert quick.flags.c_contiguous


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("size", [(150, 100), (601, 50), (24, 24)])
@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
def test_jpeg_is_decoded_smaller_where_less_is_wanted(
    mode: str, size: tuple[int, int], orientation: int
) -> None:
    """A wide picture with one dark quarter, which stays where it was."""
    upright = picture(403, 601)
    upright[200:, 300:] //= 4
    content = turned(upright, orientation, "JPEG", mode, quality=100, subsampling=0)
    exact, shrunk = (
        decode_resized(content, LIMITS, lambda *_: size, shrink_jpeg=on) for on in (False, True)
    )
    assert (shrunk.width_px, shrunk.height_px) == (601, 403)
    assert shrunk.rgb.shape == (size[1], size[0], 3)
    assert np.abs(shrunk.rgb.astype(int) - exact.rgb).mean() < 1
    assert np.array_equal(shrunk.rgb, exact.rgb) == (size[0] == 601), "only what is not needed is left out"


def test_the_last_pixels_of_a_smaller_jpeg_lie_partly_beyond_the_image() -> None:
    """Of 1793 pixels 225 are left, and an eighth of the last one shows the image."""
    pixels = np.zeros((1793, 1793, 3), np.uint8)
    pixels[1700:, 1700:] = 255
    content = image_bytes(Image.fromarray(pixels), "JPEG", quality=95)
    exact, shrunk = (
        decode_resized(content, LIMITS, lambda *_: (112, 112), shrink_jpeg=on) for on in (False, True)
    )
    assert np.abs(shrunk.rgb.astype(int) - exact.rgb).max() < 12


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_animations_show_their_first_picture(kind: str) -> None:
    frames = [Image.new("RGB", (8, 6), colour) for colour in (RED, BLUE, WHITE)]
    content = image_bytes(frames[0], kind, save_all=True, append_images=frames[1:])
    assert np.abs(decode_rgb(content, LIMITS).astype(int) - RED).max() <= 3


def test_pillows_log_of_damaged_tiffs_is_not_printed() -> None:
    """In a process without logging, as that of a run."""
    content = bytearray(image_bytes(Image.fromarray(picture()), "TIFF"))
    entry = content.index(struct.pack("<HHL", 277, 3, 1))  # samples per pixel
    content[entry + 8 : entry + 10] = struct.pack("<H", 9475)
    program = (
        "import sys\n"
        "from phrasebox.stages.images.decode import *\n"
        "from phrasebox.stages.contract.errors import RowFault\n"
        "try: decode_rgb(sys.stdin.buffer.read(), DecodeLimits())\n"
        "except RowFault as fault: print(fault.error.reason)"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, input=bytes(content), capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"bad_image\n", b"")


WARNS = image_bytes(palette(BLUE), "PNG", transparency=b"\xff\x80")
"""An image that Pillow decodes with a warning."""


def test_warnings_are_hidden_of_threads_that_decode_while_they_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where filters were set after the first decoding; what others warn of is theirs."""
    reached = threading.Event()
    go_on = threading.Event()
    load = PngImageFile.load

    def wait(image: PngImageFile) -> Any:
        reached.set()
        assert go_on.wait(60)
        warnings.warn("while decoding", stacklevel=1)
        return load(image)

    decode_rgb(WARNS, LIMITS)
    with warnings.catch_warnings(), ThreadPoolExecutor(1) as pool:
        warnings.simplefilter("error")
        monkeypatch.setattr(PngImageFile, "load", wait)
        decoding = pool.submit(decode_rgb, WARNS, LIMITS)
        assert reached.wait(60)
        with pytest.raises(UserWarning, match="of another thread"):
            warnings.warn("of another thread", stacklevel=1)
        go_on.set()
        assert decoding.result().shape[2] == 3
        with pytest.raises(UserWarning, match="after decoding"):
            pool.submit(warnings.warn, "after decoding").result()


SEEDS = [image_bytes(Image.fromarray(picture(17, 23)), kind, **options) for kind, options, _ in KINDS]
SEEDS += [
    WARNS,
    image_bytes(flat("CMYK", 0), "TIFF"),
    image_bytes(Image.fromarray(picture()), "TIFF", compression="jpeg"),
]


@settings(max_examples=200)
@given(st.data())
def test_damaged_images_are_pictures_or_faults(data: st.DataObject) -> None:
    content = bytearray(data.draw(st.sampled_from(SEEDS)))
    for _ in range(data.draw(st.integers(0, 12))):
        # Headers, where most can go wrong, more often than pixels.
        place = data.draw(st.integers(0, min(60, len(content) - 1)) | st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    length = data.draw(st.integers(0, len(content)) | st.just(len(content)))
    try:
        image = decode_resized(
            bytes(content[:length]), DecodeLimits(max_pixels=4_000_000), lambda *_: (8, 8)
        )
    except RowFault as error:
        assert error.error.reason in ("bad_image", "image_too_large")  # noqa: PT017
    else:
        assert image.rgb.shape == (8, 8, 3)


def image(**fields: Any) -> ImageRef:
    return ImageRef(file_name="a.jpg", **fields)


def test_loading(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    link = tmp_path / "link.jpg"
    path.write_bytes(b"0123456789")
    link.symlink_to(path)
    for fields, content in (
        ({"url": str(path)}, b"0123456789"),
        ({"url": str(path), "offset": 3, "size": 4}, b"3456"),
        ({"url": str(path), "offset": 3}, b"3456789"),
        ({"url": str(path), "offset": 3, "size": 0}, b""),
        ({"content": b"abc"}, b"abc"),
        ({"url": str(link)}, b"0123456789"),
    ):
        assert load_image_bytes(image(**fields), LIMITS) == content


def load_fault(limits: DecodeLimits = LIMITS, **fields: Any) -> str:
    with pytest.raises(RowFault) as caught:
        load_image_bytes(image(**fields), limits)
    return str(caught.value.error)


def test_what_cannot_be_loaded(tmp_path: Path) -> None:
    (tmp_path / "dangling").symlink_to(tmp_path / "none")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "ten").write_bytes(b"0123456789")
    for name, expected in {
        "none": "missing_image: 'a.jpg' does not exist below the image root",
        "ten/none": "missing_image: 'a.jpg' cannot be read: Not a directory",
        "": "missing_image: 'a.jpg' cannot be read: it is a folder",
        "dangling": "missing_image: 'a.jpg' is a link to a file that does not exist",
        "loop": "missing_image: 'a.jpg' cannot be read: Too many levels of symbolic links",
        "pipe": "missing_image: 'a.jpg' cannot be read: it is not a plain file",
        "n" * 300: "missing_image: 'a.jpg' cannot be read: File name too long",
        "a\0b": "bad_location: 'a.jpg' cannot be the name of a file",
    }.items():
        assert load_fault(url=f"{tmp_path}/{name}").startswith(expected)
    assert load_fault() == "missing_image: the row names no image"
    cut = load_fault(url=f"{tmp_path}/ten", offset=8, size=5)
    assert cut == "bad_image: 'a.jpg': the file holds only 2 of the image's 5 bytes"
    small = DecodeLimits(max_bytes=9)
    for fields in ({"url": f"{tmp_path}/ten"}, {"content": b"0123456789"}):
        assert load_fault(small, **fields).startswith("image_too_large: the file has 10 bytes")


def test_loading_behind_a_url(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(decode.time, "sleep", pauses.append)
    with fsspec.open("memory://images/a.jpg", "wb") as file:
        file.write(b"0123456789")
    assert load_image_bytes(image(url="memory://images/a.jpg"), LIMITS) == b"0123456789"
    assert load_image_bytes(image(url="memory://images/a.jpg", offset=3, size=2), LIMITS) == b"34"
    assert "does not exist" in load_fault(url="memory://images/b.jpg")
    assert "image_too_large" in load_fault(DecodeLimits(max_bytes=9), url="memory://images/a.jpg")
    assert pauses == []

    def unreachable(url: str) -> Any:
        raise ConnectionResetError("connection reset")

    monkeypatch.setattr(decode, "open_file", unreachable)
    expected = "missing_image: 'a.jpg' cannot be read: connection reset (3 tries)"
    assert load_fault(url="memory://images/a.jpg") == expected
    assert pauses == [0.5, 2.0]


@pytest.mark.parametrize(
    ("error", "tries"),
    [(httpx.ReadError("cut off"), 3), (SimpleNamespace(status=503), 3), (SimpleNamespace(status=404), 1)],
)
def test_what_servers_of_the_web_answer(error: Any, tries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """fsspec makes the same error of each answer; the libraries behind it raise some that are no OSError."""
    monkeypatch.setattr(decode.time, "sleep", lambda _: None)
    urls: list[str] = []

    class AnswerError(Exception):
        status = getattr(error, "status", None)

    def answer(url: str) -> Any:
        urls.append(url)
        if isinstance(error, Exception):
            raise error
        raise FileNotFoundError(url) from AnswerError()

    monkeypatch.setattr(decode, "open_file", answer)
    assert load_fault(url="https://example.org/a.jpg").startswith("missing_image: 'a.jpg' ")
    assert len(urls) == tries


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
def test_an_upright_image_stays_as_it_is(kind: str) -> None:
    content = image_bytes(Image.fromarray(picture()), kind)
    upright = upright_image(content, LIMITS)
    assert upright.content is content
    assert (upright.width_px, upright.height_px, upright.is_reencoded) == (60, 40, False)
    assert upright.extension == {"JPEG": "jpg", "TIFF": "tif"}.get(kind, kind.lower())


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", [2, 6, 7])
def test_a_turned_image_is_turned_for_good(kind: str, orientation: int) -> None:
    content = turned(picture(), orientation, kind)
    upright = upright_image(content, LIMITS)
    assert upright.is_reencoded
    assert upright.extension == ("jpg" if kind == "JPEG" else "png")
    expected = decode_rgb(content, LIMITS).astype(int)
    assert (upright.height_px, upright.width_px) == expected.shape[:2]
    with Image.open(io.BytesIO(upright.content)) as stored:
        assert stored.getexif().get(0x0112, 1) == 1
        difference = np.abs(np.asarray(stored.convert("RGB")).astype(int) - expected)
    assert difference.max() <= (0 if kind != "JPEG" else 12)
