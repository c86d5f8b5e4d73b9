import pickle
from dataclasses import replace

import cv2
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from phrasebox.stages.contract.errors import RowError
from phrasebox.stages.contract.masks import decode_mask, mask_box_xywh_px
from phrasebox.stages.contract.records import HeatMap, Phrase, Pixels, Record, Region, Sample
from phrasebox.stages.regions.config import RegionsConfig
from phrasebox.stages.regions.stage import RegionsStage
from tests.build.cases import cases
from tests.stages.regions.cutting import regions_of as regions_of_map

# Boxes by hand need the plain interpolated map: no blur.
FIXED = RegionsConfig(
    rule="fixed", threshold=0.5, min_area_share=0.0, min_area_px=1, smooth_patches=0.0, refine="none"
)


def heat_map(values: object, text: str = "dog", similarity: float = 0.25, fault: str = "") -> HeatMap:
    return HeatMap(text=text, values=np.array(values, dtype=np.float32), similarity=similarity, fault=fault)


def spots(shape: tuple[int, int], **cells: float) -> np.ndarray:
    """A cold map with hot cells: r1c2=1.0 is row 1, column 2."""
    values = np.zeros(shape, dtype=np.float32)
    for name, value in cells.items():
        row, column = name[1:].split("c")
        values[int(row), int(column)] = value
    return values


def phrase(text: str = "dog", *, plural: bool = False, start: int = 0) -> Phrase:
    return Phrase(text=text, caption_index=0, start=start, end=start + len(text), head=text, plural=plural)


def record(
    *maps: HeatMap, phrases: tuple[Phrase, ...] | None = None, width_px: int = 40, height_px: int = 40
) -> Record:
    return Record(
        sample=Sample(sample_id="a", source="captions.jsonl:1", captions=("a dog",)),
        width_px=width_px,
        height_px=height_px,
        phrases=tuple(phrase(each.text) for each in maps) if phrases is None else phrases,
        pixels=Pixels(rgb=np.zeros((8, 8, 3), dtype=np.uint8)),
        heat_maps=maps,
    )


def regions_of(record: Record, config: RegionsConfig = FIXED) -> tuple[Region, ...]:
    (answer,) = RegionsStage(config).process([record])
    return answer.regions


def two_captions(config: RegionsConfig, *maps: HeatMap) -> tuple[Region, ...]:
    """The regions of "a boy" and "a child", each alone in its caption."""
    boy, child = (
        replace(phrase(text, start=2), caption_index=n) for n, text in enumerate(("boy", "child"))
    )
    scene = record(*maps, phrases=(boy, child), width_px=80)
    return regions_of(replace(scene, sample=replace(scene.sample, captions=("a boy", "a child"))), config)


def test_phrases_of_one_thing_share_the_region_of_their_mean_map():
    maps = (
        heat_map(spots((4, 8), r1c1=1.0, r1c5=0.8), "boy", 0.3),
        heat_map(spots((4, 8), r1c5=5.0, r3c0=1.0), "child", 0.1),
    )
    apart = two_captions(FIXED.model_copy(update={"group": "none"}), *maps)
    assert [(region.group, region.box_xywh_px[0]) for region in apart] == [(None, 10), (None, 50)]
    linked = two_captions(FIXED.model_copy(update={"group": "phrases"}), *maps)
    assert linked == tuple(replace(region, group=0) for region in apart)
    shared = two_captions(FIXED, *maps)
    shares = [(region.group, region.box_xywh_px[0], region.similarity) for region in shared]
    assert shares == [(0, 50, 0.3), (0, 50, 0.1)]
    assert shared[0].mask == shared[1].mask
    swapped = two_captions(FIXED, *(replace(each, values=each.values * 7 + 3) for each in maps))
    assert swapped == shared  # each map counts alike, whatever its scale


def test_a_map_without_heat_neither_counts_nor_gets_the_region_of_its_thing():
    maps = (
        heat_map(spots((4, 8), r1c1=1.0), "boy", 0.3),
        heat_map(np.zeros((4, 8)), "child", 0.1, "empty"),
    )
    (region,) = two_captions(FIXED, *maps)
    assert (region.phrase_index, region.box_xywh_px[0], region.group) == (0, 10, 0)


# Between cell centres 10 px apart a spot falls off as (1 - |dx| / 10)(1 - |dy| / 10). Above one half
# lie, for |dy| = .5, 1.5, 2.5, 3.5, 4.5 px: |dx| < 4.74, 4.12, 3.33, 2.31, 0.91 px, so 5, 4, 3, 2, 1
# pixel centres .5, 1.5, ... on each side.
@cases(
    ("values", "box", "area"),
    {
        "inner cell": (spots((4, 4), r1c2=1.0), (20, 10, 10, 10), 4 * 15),
        # 5 px of full heat towards the corner, then .95, .85, .75, .65, .55
        "top left": (spots((4, 4), r0c0=1.0), (0, 0, 10, 10), 50 + 10 + 9 + 8 + 7 + 6),
        # at the upper edge: on each side 5 px wide over 5 rows, then 5, 4, 3, 2, 1
        "upper edge": (spots((4, 4), r0c2=1.0), (20, 0, 10, 10), 2 * (5 * 5 + 15)),
        # the bilinear hump between two equal cells is flat: 10 px more, 5 px to each side
        "two cells": (spots((4, 4), r1c1=1.0, r1c2=1.0), (10, 10, 20, 10), 4 * 15 + 10 * 10),
    },
)
def test_box_and_area_by_hand(values, box, area):
    (region,) = regions_of(record(heat_map(values)))
    assert region.box_xywh_px == box
    assert region.area_px == area
    assert decode_mask(region.mask).sum() == area


