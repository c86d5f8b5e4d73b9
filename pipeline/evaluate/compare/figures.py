"""Numbers from the maps of all contenders: means over phrases with intervals over images, and paired differences.

FIGURES says what each is and in which direction it is better. Values of a failed map count as 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluate.alikeness import correlation
from pipeline.evaluate.compare.maps import Mapped, Maps
from pipeline.evaluate.compare.pictures import ComparedImage, Question
from pipeline.evaluate.faithfulness import PROTOCOLS
from pipeline.evaluate.localisation import SHARES, at_shares, drawn, overlaps, place_of, samples_hw
from pipeline.evaluate.matching import ImageHeat
from pipeline.evaluate.metrics import IOU, METRICS
from pipeline.evaluate.report import means_where_known
from stages.contract.levels import LEVELS, quantise
from stages.contract.records import HeatMap
from stages.regions.thresholds import otsu_cut

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A figure of the comparison.

    Attributes:
        title: For a column.
        doc: One line for people.
        better: 1 if higher values are better, -1 if lower ones are, 0 if it depends.
    """

    title: str
    doc: str
    better: int = 1


FIGURES: Final[dict[str, Shown]] = {
    "pointing": Shown(
        title="pointing", doc="the map's peak lies on the thing, or in a true box where no mask is known"
    ),
    "pointing_off_centre": Shown(title="off centre", doc="the same where the image's centre is not on the thing"),
    "energy": Shown(title="energy", doc="share of the heat on the thing"),
    "box_recall": Shown(
        title="box recall", doc="box IoU >= .5 at the share of the maximum that is best for the explainer"
    ),
    "box_recall_otsu": Shown(title="by Otsu", doc="the same at each map's own threshold by Otsu"),
    "mask_iou": Shown(title="mask IoU", doc="at the share of the maximum that is best for the explainer"),
    "mask_iou_otsu": Shown(title="by Otsu", doc="the same at each map's own threshold by Otsu"),
    "deletion_rise": Shown(
        title="deletion RISE", doc="area under the curve while the hottest pixels vanish", better=-1
    ),
    "insertion_rise": Shown(title="insertion RISE", doc="area while the hottest pixels appear out of a blur"),
    "deletion_authors": Shown(
        title="deletion authors", doc="the first half of the pixels becomes random colours", better=-1
    ),
    "insertion_authors": Shown(title="insertion authors", doc="the first half of the pixels appears out of black"),
    "weights_head": Shown(
        title="head shuffled", doc="rank correlation with the map after the head's weights were shuffled", better=-1
    ),
    "weights_all": Shown(title="all shuffled", doc="the same after all weights of the tower were shuffled", better=-1),
    "phrase_swapped": Shown(
        title="other phrase", doc="rank correlation with the map of another image's phrase", better=-1
    ),
    "same_thing": Shown(title="same thing", doc="correlation of the maps of two phrases that name the same thing"),
    "other_thing": Shown(
        title="other thing", doc="correlation of the maps of two phrases that name different things", better=-1
    ),
}
"""Name in JSON -> what it is, in the order of the tables."""

FEWEST_IMAGES: Final = 8
"""A bootstrap over fewer images says little of chance."""

