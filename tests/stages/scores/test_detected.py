"""The evidence of a detector's boxes by hand, and what a calibration makes of them."""

import math
from dataclasses import replace
from typing import Any

import pytest

from phrasebox.stages.contract.masks import encode_box
from phrasebox.stages.contract.records import Absent, Phrase, Record, Region, Sample
from phrasebox.stages.regions.config import RegionsConfig
from phrasebox.stages.scores.detected import DetectorPresence, boxes_of
from phrasebox.stages.scores.score import Calibration
from phrasebox.stages.sources.source_stage import SourceRegionsStage
from tests.build.datasets import Json

SIZE_HW = (40, 80)
DOGS = Phrase(text="two dogs", caption_index=0, start=0, end=8, head="dog", plural=True)
CAT = Phrase(text="cat", caption_index=0, start=15, end=18, head="cat")


def region(score: float, box: tuple[int, int, int, int]) -> Region:
    x0, y0, x1, y1 = box
    shape: Any = {"box_xywh_px": (x0, y0, x1 - x0, y1 - y0), "area_px": (x1 - x0) * (y1 - y0)}
    return Region(phrase_index=0, mask=encode_box(box, SIZE_HW), score=score, similarity=0.0, **shape)


RECORD = replace(
    Record.start(Sample(sample_id="1", source="1", captions=("two dogs and a cat",))),
    width_px=SIZE_HW[1],
    height_px=SIZE_HW[0],
    phrases=(DOGS, CAT),
    regions=(region(0.5, (0, 0, 40, 20)), region(0.2, (0, 20, 80, 40))),
)


def regression(**weight: float) -> Json:
    return {"weight": weight, "mean": dict.fromkeys(weight, 0.0), "scale": dict.fromkeys(weight, 1.0)}


def calibration_of(presence: DetectorPresence | None = None, **weight: float) -> Calibration:
    return Calibration(bias=0.0, **regression(**weight), made_with={}, made_from={}, presence=presence)


def presence_of(bias: float, **weight: float) -> DetectorPresence:
    return DetectorPresence(bias=bias, **regression(**weight), absent_share=0.5)


def test_features_by_hand() -> None:
    (first, second), no_boxes = boxes_of(RECORD)
    assert no_boxes == []
    quarter = math.log(0.25)
    expected = {
        "log_odds": 0.0,
        "log_area": quarter,
        "log_area_squared": quarter**2,
        "rank": 0.0,
        "plural": 1.0,
    }
    assert first[1].features == pytest.approx(expected)
    assert second[1].features["log_odds"] == pytest.approx(math.log(0.25))
    assert second[1].features["rank"] == 1.0
    named = replace(RECORD, regions=(replace(RECORD.regions[0], similarity=0.25),))
    (with_cosine,), _ = boxes_of(named)
    assert with_cosine[1].features == pytest.approx({**expected, "similarity": 0.25})
    assert replace(first[1], score=1.0).log_odds == pytest.approx(-replace(first[1], score=0.0).log_odds)


def test_regions_of_a_phrase_are_in_the_order_of_their_probabilities() -> None:
    [linked] = SourceRegionsStage(RegionsConfig(), calibration_of(log_area=1.0)).process([RECORD])
    assert [region.score for region in linked.regions] == pytest.approx([1 / 3, 0.2], abs=1e-6)
    assert [region.area_px for region in linked.regions] == [1600, 800]


@pytest.mark.parametrize(
    ("min_presence", "absent"), [(0.5, ["cat"]), (0.99, ["two dogs", "cat"]), (None, [])]
)
def test_phrases_are_absent_whose_best_box_says_so(min_presence: float | None, absent: list[str]) -> None:
    """Half of the phrases are expected to be absent, as in the fit. Odds: 3 with the box, 1 : 3 without."""
    presence = presence_of(-math.log(3), has_box=2 * math.log(3))
    config = RegionsConfig(absent_share=0.5, min_presence=min_presence)
    [linked] = SourceRegionsStage(config, calibration_of(presence)).process([RECORD])
    assert [RECORD.phrases[entry.phrase_index].text for entry in linked.absent] == absent
    scores = [] if "two dogs" in absent else [0.375, 0.15]
    assert [region.score for region in linked.regions] == pytest.approx(scores), (
        "the detector's, times presence"
    )
    assert Absent(phrase_index=1, presence=0.25, similarity=0.0) in linked.absent or min_presence is None


def test_what_phrases_say_of_their_caption() -> None:
    """Odds of 3 with a box, and of 1 : 3 without."""
    presence = presence_of(-math.log(3), has_box=2 * math.log(3))
    evidence = SourceRegionsStage(RegionsConfig(), calibration_of(presence)).caption_log_ratios(RECORD)
    with_box, without = ((0.95 * r + 0.05) / (0.3 * r + 0.7) for r in (3, 1 / 3))
    assert evidence == {0: pytest.approx(math.log(with_box * without), abs=1e-5)}
    assert SourceRegionsStage(RegionsConfig(), calibration_of()).caption_log_ratios(RECORD) == {}