# the second spot: .8 (1 - |dx| / 10)(1 - |dy| / 10) > .5, for |dy| = .5 |dx| < 3.42: 3 px on each side of 55
TWO = spots((4, 8), r1c1=1.0, r1c5=0.8, r3c7=0.2)


@cases(
    ("plural", "change", "lefts"),
    {
        "singular: the best": (False, {}, [10]),
        "plural: both": (True, {}, [10, 52]),
        "plural, one allowed": (True, {"max_regions_plural": 1}, [10]),
        "the second falls behind": (True, {"keep_share": 0.9}, [10]),
        "the second is too small in pixels": (True, {"min_area_px": 40}, [10]),
        "nothing lies above the threshold": (True, {"threshold": 1.0}, []),
    },
)
def test_singular_and_plural(plural, change, lefts):
    config = FIXED.model_copy(update=change)
    regions = regions_of(record(heat_map(TWO), phrases=(phrase(plural=plural),), width_px=80), config)
    assert [region.box_xywh_px[0] for region in regions] == lefts


@cases(
    "one_map",
    {
        "fault with values": heat_map(np.eye(4), fault="not_finite"),
        "zeros": heat_map(np.zeros((4, 4))),
        "nan": heat_map([[np.nan, 1.0]]),
        "similarity nan": heat_map([[0.0, 1.0]], similarity=float("nan")),
        "one cell": heat_map([[1.0]]),
    },
)
def test_no_region_where_there_is_nothing_to_see(one_map):
    other = heat_map(spots((4, 4), r1c2=1.0), "cat")
    regions = regions_of(record(one_map, other), FIXED.model_copy(update={"smooth_patches": 0.7}))
    assert [region.phrase_index for region in regions] == [1]


def test_pixels_are_taken_away_and_errors_pass_through_untouched():
    good = record(heat_map(TWO), width_px=80)
    error = RowError(reason="bad_image", detail="not an image")
    failed = replace(good, error=error, width_px=0, height_px=0)
    answers = RegionsStage(FIXED).process([failed, good, failed])
    assert answers[0] is answers[2] is failed
    assert answers[1].regions
    assert answers[1] == replace(good, regions=answers[1].regions, pixels=None)


def test_last_bits_of_the_map_do_not_matter():
    config = RegionsConfig(refine="none")
    rng = np.random.default_rng(0)
    for _ in range(100):
        values = 3e-4 * np.maximum(rng.normal(-0.5, 1, (14, 14)), 0)
        plain, noisy = (heat_map(values * (1 + rng.uniform(-1e-7, 1e-7, values.shape))) for _ in range(2))
        assert regions_of_map(plain, (480, 640), 3, config) == regions_of_map(noisy, (480, 640), 3, config)


def test_one_thread_between_setup_and_teardown_and_the_stage_travels():
    threads = cv2.getNumThreads()
    stage = pickle.loads(pickle.dumps(RegionsStage(RegionsConfig())))
    stage.setup()
    assert cv2.getNumThreads() == 1
    stage.teardown()
    assert cv2.getNumThreads() == threads


grids = st.tuples(st.integers(1, 8), st.integers(1, 8))
sides = st.integers(1, 60)
configs = st.builds(
    RegionsConfig,
    rule=st.sampled_from(["mean", "otsu", "fixed"]),
    threshold=st.floats(0, 1),
    smooth_patches=st.sampled_from([0.0, 0.7]),
    min_area_share=st.sampled_from([0.0, 0.01]),
    min_area_px=st.sampled_from([1, 16]),
    keep_share=st.floats(0, 1),
    max_regions_plural=st.integers(1, 10),
)


@given(grids, sides, sides, st.integers(0, 2**32 - 1), configs)
def test_regions_of_any_map_are_whole(grid_hw, width_px, height_px, seed, config):
    values = np.maximum(np.random.default_rng(seed).normal(0, 1, grid_hw), 0)
    scene = record(heat_map(values), phrases=(phrase(plural=True),), width_px=width_px, height_px=height_px)
    regions = regions_of(scene, config)
    assert len(regions) <= config.max_regions_plural
    covered = np.zeros((height_px, width_px), dtype=int)
    for region in regions:
        mask = decode_mask(region.mask)
        assert region.area_px == mask.sum() >= config.min_area_px
        assert region.box_xywh_px == mask_box_xywh_px(mask)
        assert 0.0 <= region.score <= 1.0
        covered += mask
    assert covered.max(initial=0) <= 1