LOCAL: Final = ("pointing", "pointing_off_centre", "energy", "box_recall_otsu", "mask_iou_otsu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """One value for each of n things that are counted: phrases of images, or pairs of phrases.

    Attributes:
        values: Figure -> (n,), NaN where it is not defined.
        images: (n,), whose they are.
    """

    values: Mapping[str, Floats]
    images: NDArray[np.int64]


def local_numbers(
    images: Sequence[ComparedImage], maps: Sequence[Maps], label: str
) -> tuple[Numbers, dict[str, float]]:
    """What the maps of a label say of places, and the shares of the maximum that are best for boxes and masks."""
    rows: list[dict[str, float]] = []
    owners: list[int] = []
    for image, own in zip(images, maps, strict=True):
        for question, heat_map in zip(image.questions, own[label], strict=True):
            if question.query is not None:
                rows.append(_local(question, heat_map))
                owners.append(image.number)
    if not rows:
        return Numbers(values={}, images=np.zeros(0, np.int64)), {}
    values = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    best: dict[str, float] = {}
    found = {name: values[name] for name in LOCAL}
    for figure in ("box_recall", "mask_iou"):
        by_share = np.stack([values[f"{figure}@{share}"] for share in SHARES])
        known = ~np.isnan(by_share[0])
        index = int(by_share[:, known].sum(axis=1).argmax())
        found[figure] = by_share[index]
        if known.any():
            best[figure] = SHARES[index]
    return Numbers(values=found, images=np.array(owners, np.int64)), best


def _local(question: Question, heat_map: HeatMap) -> dict[str, float]:
    query = question.query
    assert query is not None and query.target is not None  # noqa: S101, PT018  who calls has looked
    heat = None if heat_map.fault else ImageHeat(heat_map, query.size_hw)
    asked = replace(query, heat=heat)
    row = {name: _or_nan(METRICS[name].value(asked)) for name in ("pointing", "pointing_off_centre", "energy")}
    has_mask = query.target.mask is not None
    inside = np.zeros(query.size_hw, np.bool_)
    inside[query.area.window][query.area.inside] = True
    place = place_of(inside, query.target.boxes_xywh_px)
    levels = None if heat is None else quantise(heat_map.values)
    if heat is None or levels is None:
        cuts = [(0.0, 0.0)] * (len(SHARES) + 1)
    else:
        surface = drawn(heat_map, samples_hw(query.size_hw))
        low, high = float(heat_map.values.min()), float(heat_map.values.max())
        otsu = low + (high - low) * otsu_cut(levels) / LEVELS
        tried = [*at_shares(surface, place), overlaps(surface, otsu, place)]
        cuts = [(each.box, each.mask) for each in tried]
    for name, (box, mask) in zip([*(f"@{share}" for share in SHARES), "_otsu"], cuts, strict=True):
        row[f"box_recall{name}"] = float(box >= IOU)
        row[f"mask_iou{name}"] = mask if has_mask else float("nan")
    return row


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value


def pair_numbers(images: Sequence[ComparedImage], maps: Sequence[Maps], label: str) -> Numbers:
    """How alike the maps of two phrases of an image are, where both things are known."""
    rows: list[tuple[float, float]] = []
    owners: list[int] = []
    for image, own in zip(images, maps, strict=True):
        for (a, first), (b, second) in combinations(zip(image.questions, own[label], strict=True), 2):
            if a.thing and b.thing:
                alike = correlation(first.values, second.values)
                rows.append((alike, float("nan")) if a.thing == b.thing else (float("nan"), alike))
                owners.append(image.number)
    columns = np.array(rows, np.float64).reshape(-1, 2)
    return Numbers(
        values={"same_thing": columns[:, 0], "other_thing": columns[:, 1]}, images=np.array(owners, np.int64)
    )


def numbers_in(rows: Sequence[Mapping[str, Any]], label: str, names: Sequence[str]) -> Numbers:
    """The rows of a label, of those that `Field.sanity` and `Field.curves` give; NaN for what a row lacks."""
    own = [row for row in rows if row["label"] == label]
    return Numbers(
        values={name: np.array([row.get(name, np.nan) for row in own], np.float64) for name in names},
        images=np.array([row["image"] for row in own], np.int64),
    )


CURVES: Final = tuple(f"{name}{end}" for end in ("", "_cosine") for name in PROTOCOLS)
SANITY: Final = ("weights_head", "weights_all", "phrase_swapped")


def figures_of(parts: Sequence[Numbers]) -> dict[str, Any]:
    """Name -> {value, low, high, n}; figures without any value are left out."""
    found: dict[str, Any] = {}
    for part in parts:
        found |= means_where_known(part.values, part.images)
    return {name: found[name] for name in sorted(found, key=_place)}


def differences_of(parts: Sequence[Numbers], reference: Sequence[Numbers]) -> dict[str, Any]:
    """The same for the differences from another contender, phrase by phrase.

    The interval is None where the values belong to fewer than `FEWEST_IMAGES` images.
    """
    found: dict[str, Any] = {}
    for part, theirs in zip(parts, reference, strict=True):
        values = {name: part.values[name] - theirs.values[name] for name in part.values}
        for name, figure in means_where_known(values, part.images).items():
            images = np.unique(part.images[~np.isnan(values[name])])
            found[name] = figure if images.size >= FEWEST_IMAGES else {**figure, "low": None, "high": None}
    return {name: found[name] for name in sorted(found, key=_place)}


def _place(name: str) -> int:
    names = [*FIGURES, *CURVES]
    return names.index(name) if name in names else len(names)


def map_correlations(maps: Sequence[Maps], labels: Sequence[str]) -> dict[str, dict[str, float]]:
    """Label -> other label -> mean correlation of their maps of the same phrases."""
    found: dict[str, dict[str, float]] = {label: {} for label in labels}
    for a, b in combinations(labels, 2):
        pairs = [
            correlation(first.values, second.values)
            for own in maps
            for first, second in zip(own[a], own[b], strict=True)
        ]
        found[a][b] = found[b][a] = float(np.mean(pairs))
    return found


def cosine_agreement(mapped: Mapped, label: str) -> dict[str, Any]:
    """Whether the cosine that was explained is the image tower's own.

    Returns:
        `correlation`, `mean_difference` and `mean_distance` of `HeatMap.similarity` and the cosine by the whole image
        tower, over `n` phrases. The correlation is None where one of them is the same for all.
    """
    told = np.array([heat_map.similarity for own in mapped.maps for heat_map in own[label]])
    true = np.concatenate(mapped.cosines)
    varies = told.std() > 0 and true.std() > 0
    return {
        "correlation": float(np.corrcoef(told, true)[0, 1]) if varies else None,
        "mean_difference": float((told - true).mean()),
        "mean_distance": float(np.abs(told - true).mean()),
        "n": len(true),
    }
