"""The learned rule where maps are cut: what it sees of each cut, and what it then chooses."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.evaluate.calibrate import SeenThing, UsualSizes, fit_cut
from stages.contract.levels import LEVELS, quantise
from stages.contract.records import HeatMap, Phrase, Record, Sample
from stages.regions.config import RegionsConfig
from stages.regions.cut import MapToCut, cut_maps
from stages.regions.fitted import FEATURES, SHARES, FittedCut, cut_features
from stages.regions.stage import RegionsStage
from stages.regions.thresholds import cut, fixed_cut, mean_cut


def chooses(**weight: float) -> FittedCut:
    """A rule that weighs some features as they are."""
    return FittedCut(
        weight={name: weight.get(name, 0.0) for name in FEATURES},
        mean=dict.fromkeys(FEATURES, 0.0),
        scale=dict.fromkeys(FEATURES, 1.0),
        usual={"field": 1.5, "hat": -2.0},
    )


def sizes_of(maps: NDArray[np.uint8]) -> list[float]:
    """A usual size for each map."""
    return np.linspace(-2.0, 1.0, len(maps)).tolist()


def random_maps(count: int, seed: int = 0) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    values = cv2.GaussianBlur(rng.random((12, 9, count), dtype=np.float32), (0, 0), 1.3)
    levels = [quantise(np.ascontiguousarray(values[..., number])) for number in range(count)]
    return np.stack([each for each in levels if each is not None])


def features_by_hand(levels: NDArray[np.uint8], share: float, usual: float) -> dict[str, float]:
    """The features of one cut of one map, one part after the other."""
    inside = (levels > fixed_cut(share)).astype(np.uint8)
    count, labels = cv2.connectedComponents(inside, connectivity=8)
    parts = [labels == label for label in range(1, count)]
    main = max(parts, key=lambda part: int(levels[part].sum()))
    rows, columns = np.nonzero(main)
    box = (np.ptp(rows) + 1) * (np.ptp(columns) + 1) / levels.size
    area, heat, total = main.mean(), levels[main].sum() / LEVELS, levels.sum() / LEVELS
    hot, cold = heat / main.sum(), (total - heat) / (levels.size - main.sum())
    energy = heat / total
    log_box = np.log(box)
    return {
        "share": share,
        "share_squared": share**2,
        "energy": energy,
        "energy_squared": energy**2,
        "mean_inside": hot,
        "mean_outside": cold,
        "log_area": np.log(area),
        "log_area_squared": np.log(area) ** 2,
        "log_box_area": log_box,
        "log_box_area_squared": log_box**2,
        "outside_to_inside": cold / hot,
        "outside_to_inside_squared": (cold / hot) ** 2,
        "share_by_box_area": share * log_box,
        "energy_by_box_area": energy * log_box,
        "mean_inside_by_box_area": hot * log_box,
        "usual_by_box_area": usual * log_box,
    }


def test_features_are_those_of_the_part_with_most_heat_of_each_cut() -> None:
    maps = random_maps(6)
    sizes = sizes_of(maps)
    found = cut_features(maps, sizes)
    assert found.shape == (6, len(SHARES), len(FEATURES))
    for levels, usual, of_map in zip(maps, sizes, found, strict=True):
        for share, features in zip(SHARES, of_map, strict=True):
            expected = features_by_hand(levels, share, usual)
            assert dict(zip(FEATURES, features, strict=True)) == pytest.approx(expected)


def test_maps_together_have_the_features_of_each_alone() -> None:
    maps = random_maps(8)
    sizes = sizes_of(maps)
    alone = [cut_features(levels[None], [usual]) for levels, usual in zip(maps, sizes, strict=True)]
    assert np.array_equal(cut_features(maps, sizes), np.concatenate(alone))


def test_parts_at_the_edges_of_two_maps_do_not_meet() -> None:
    below, above = np.zeros((4, 5), np.uint8), np.zeros((4, 5), np.uint8)
    below[3], above[0] = LEVELS, LEVELS
    area = cut_features(np.stack([below, above]), [0.0, 0.0])[..., FEATURES.index("log_area")]
    assert np.allclose(area, np.log(1 / 4))


def test_a_cut_that_nothing_lies_above_is_not_taken() -> None:
    """As where the highest sample of an interpolated map is not its highest cell."""
    levels = np.full((1, 3, 3), 40, np.uint8)
    levels[0, 1, 1] = 120
    found = cut_features(levels, [0.0])
    assert np.isnan(found[0, SHARES.index(0.5) :]).all()
    assert np.isfinite(found[0, : SHARES.index(0.5)]).all()
    assert chooses(share=1.0)(levels, [0.0]) == [fixed_cut(0.4)]


def test_the_cut_of_the_highest_worth_is_taken_and_the_lowest_of_equals() -> None:
    maps = random_maps(3)
    assert chooses(share=1.0)(maps, [0.0] * 3) == [fixed_cut(SHARES[-1])] * 3
    assert chooses(share=-1.0)(maps, [0.0] * 3) == [fixed_cut(SHARES[0])] * 3
    assert chooses(share=0.8, share_squared=-1.0)(maps, [0.0] * 3) == [fixed_cut(0.4)] * 3
    assert chooses()(maps, [0.0] * 3) == [fixed_cut(SHARES[0])] * 3


def test_means_and_scales_do_not_matter_to_the_choice_beside_their_weights() -> None:
    rule = FittedCut(
        weight={name: 0.3 * (number % 3 - 1) for number, name in enumerate(FEATURES)},
        mean=dict.fromkeys(FEATURES, 0.25),
        scale=dict.fromkeys(FEATURES, 2.0),
        usual={"dog": 0.5},
    )
    same = chooses(**{name: weight / 2.0 for name, weight in rule.weight.items()})
    maps = random_maps(20)
    assert rule(maps, sizes_of(maps)) == same(maps, sizes_of(maps))
    assert FittedCut.from_plain(rule.plain()) == rule


def test_the_rule_without_weights_is_the_mean() -> None:
    maps = random_maps(4)
    assert cut([*maps], "fitted", share=0.5, quantile=0.5, fitted=None, usual=[0.0] * 4) == mean_cut(maps)


def test_regions_are_cut_where_the_rule_says() -> None:
    levels = random_maps(2)[0]
    each = MapToCut(
        heat_map=HeatMap(text="a", values=levels.astype(np.float32), similarity=0.3), size_hw=(96, 72), limit=1
    )
    config = RegionsConfig(rule="fitted", smooth_patches=0.0)
    (found,) = cut_maps([each], config, chooses(share=1.0))
    (expected,) = cut_maps([each], config.model_copy(update={"rule": "fixed", "threshold": SHARES[-1]}))
    assert found is not None
    assert expected is not None
    assert found.threshold == expected.threshold
    assert len(found.parts) == len(expected.parts)


def test_what_is_usually_large_is_cut_lower() -> None:
    """With a weight of the usual size alone: the larger a thing usually is, the larger its part.

    On a cone every cut has a box of its own.
    """
    grid = np.mgrid[:41, :41] - 20.0
    levels = np.rint(LEVELS * np.maximum(0, 1 - np.hypot(*grid) / 20)).astype(np.uint8)
    rule = chooses(usual_by_box_area=1.0)
    sizes = [rule.usual_size([head]) for head in ("field", "hat", "thing")]
    assert rule(np.stack([levels] * 3), sizes) == [fixed_cut(share) for share in (SHARES[0], SHARES[-1], SHARES[0])]
    assert rule.usual_size(("field", "hat", "field")) == pytest.approx(1 / 3)
    assert rule.usual_size(()) == 0


def record_of(*phrases: tuple[str, str, int]) -> Record:
    """A record with phrases (text, head, caption)."""
    return Record(
        sample=Sample(sample_id="1", source="", captions=("a man in a hat", "a person, a hat")),
        phrases=tuple(
            Phrase(text=text, head=head, caption_index=caption, start=2, end=5) for text, head, caption in phrases
        ),
    )


def test_the_heads_of_a_thing_are_those_of_its_texts() -> None:
    record = record_of(("man", "man", 0), ("hat", "hat", 0), ("person", "person", 1), ("hat", "cap", 1))
    stage = RegionsStage(RegionsConfig())
    assert stage.heads_of(record, [4, 7, 4, 7]) == [("man", "person"), ("hat",), ("man", "person"), ("hat",)]
    alone = RegionsStage(RegionsConfig(group="none"))
    assert alone.heads_of(record, None) == [("man",), ("hat",), ("person",), ("hat",)]


def test_usual_sizes_are_those_of_other_images() -> None:
    """Sizes -1, -3 and -5, whose mean is -3; three things of usual size stand beside those that were seen."""
    seen = [
        SeenThing(image=1, head="dog", log_size=-1.0),
        SeenThing(image=2, head="dog", log_size=-3.0),
        SeenThing(image=2, head="hat", log_size=-5.0),
    ]
    sizes = UsualSizes(seen)
    assert sizes.all() == {"dog": 0.4, "hat": -0.5}
    assert sizes.without(1, ["dog"]) == {"dog": 0}
    assert sizes.without(2, ["dog", "hat"]) == {"dog": pytest.approx(2 / 4), "hat": 0}
    assert sizes.without(3, ["dog", "bird"]) == {"dog": pytest.approx(2 / 5), "bird": 0}


@pytest.mark.parametrize(
    "change",
    [
        {"weight": {"luck": 1.0}},
        {"mean": {}},
        {"scale": dict.fromkeys(FEATURES, 0.0)},
        {"weight": dict.fromkeys(FEATURES, float("nan"))},
        {"weight": {**dict.fromkeys(FEATURES, 1.0), "luck": 1.0}},
        {"weight": None},
        {"usual": {"dog": float("inf")}},
        {"usual": {"dog": "large"}},
        {"usual": None},
    ],
)
def test_other_values_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises((ValueError, KeyError, TypeError, AttributeError)):
        FittedCut.from_plain({**chooses().plain(), **change})


def test_a_fit_learns_how_large_things_are() -> None:
    """Of humps of any width, the cut is right whose box has a fifth of the map: no one share is."""
    rng = np.random.default_rng(5)
    grid = np.mgrid[:22, :22]
    maps = []
    for _ in range(160):
        centre, width = rng.uniform(6, 16, (2, 1, 1)), rng.uniform(2.0, 9.0)
        levels = quantise(np.exp(-((grid - centre) ** 2).sum(0) / (2 * width**2)).astype(np.float32))
        assert levels is not None
        maps.append(levels)
    features = cut_features(np.stack(maps), [0.0] * 160)
    box = np.exp(features[..., FEATURES.index("log_box_area")])
    right = np.abs(np.log(box / 0.2)) < np.log(1.5)
    some = right.any(axis=1)
    fit = fit_cut(features[:80], right[:80])
    rule = FittedCut.of(fit.weight, fit.mean, fit.scale, {})
    chosen = [
        [fixed_cut(share) for share in SHARES].index(threshold) for threshold in rule(np.stack(maps[80:]), [0.0] * 80)
    ]
    hits = right[80:][np.arange(80), chosen]
    best_share = right[80:].mean(axis=0).max()
    assert hits[some[80:]].mean() > 0.9
    assert hits.mean() > best_share + 0.2


def test_the_same_data_give_the_same_rule() -> None:
    features = cut_features(random_maps(30), [0.0] * 30)
    right = np.random.default_rng(1).random(features.shape[:2]) < 0.3
    assert np.array_equal(fit_cut(features, right).weight, fit_cut(features, right).weight)


@pytest.mark.parametrize("all_right", [False, True])
def test_a_fit_needs_right_and_wrong_cuts(all_right: bool) -> None:
    features = cut_features(random_maps(5), [0.0] * 5)
    with pytest.raises(ValueError, match="right and wrong"):
        fit_cut(features, np.full(features.shape[:2], all_right))
