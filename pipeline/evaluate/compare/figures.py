"""Numbers from the maps of all contenders: means over phrases with intervals over images, and paired differences.

FIGURES says what each is and in which direction it is better. Values of a failed map count as 0.

Places are judged by plain heat maps at any threshold, with the same rule for every explainer. A map is drawn over its
image with `SAMPLES` samples along the longer side, bilinear between its values. Its mask lies above a threshold, and
its box is the one around the part of the mask with most heat; parts touch each other also by a corner. Nothing is
blurred, and colours do not count: `phrasebox eval` measures the regions that a run makes of a map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import NormalDist
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.evaluate.compare.maps import Maps
from pipeline.evaluate.compare.pictures import ComparedImage
from pipeline.evaluate.estimates import LEVEL, Floats, mean_figures
from pipeline.evaluate.matching import ImageHeat, Query, draw_map
from pipeline.evaluate.metrics import IOU, value_of
from stages.contract.geometry import Box, box_iou
from stages.contract.levels import LEVELS, quantise
from stages.contract.records import HeatMap
from stages.regions.thresholds import otsu_cut

SAMPLES: Final = 128  # samples along the longer side: several for each cell of a map. Their number costs its square
SHARES: Final = tuple(step / 10 for step in range(1, 10))  # shares of a map's maximum that are tried as a threshold
FEWEST_IMAGES: Final = 8  # a bootstrap over fewer images says little of chance


@dataclass(frozen=True, slots=True)
class Shown:
    """A figure of the comparison: title of a column, a line for people, and its sign: 1 if higher values are better."""

    title: str
    doc: str
    better: int = 1


WHERE: Final[dict[str, Shown]] = {
    "pointing": Shown("pointing", "the map's peak lies on the thing, or in a true box where no mask is known"),
    "pointing_off_centre": Shown("off centre", "the same where the image's centre is not on the thing"),
    "energy": Shown("energy", "share of the heat on the thing"),
    "box_recall": Shown(
        "box recall",
        "box IoU >= 0.5 at the share of the maximum that is best for the explainer on the other half of the images",
    ),
    "box_recall_otsu": Shown("by Otsu", "the same at each map's own threshold by Otsu"),
    "mask_iou": Shown(
        "mask IoU", "at the share of the maximum that is best for the explainer on the other half of the images"
    ),
    "mask_iou_otsu": Shown("by Otsu", "the same at each map's own threshold by Otsu"),
}
WHY: Final[dict[str, Shown]] = {
    "deletion_rise": Shown("deletion RISE", "area under the curve while the hottest pixels vanish", -1),
    "insertion_rise": Shown("insertion RISE", "area while the hottest pixels appear out of a blur"),
    "deletion_authors": Shown("deletion authors", "the first half of the pixels becomes random colours", -1),
    "insertion_authors": Shown("insertion authors", "the first half of the pixels appears out of black"),
}
WHY_COSINE: Final = {
    f"{name}_cosine": replace(shown, title=f"{shown.title}, cosine", doc=f"{shown.doc}: of the cosine")
    for name, shown in WHY.items()
}
SANE: Final[dict[str, Shown]] = {
    "weights_head": Shown("head shuffled", "rank correlation with the map after the head's weights were shuffled", -1),
    "weights_all": Shown("all shuffled", "the same after all weights of the tower were shuffled", -1),
    "phrase_swapped": Shown("other phrase", "rank correlation with the map of another image's phrase", -1),
    "same_thing": Shown("same thing", "correlation of the maps of two phrases that name the same thing"),
    "other_thing": Shown("other thing", "correlation of the maps of two phrases that name different things", -1),
}
FIGURES: Final = {**WHERE, **WHY, **WHY_COSINE, **SANE}
"""Name in JSON -> figure, in the order of the tables."""

TABLES: Final = {
    "Where: does the heat lie on the thing?": WHERE,
    "Why: areas under the curves of the phrase's probability": WHY,
    "Why: areas under the curves of the phrase's cosine": WHY_COSINE,
    "Sane: do maps follow weights and phrases?": SANE,
}
"""Title of a table -> its figures."""

CURVES: Final = (*WHY, *WHY_COSINE)
SANITY: Final = ("weights_head", "weights_all", "phrase_swapped")
LOCAL: Final = ("pointing", "pointing_off_centre", "energy", "box_recall_otsu", "mask_iou_otsu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """Figure -> one value for each of n phrases or pairs of phrases, (n,), NaN where it is not defined; and the number
    of the image of each, (n,)."""

    values: Mapping[str, Floats]
    images: NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The place of a thing on the samples of its image: its mask, or its boxes if it has none, and its boxes."""

    inside: NDArray[np.bool_]
    boxes_xywh: tuple[Box, ...]


