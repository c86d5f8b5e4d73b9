"""Outlines by a segmenter: which mask is taken, what is believed of it, and the stage around a real SAM."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from phrasebox.stages.contract.errors import ResourceError
from phrasebox.stages.contract.geometry import cell_to_px, xyxy_to_xywh
from phrasebox.stages.contract.masks import decode_mask, rle_box_xywh_px
from phrasebox.stages.contract.records import HeatMap, ImageRef, Record
from phrasebox.stages.model.segmenter import EncoderInput, Segmenter
from phrasebox.stages.regions.config import RegionsConfig
from phrasebox.stages.regions.cut import Cutter
from phrasebox.stages.regions.outlines import Outliner
from phrasebox.stages.regions.stage import RegionsStage
from phrasebox.stages.scores.learned_box import FACTS, BoxContext
from phrasebox.stages.scores.score import Evidence
from tests.build.datasets import Json
from tests.build.records import image_bytes
from tests.messages import expect_error
from tests.stages.model.segmenters import save_segmenter
from tests.stages.regions.cutting import fit_that, object_map, share
from tests.stages.regions.test_refine import SIDE, SQUARE, blurry, picture
from tests.stages.regions.test_stage import record as record_of_maps

CELLS = 64  # Of a mask, a side

TIGHT: Json = {"rule": "otsu", "smooth_patches": 0.5}  # A contour that the whole image is far larger than


@pytest.fixture(scope="module")
def sam(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("sam")
    save_segmenter("sam2", folder)
    return str(folder)


def config_of(sam: str, **settings: Any) -> RegionsConfig:
    sam_settings = {"model": sam, "batch_size": 2}
    return RegionsConfig(**TIGHT, refine="sam", sam=sam_settings, **settings)


def logits_of(*parts: tuple[slice, slice]) -> np.ndarray:
    """Logits of a mask of some parts of the 200 px image, on its cells."""
    at = [int(cell_to_px(float(cell), side_px=SIDE, cells=CELLS)) for cell in range(CELLS)]
    full = np.full((SIDE, SIDE), -4.0, np.float32)
    for part in parts:
        full[part] = 4.0
    return full[np.ix_(at, at)]


IMAGE = EncoderInput(
    pixels=torch.zeros(3, SIDE, SIDE), size_hw=(SIDE, SIDE), content_hw=(SIDE, SIDE), is_padded=False
)
WHOLE = (slice(0, SIDE), slice(0, SIDE))
SPOT = (slice(85, 95), slice(105, 115))
BESIDE = (slice(10, 64), slice(10, 64))
DOT = (slice(150, 154), slice(180, 184))


def outlined(
    sam: str,
    *masks: Sequence[np.ndarray],
    squares: Sequence[tuple[slice, slice]] = (SQUARE,),
    **settings: Any,
) -> list[tuple[str, str | None, np.ndarray, Evidence]]:
    """What the parts of a map become where the segmenter offers these masks for each."""
    outliner = Outliner(Cutter(config_of(sam, **settings)), "cpu")
    [contours] = outliner._contours([object_map(blurry(*squares), (SIDE, SIDE), len(squares))])
    assert len(contours.pieces) == len(squares)
    regions = outliner._outline(contours, IMAGE, [np.stack(mask) for mask in masks])
    for painted, _ in regions:
        assert painted.box_xywh_px == rle_box_xywh_px(painted.mask)
    return [
        (painted.refined, painted.fallback, decode_mask(painted.mask), evidence)
        for painted, evidence in regions
    ]


def test_the_learned_box_is_the_prompt(sam: str) -> None:
    """A network that makes boxes larger; the contour that stays keeps the learned box."""
    boxes = {}
    for name, box_fit in (("cut", None), ("learned", fit_that((0.0, 0.0, 2.0, 2.0)))):
        outliner = Outliner(Cutter(config_of(sam), box_fit=box_fit), "cpu")
        square = object_map(blurry(SQUARE), (SIDE, SIDE), 1)
        square = replace(square, context=BoxContext(np.zeros(len(FACTS)), np.zeros(4)))
        [contours] = outliner._contours([square])
        x0, y0, x1, y1 = outliner._prompt(contours.cut, *contours.pieces[0]).box_xyxy_px
        [(region, _)] = outliner._outline(contours, IMAGE, [None])
        assert (region.refined, region.fallback) == ("none", "image")
        assert region.box_xywh_px == xyxy_to_xywh((x0, y0, x1, y1))
        boxes[name] = (x1 - x0) * (y1 - y0)
    assert boxes["learned"] > 2 * boxes["cut"]


def test_the_mask_that_holds_most_heat_for_its_area_is_taken(sam: str) -> None:
    """Among the whole image, a spot in the thing, the thing, and something beside it; in any order."""
    masks = [logits_of(part) for part in (WHOLE, SPOT, SQUARE, BESIDE)]
    for order in (masks, masks[::-1]):
        [(refined, fallback, mask, evidence)] = outlined(sam, order)
        assert (refined, fallback) == ("sam", None)
        assert share(mask, SQUARE) > 0.9
        assert evidence.area == pytest.approx(mask.mean(), rel=0.05), "the score is that of the mask's heat"


@pytest.mark.parametrize(
    ("masks", "reason"),
    [
        ([np.full((CELLS, CELLS), np.nan, np.float32)], "not_finite"),
        ([logits_of()], "empty"),
        ([logits_of(BESIDE)], "beside"),
        ([logits_of(WHOLE)], "size"),
        ([logits_of(), logits_of(WHOLE), logits_of(BESIDE)], "size"),
    ],
)
def test_where_no_mask_will_do_the_contour_stays_and_says_why(
    masks: list[np.ndarray], reason: str, sam: str
) -> None:
    [(refined, fallback, mask, evidence)] = outlined(sam, masks)
    ((contour, expected),) = RegionsStage(RegionsConfig(**TIGHT)).regions_of(record(0))[0]
    assert (refined, fallback) == ("none", reason)
    assert np.array_equal(mask, decode_mask(contour.mask))
    assert evidence == replace(expected, similarity=evidence.similarity)


def test_islands_do_not_stretch_the_box(sam: str) -> None:
    [(_, _, mask, _)] = outlined(sam, [logits_of(SQUARE, DOT)])
    assert not mask[DOT].any()
    assert share(mask, SQUARE) > 0.9


TWO = ((slice(20, 80), slice(20, 80)), (slice(120, 180), slice(120, 180)))


def test_parts_of_one_map_do_not_overlap(sam: str) -> None:
    large = (slice(60, 180), slice(60, 180))
    first, second = outlined(sam, [logits_of(TWO[0])], [logits_of(large)], squares=TWO)
    assert not (first[2] & second[2]).any()
    assert share(second[2], large) > 0.9


def test_two_parts_with_the_same_mask_are_one_region(sam: str) -> None:
    both = logits_of(*TWO)
    regions = outlined(sam, [both], [both], squares=TWO)
    assert [refined for refined, *_ in regions] == ["sam"]
    [(*_, mask, _)] = regions
    assert mask[TWO[0]].any()
    assert mask[TWO[1]].any()


def record(number: int, *, content: bytes | None = None) -> Record:
    if content is None:
        content = image_bytes(Image.fromarray(picture(SQUARE, noise=40, seed=number)))
    made = record_of_maps(blurry(SQUARE, shift=3 * number), width_px=SIDE, height_px=SIDE)
    image = ImageRef(content=content)
    return replace(made, sample=replace(made.sample, sample_id=str(number), image=image), pixels=None)


@pytest.fixture
def stage(sam: str) -> Iterator[RegionsStage]:
    ready = RegionsStage(config_of(sam))
    ready.setup()
    yield ready
    ready.teardown()


def test_a_batch_is_what_its_records_are_alone(stage: RegionsStage) -> None:
    """With one that has no map to draw, and one whose image is gone since its heat maps were made."""
    records = [record(number) for number in range(5)]
    records[1] = replace(records[1], phrases=(), heat_maps=())
    records[3] = record(3, content=b"no image")
    together = stage.process(records)
    assert together == [stage.process([single])[0] for single in records]
    assert [len(answer.regions) for answer in together] == [1, 0, 1, 1, 1]
    contour = RegionsStage(RegionsConfig(**TIGHT)).process([records[3]])[0].regions[0]
    assert together[3].regions[0] == replace(contour, fallback="image")
    for answer in (together[0], together[2], together[4]):
        [region] = answer.regions
        assert (region.refined == "sam") == (region.fallback is None)


def test_the_prompt_is_where_the_heat_is(sam: str) -> None:
    outliner = Outliner(Cutter(config_of(sam)), "cpu")
    heat_map = HeatMap(text="x", values=np.zeros((10, 20), np.float32), similarity=0.3)
    heat_map.values[2:6, 12:16] = 0.6
    heat_map.values[4, 14] = 1.0
    [contours] = outliner._contours([object_map(heat_map, (100, 400), 1)])
    hint = outliner._prompt(contours.cut, *contours.pieces[0])
    assert hint.point_xy_px == pytest.approx((290, 45), abs=12)
    assert hint.box_xyxy_px == pytest.approx((240, 20, 320, 60), abs=25)


def test_a_full_gpu_gets_half_as_many_images(stage: RegionsStage, monkeypatch, caplog) -> None:
    records = [record(number) for number in range(4)]
    encode = Segmenter.encode
    sizes = []
    expected = stage.process(records)

    def narrow(self: Segmenter, images: Sequence[EncoderInput]) -> Json:
        sizes.append(len(images))
        if len(images) > most:
            raise torch.OutOfMemoryError("CUDA out of memory.\nGPU 0")
        return encode(self, images)

    monkeypatch.setattr(Segmenter, "encode", narrow)
    most = 1
    assert stage.process(records) == expected
    assert sizes == [2, 1, 1, 1, 1]
    assert "going on with 1 images at a time in the segmenter" in caplog.text
    most = 0
    with expect_error(ResourceError):
        stage.process(records)
