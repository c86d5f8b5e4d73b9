from io import BytesIO
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from phrasebox.pipeline import pictures
from phrasebox.pipeline.pictures import (
    draw_regions,
    heat_map_overlay,
    heat_map_png,
    mask_path,
    regions_overlay,
    thumbnail,
)
from phrasebox.stages.contract.masks import encode_mask
from phrasebox.stages.images.faults import DecodeLimits
from tests.build.datasets import Json
from tests.build.records import image_bytes
from tests.stages.regions.cutting import mask_of

GREY = np.full((60, 80, 3), 128, np.uint8)


def heat_map(values: Any) -> NDArray[np.float32]:
    return np.array(values, np.float32)


def annotation(x: int, y: int, w: int, h: int, phrase: str = "dog") -> Json:
    mask = np.zeros((60, 80), bool)
    mask[y : y + h, x : x + w] = True
    rle = encode_mask(mask)
    coded = {"size": list(rle.size_hw), "counts": rle.counts}
    return {
        "bbox": [float(x), float(y), float(w), float(h)],
        "segmentation": coded,
        "phrase": phrase,
        "score": 0.5,
    }


@pytest.mark.parametrize("values", [[[0, 0], [0, 0]], [[3, 3], [3, 3]]], ids=["zero", "constant"])
def test_a_map_without_contrast_is_cold_everywhere(values: Any) -> None:
    overlay = heat_map_overlay(GREY, heat_map(values))
    assert (overlay == overlay[0, 0]).all()
    picture = Image.open(BytesIO(heat_map_png(heat_map(values))))
    assert picture.size == (512, 512)
    assert len(picture.getcolors()) == 1


def test_regions_are_drawn_and_any_caption_stands_below() -> None:
    before = GREY.copy()
    captions = ["two dogs", "", "line\nbreak\ttab", "Żółw 乌龟 🐢", "\ud800", "word " * 80, "x" * 300]
    picture = regions_overlay(GREY, [annotation(40, 30, 20, 20, "乌龟"), annotation(2, 2, 6, 50)], captions)
    assert np.array_equal(GREY, before)
    assert picture.shape[0] > 60
    assert picture.shape[1] == 80
    assert (picture[45, 40] != 128).any(), "the box"
    assert (picture[55, 70] == 128).all(), "outside"
    assert (picture[62:80].reshape(-1, 3).min(axis=0) < 60).all(), "ink"


def test_a_mask_is_an_outline() -> None:
    mask, inside = np.zeros((2, 60, 80), np.bool_)
    mask[30:60, 30:60] = inside[32:58, 32:58] = True
    picture = np.asarray(draw_regions(GREY, [mask], [(0, 0, 0, 0)], [""]))
    changed = (picture != GREY).any(axis=2)[25:]  # below the label
    assert np.array_equal(changed, (mask & ~inside)[25:]), (
        "two pixels wide, also at the border of the image"
    )


def test_labels_cover_no_other_where_there_is_room() -> None:
    paper = np.full((120, 200, 3), 128, np.uint8)
    nothing = np.zeros((120, 200), np.bool_)

    def ink(boxes: list[tuple[int, int, int, int]], labels: list[str]) -> int:
        drawn = np.asarray(draw_regions(paper, [nothing] * len(labels), boxes, labels))
        return int((drawn.astype(int).sum(axis=2) == 0).sum())

    labels = ["mmm 0.10", "mmm 0.20", "mmm 0.30"]
    separate = sum(ink([(50, 50, 40, 40)], [label]) for label in labels)
    assert separate > 0
    assert ink([(50, 50, 40, 40)] * 3, labels) == separate
    assert ink([(150, 0, 40, 40), (150, 110, 40, 10), (199, 119, 1, 1)], labels) == separate


def test_a_row_stands_side_by_side() -> None:
    both = pictures.join_pictures([GREY, GREY], ["one", "two"])
    assert both.shape[1] == 160
    assert both.shape[0] > 60
    uneven = pictures.join_pictures([GREY, GREY], ["one", "a phrase of more than one line"])
    assert uneven.shape[0] > both.shape[0]
    assert np.array_equal(uneven[: len(both), :80], both[:, :80])


Mask = NDArray[np.bool_]


def drawn(path: str, size_hw: tuple[int, int]) -> Mask:
    """The pixels in SVG path data by the rule "evenodd": OpenCV's, over all rings at once.

    At four times the size, looked at where the pixels' centres are: OpenCV draws the outline itself, too.
    """
    height, width = size_hw
    rings = []
    for ring in path.split("M")[1:]:
        assert ring.endswith("Z")
        corners = np.array(
            [[float(value) for value in corner.split(" ")] for corner in ring[:-1].split("L")]
        )
        assert (corners >= 0).all()
        assert (corners <= (width, height)).all()
        rings.append(np.rint(corners * 4).astype(np.int32))
    paper = np.zeros((height * 4 + 1, width * 4 + 1), np.uint8)
    cv2.fillPoly(paper, rings, 1)
    return paper[2::4, 2::4] > 0