def local_numbers(
    images: Sequence[ComparedImage], maps: Sequence[Maps], label: str
) -> tuple[Numbers, dict[str, float]]:
    """The numbers of the maps of a label about places, and the best shares of the maximum for boxes and masks."""
    rows: list[dict[str, float]] = []
    owners: list[int] = []
    for image, own in zip(images, maps, strict=True):
        for question, heat_map in zip(image.questions, own[label], strict=True):
            if question.query is not None:
                rows.append(_local(question.query, heat_map))
                owners.append(image.number)
    if not rows:
        return Numbers(values={}, images=np.zeros(0, np.int64)), {}
    values = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    best: dict[str, float] = {}
    found = {name: values[name] for name in LOCAL}
    half = np.unique(owners, return_inverse=True)[1] % 2
    for figure in ("box_recall", "mask_iou"):
        by_share = np.stack([values[f"{figure}@{share}"] for share in SHARES])
        known = ~np.isnan(by_share[0])
        # The share that is best for one half of the images is judged on the other half.
        others = [own if (own := known & (half != number)).any() else known for number in (0, 1)]
        chosen = [int(by_share[:, own].sum(axis=1).argmax()) for own in others]
        found[figure] = np.where(half == 0, by_share[chosen[0]], by_share[chosen[1]])
        if known.any():
            best[figure] = SHARES[int(by_share[:, known].sum(axis=1).argmax())]
    return Numbers(values=found, images=np.array(owners, np.int64)), best


def _local(query: Query, heat_map: HeatMap) -> dict[str, float]:
    """All numbers of one map about the place of its thing: box recall and mask IoU for each share, and by Otsu."""
    heat = None if heat_map.fault else ImageHeat(heat_map, query.size_hw)
    row = {name: value_of(name, replace(query, heat=heat)) for name in ("pointing", "pointing_off_centre", "energy")}
    place = place_of(query)
    levels = None if heat is None else quantise(heat_map.values)
    cuts = [(0.0, 0.0)] * (len(SHARES) + 1)
    if levels is not None:
        surface = draw_map(heat_map, samples_hw(query.size_hw))
        low, high, top = float(heat_map.values.min()), float(heat_map.values.max()), float(surface.max())
        thresholds = (*(share * top for share in SHARES), low + (high - low) * otsu_cut(levels) / LEVELS)
        cuts = [overlaps(surface, threshold, place) for threshold in thresholds]
    has_mask = query.target is not None and query.target.mask is not None
    for name, (box, mask) in zip([*(f"@{share}" for share in SHARES), "_otsu"], cuts, strict=True):
        row[f"box_recall{name}"] = float(box >= IOU)
        row[f"mask_iou{name}"] = mask if has_mask else float("nan")
    return row


def samples_hw(size_hw: tuple[int, int]) -> tuple[int, int]:
    """Return rows and columns of samples of an image of that many pixels."""
    scale = SAMPLES / max(size_hw)
    return max(1, round(size_hw[0] * scale)), max(1, round(size_hw[1] * scale))


def place_of(query: Query) -> Place:
    """Return the place of a query's thing on the samples of its image."""
    inside = query.area
    boxes_xywh_px = () if query.target is None else query.target.boxes_xywh_px
    rows, columns = samples_hw(query.size_hw)
    covered = cv2.resize(inside.astype(np.float32), (columns, rows), interpolation=cv2.INTER_AREA)
    down, right = rows / inside.shape[0], columns / inside.shape[1]
    # A thin thing would vanish if every sample had to lie on it by half.
    kept = covered >= min(0.5, float(covered.max())) if covered.any() else covered > 0
    return Place(
        inside=kept, boxes_xywh=tuple((x * right, y * down, w * right, h * down) for x, y, w, h in boxes_xywh_px)
    )


def overlaps(heat: NDArray[np.float32], threshold: float, place: Place) -> tuple[float, float]:
    """IoU of the box of a cut with its best true box, and of its mask with the true one, 0 .. 1.

    heat: (rows, columns) of samples, >= 0, cut at a threshold in the map's own scale.
    """
    above = heat > threshold
    if not above.any():
        return 0.0, 0.0
    union = np.count_nonzero(above | place.inside)
    count, parts, stats, _ = cv2.connectedComponentsWithStats(above.astype(np.uint8), connectivity=8)
    held = np.bincount(parts.ravel(), weights=heat.ravel(), minlength=count)
    x, y, w, h = (float(value) for value in stats[1 + int(held[1:].argmax())][:4])
    return max(box_iou((x, y, w, h), box) for box in place.boxes_xywh), np.count_nonzero(above & place.inside) / union