SMALL = {
    "one pixel inside": mask_of("....", ".#..", "...."),
    "corners of the image": mask_of("#..#", "....", "#..#"),
    "an island in a hole": mask_of("#######", "#.....#", "#.###.#", "#.###.#", "#.....#", "#######"),
    "touching by a corner": mask_of("##..", "##..", "..##", "..##"),
    "a hole touching the outside by a corner": mask_of("###.", "#.#.", "###.", "...#"),
}


@pytest.mark.parametrize("name", SMALL)
def test_a_small_mask_is_drawn_exactly(name: str) -> None:
    mask = SMALL[name]
    assert np.array_equal(drawn(mask_path(encode_mask(mask)), mask.shape), mask)


def test_a_path_is_short_and_in_pixels() -> None:
    assert mask_path(encode_mask(mask_of("....", ".##.", "...."))) == "M1 1L1 2L3 2L3 1Z"
    assert mask_path(encode_mask(np.zeros((5, 4), np.bool_))) == ""
    far = np.zeros((2, 20_000), np.bool_)
    far[0, 12_345:12_347] = True
    assert mask_path(encode_mask(far)) == "M12345 0L12345 1L12347 1L12347 0Z"


def blob(rng: np.random.Generator, height: int, width: int, coarse: int) -> Mask:
    """Spots, some with holes, cut by the borders."""
    noise = rng.random((coarse, coarse)).astype(np.float32)
    return np.asarray(cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC) > 0.55)


def near_border(mask: Mask, px: int) -> Mask:
    """Pixels that lie at most so far from one of the other kind."""
    square = np.ones((2 * px + 1, 2 * px + 1), np.uint8)
    ones = mask.astype(np.uint8)
    return np.asarray(cv2.dilate(ones, square) != cv2.erode(ones, square))


def test_outlines_are_at_most_a_pixel_beside() -> None:
    mask = blob(np.random.default_rng(0), 500, 300, coarse=9)
    path = mask_path(encode_mask(mask))
    differs = drawn(path, mask.shape) != mask
    assert not (differs & ~near_border(mask, 1)).any()
    assert differs.mean() < 0.01
    assert path.count("M") > 1


@pytest.mark.parametrize(("height", "width"), [(1300, 1900), (2600, 90)])
def test_large_masks_are_averaged_down(height: int, width: int) -> None:
    """The outline is at most two pixels of a grid of 100 beside."""
    mask = blob(np.random.default_rng(5), height, width, coarse=8)
    mask[0, 0] = mask[-1, -1] = True  # so that its box is the image
    step = int(np.ceil(max(height, width) / 100))
    path = mask_path(encode_mask(mask), 100)
    assert not ((drawn(path, mask.shape) != mask) & ~near_border(mask, 2 * step + 1)).any()
    assert len(path) < 20_000


def test_a_thin_line_in_a_large_mask_is_drawn() -> None:
    line = np.zeros((2000, 2000), np.bool_)
    cv2.line(line.view(np.uint8), (10, 5), (1900, 1990), 1)
    assert drawn(mask_path(encode_mask(line)), line.shape).any()


LIMITS = DecodeLimits(max_pixels=200_000)


def encoded(image: Image.Image, kind: str = "PNG", orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return image_bytes(image, kind, exif=exif)


def shown(content: bytes) -> Image.Image:
    image = Image.open(BytesIO(content))
    assert image.format == "JPEG"
    assert image.getexif().get(0x0112, 1) == 1
    return image.convert("RGB")


@pytest.mark.parametrize(
    ("kind", "orientation", "red_at"), [("JPEG", 1, (20, 10)), ("PNG", 3, (180, 90)), ("JPEG", 6, (90, 20))]
)
def test_thumbnails_are_upright(kind: str, orientation: int, red_at: tuple[int, int]) -> None:
    """And not larger than the image."""
    image = Image.new("RGB", (200, 100), "white")
    image.paste((255, 0, 0), (0, 0, 50, 30))
    content = encoded(image, kind, orientation)
    assert max(shown(thumbnail(content, 5000, LIMITS)).size) == 200
    small = shown(thumbnail(content, 100, LIMITS))
    assert small.size == ((50, 100) if orientation >= 5 else (100, 50))
    red, green, _ = small.getpixel((red_at[0] // 2, red_at[1] // 2))
    assert red > 230
    assert green < 60


def test_a_heat_map_as_a_picture() -> None:
    """To lay over the image: red and less clear where it is hot, blue where it is cold, stretched by the browser."""
    picture = Image.open(BytesIO(heat_map_png(heat_map([[2, 2, 2, 9], [2, 2, 2, 9]]), side_px=64)))
    assert (picture.format, picture.mode, picture.size) == ("PNG", "RGBA", (64, 32))
    hot, cold = (picture.getpixel((x, 16)) for x in (62, 1))
    assert hot[0] > hot[2] + 50
    assert cold[2] >= cold[0]
    assert (np.diff(np.asarray(picture)[16, :, 3].astype(int)) >= 0).all(), "between them opacity rises"