def pair_numbers(images: Sequence[ComparedImage], maps: Sequence[Maps], label: str) -> Numbers:
    """Correlations of the maps of two phrases of an image whose things are both known."""
    rows: list[tuple[float, float]] = []
    owners: list[int] = []
    for image, own in zip(images, maps, strict=True):
        for (a, first), (b, second) in combinations(zip(image.questions, own[label], strict=True), 2):
            if a.thing and b.thing:
                alike = correlation(first.values, second.values)
                rows.append((alike, float("nan")) if a.thing == b.thing else (float("nan"), alike))
                owners.append(image.number)
    columns = np.array(rows, np.float64).reshape(-1, 2)
    values = {"same_thing": columns[:, 0], "other_thing": columns[:, 1]}
    return Numbers(values=values, images=np.array(owners, np.int64))


def correlation(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Pearson's correlation of two maps, -1 .. 1. Maps of different grids are compared on the finer one's."""
    finer = max(a.shape, b.shape, key=lambda shape: shape[0] * shape[1])
    first, second = (each if each.shape == finer else cv2.resize(each, finer[::-1]) for each in (a, b))  # bilinear
    return pearson(first.astype(np.float64), second.astype(np.float64))


def pearson(a: Floats, b: Floats) -> float:
    """Correlation of the values of two arrays, -1 .. 1; a map that is the same everywhere is like no other: 0."""
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.sqrt((a * a).sum() * (b * b).sum()))
    if norm <= np.finfo(np.float64).tiny:
        return 0.0
    return float(np.clip((a * b).sum() / norm, -1.0, 1.0))


def numbers_in(rows: Sequence[Mapping[str, Any]], label: str, names: Sequence[str]) -> Numbers:
    """Return the rows of a label, of those of sanity checks or curves; NaN for values that a row lacks."""
    own = [row for row in rows if row["label"] == label]
    return Numbers(
        values={name: np.array([row.get(name, np.nan) for row in own], np.float64) for name in names},
        images=np.array([row["image"] for row in own], np.int64),
    )


def figures_of(parts: Sequence[Numbers]) -> dict[str, Any]:
    """Name -> {value, low, high, n}; figures without any value are left out."""
    found: dict[str, Any] = {}
    for part in parts:
        found |= mean_figures(part.values, part.images)
    return {name: found[name] for name in FIGURES if name in found}


def sizes_of(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[str]:
    """Return how many values each figure of some rows comes from; `2, 16` where the rows differ."""
    each = [sorted({row["figures"][name]["n"] for row in rows if name in row["figures"]}) for name in names]
    return [", ".join(f"{n:,}" for n in numbers) for numbers in each]


def differences_of(parts: Sequence[Numbers], reference: Sequence[Numbers]) -> dict[str, Any]:
    """Return the same for the differences from another contender, phrase by phrase.

    The interval is None where the values belong to fewer than `FEWEST_IMAGES` images.
    """
    found: dict[str, Any] = {}
    for part, theirs in zip(parts, reference, strict=True):
        values = {name: part.values[name] - theirs.values[name] for name in part.values}
        for name, figure in mean_figures(values, part.images).items():
            images = np.unique(part.images[~np.isnan(values[name])])
            found[name] = figure if images.size >= FEWEST_IMAGES else {**figure, "low": None, "high": None}
    return {name: found[name] for name in FIGURES if name in found}


def mark(rows: Sequence[Mapping[str, Any]]) -> None:
    """Add `mark`, "+" or "-", to the differences that all rows together make certain: Holm's correction at `LEVEL`.

    The p-values are those of a normal law with the width of the interval: 2,000 resamples know none below 0.0005.
    """
    normal, found = NormalDist(), list[tuple[float, int, dict[str, Any]]]()
    for row in rows:
        for each in (row["differences"] or {}).values():
            each["mark"] = ""
            if each["low"] is not None and each["value"]:
                deviation = (each["high"] - each["low"]) / (2 * normal.inv_cdf((1 + LEVEL) / 2))
                found.append((2 * normal.cdf(-abs(each["value"]) / deviation) if deviation else 0.0, len(found), each))
    for rank, (chance, _, each) in enumerate(sorted(found)):
        if chance > (1 - LEVEL) / (len(found) - rank):
            break
        each["mark"] = "+" if each["value"] > 0 else "-"


def cosine_agreement(maps: Sequence[Sequence[HeatMap]], cosines: Sequence[Floats]) -> dict[str, Any]:
    """Return whether the cosine that was explained is the image tower's own.

    Returns:
        `correlation`, `mean_difference` and `mean_distance` of `HeatMap.similarity` and the cosine by the whole image
        tower, over `n` phrases. The correlation is None where one of them is the same for all.
    """
    explained, true = np.array([heat_map.similarity for own in maps for heat_map in own]), np.concatenate(cosines)
    varies = explained.std() > 0 and true.std() > 0
    return {
        "correlation": float(np.corrcoef(explained, true)[0, 1]) if varies else None,
        "mean_difference": float((explained - true).mean()),
        "mean_distance": float(np.abs(explained - true).mean()),
        "n": len(true),
    }
