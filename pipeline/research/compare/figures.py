"""Numbers from the maps of all contenders: means over phrases with intervals over images, and paired differences.

FIGURES defines each figure and the direction in which it is better. Json of a failed map count as
0.

Places are judged by plain heat maps at any threshold, with the same rule for every explainer. A map
is drawn over its image with `SAMPLES` samples along the longer side, bilinear between its values.
Its mask lies above a threshold, and its box is the box around the part of the mask with most heat;
parts touch each other also by a corner. Nothing is blurred, and colours do not count: `phrasebox
eval` measures the regions that a run makes of a map.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import NormalDist
from typing import Final

import cv2
import numpy as np

from phrasebox.pipeline.evaluate.estimates import LEVEL, Estimate, Estimates, mean_figures
from phrasebox.pipeline.evaluate.matching import ImageHeat, Query, draw_map
from phrasebox.pipeline.evaluate.metrics import IOU, value_of
from phrasebox.pipeline.research.compare.maps import Maps
from phrasebox.pipeline.research.compare.pictures import ComparedImage
from phrasebox.stages.contract.geometry import Box, box_iou, scaled_sides
from phrasebox.stages.contract.levels import LEVELS, quantise
from phrasebox.stages.contract.records import HeatMap
from phrasebox.stages.contract.values import Bools, Floats, Floats32, Integers, Sides
from phrasebox.stages.regions.cut_rules import otsu_cut

SAMPLES: Final = (
    128  # samples along the longer side: several for each cell of a map. Their number costs its square
)
SHARES: Final = tuple(
    step / 10 for step in range(1, 10)
)  # shares of a map's maximum that are tried as a threshold
FEWEST_IMAGES: Final = 8  # a bootstrap over fewer images says little of chance


@dataclass(frozen=True, slots=True)
class FigureColumn:
    """A figure of the comparison, as a column of its tables.

    Attributes:
        title: Title of the column.
        doc: A line for people.
        better: 1 if higher values are better, -1 if lower values are.
    """

    title: str
    doc: str
    better: int = 1


WHERE: Final[dict[str, FigureColumn]] = {
    "pointing": FigureColumn(
        "pointing", "the map's peak lies on the object, or in a true box where no mask is known"
    ),
    "pointing_off_centre": FigureColumn(
        "off centre", "the same where the image's centre is not on the object"
    ),
    "energy": FigureColumn("energy", "share of the heat on the object"),
    "box_recall": FigureColumn(
        "box recall",
        "box IoU >= 0.5 at the share of the maximum that is best for the explainer on the other half of the images",
    ),
    "box_recall_otsu": FigureColumn("by Otsu", "the same at each map's own threshold by Otsu"),
    "mask_iou": FigureColumn(
        "mask IoU",
        "at the share of the maximum that is best for the explainer on the other half of the images",
    ),
}
WHY: Final[dict[str, FigureColumn]] = {
    "deletion_rise": FigureColumn(
        "deletion RISE", "area under the curve while the hottest pixels vanish", -1
    ),
    "insertion_rise": FigureColumn("insertion RISE", "area while the hottest pixels appear out of a blur"),
}
WHY_COSINE: Final = {
    f"{name}_cosine": replace(shown, title=f"{shown.title}, cosine", doc=f"{shown.doc}: of the cosine")
    for name, shown in WHY.items()
}
SANE: Final[dict[str, FigureColumn]] = {
    "weights_all": FigureColumn(
        "all shuffled", "rank correlation with the map after the weights were shuffled", -1
    ),
    "phrase_swapped": FigureColumn(
        "other phrase", "rank correlation with the map of another image's phrase", -1
    ),
    "same_thing": FigureColumn(
        "same object", "correlation of the maps of two phrases that name the same object"
    ),
    "other_thing": FigureColumn(
        "other object", "correlation of the maps of two phrases that name different objects", -1
    ),
}
FIGURES: Final = {**WHERE, **WHY, **WHY_COSINE, **SANE}
"""Name in JSON -> figure, in the order of the tables."""

TABLES: Final = {
    "Where: does the heat lie on the object?": WHERE,
    "Why: the phrase's probability while hot pixels vanish or appear": WHY,
    "Why: the phrase's cosine while hot pixels vanish or appear": WHY_COSINE,
    "Sane: do maps follow weights and phrases?": SANE,
}
"""Title of a table -> its figures."""

CURVES: Final = (*WHY, *WHY_COSINE)
SANITY: Final = ("weights_all", "phrase_swapped")
PLACE_NUMBERS: Final = ("pointing", "pointing_off_centre", "energy", "box_recall_otsu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """Json of n phrases or pairs of phrases.

    Attributes:
        values: Figure -> values (n,), NaN where the figure is not defined.
        images: Number of the image of each value, (n,).
    """

    values: Mapping[str, Floats]
    images: Integers


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The place of an object on the samples of its image.

    Attributes:
        inside: Mask of the object, or of its boxes if it has no mask, (rows, columns).
        boxes_xywh: Boxes of the object, in samples.
    """

    inside: Bools
    boxes_xywh: tuple[Box, ...]


def place_numbers(images: Sequence[ComparedImage], maps: Sequence[Maps], label: str) -> Numbers:
    """Return the numbers of a label's maps about places."""
    rows: list[dict[str, float]] = []
    owners: list[int] = []
    for image, image_maps in zip(images, maps, strict=True):
        for question, heat_map in zip(image.questions, image_maps[label], strict=True):
            if question.query is not None:
                rows.append(_map_numbers(question.query, heat_map))
                owners.append(image.number)
    if not rows:
        return Numbers(values={}, images=np.zeros(0, np.int64))
    values = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    numbers = {name: values[name] for name in PLACE_NUMBERS}
    half = np.unique(owners, return_inverse=True)[1] % 2
    for figure in ("box_recall", "mask_iou"):
        by_share = np.stack([values[f"{figure}@{share}"] for share in SHARES])
        has_value = ~np.isnan(by_share[0])
        # Each half of the images is judged at the share that is best for the other half.
        halves = [has_value & (half != number) for number in (0, 1)]
        shares = [
            int(by_share[:, other if other.any() else has_value].sum(axis=1).argmax()) for other in halves
        ]
        numbers[figure] = np.where(half == 0, by_share[shares[0]], by_share[shares[1]])
    return Numbers(values=numbers, images=np.array(owners, np.int64))


def _map_numbers(query: Query, heat_map: HeatMap) -> dict[str, float]:
    """Return numbers of a map about the place of its object: box recall and mask IoU for each share, and by Otsu."""
    heat = None if heat_map.fault else ImageHeat(heat_map, query.size_hw)
    row = {
        name: value_of(name, replace(query, heat=heat))
        for name in ("pointing", "pointing_off_centre", "energy")
    }
    place = place_of(query)
    levels = None if heat is None else quantise(heat_map.values)
    cuts = [(0.0, 0.0)] * (len(SHARES) + 1)
    if levels is not None:
        surface = draw_map(heat_map, samples_hw(query.size_hw))
        top = float(surface.max())
        low = float(heat_map.values.min())
        high = float(heat_map.values.max())
        thresholds = (*(share * top for share in SHARES), low + (high - low) * otsu_cut(levels) / LEVELS)
        cuts = [overlaps(surface, threshold, place) for threshold in thresholds]
    has_mask = query.target is not None and query.target.mask is not None
    for name, (box, mask) in zip([*(f"@{share}" for share in SHARES), "_otsu"], cuts, strict=True):
        row[f"box_recall{name}"] = float(box >= IOU)
        row[f"mask_iou{name}"] = mask if has_mask else float("nan")
    return row


def samples_hw(size_hw: Sides) -> tuple[int, int]:
    """Return rows and columns of samples of an image of that many pixels."""
    return scaled_sides(size_hw, SAMPLES / max(size_hw))


def place_of(query: Query) -> Place:
    """Return the place of a query's object on the samples of its image."""
    inside = query.area
    boxes_xywh_px = () if query.target is None else query.target.boxes_xywh_px
    rows, columns = samples_hw(query.size_hw)
    coverage = cv2.resize(inside.astype(np.float32), (columns, rows), interpolation=cv2.INTER_AREA)
    scale_y = rows / inside.shape[0]
    scale_x = columns / inside.shape[1]
    # A thin object would vanish if every sample had to lie on it by half.
    is_inside = coverage >= min(0.5, float(coverage.max())) if coverage.any() else coverage > 0
    return Place(
        inside=is_inside,
        boxes_xywh=tuple(
            (x * scale_x, y * scale_y, w * scale_x, h * scale_y) for x, y, w, h in boxes_xywh_px
        ),
    )


def overlaps(heat: Floats32, threshold: float, place: Place) -> tuple[float, float]:
    """Return the IoU of the box of a cut with its best true box, and of its mask with the true mask, 0 .. 1.

    heat: (rows, columns) of samples, >= 0, cut at a threshold in the map's own scale.
    """
    is_above = heat > threshold
    if not is_above.any():
        return 0.0, 0.0
    union = np.count_nonzero(is_above | place.inside)
    count, parts, stats, _ = cv2.connectedComponentsWithStats(is_above.astype(np.uint8), connectivity=8)
    heat_of_parts = np.bincount(parts.ravel(), weights=heat.ravel(), minlength=count)
    x, y, w, h = (float(value) for value in stats[1 + int(heat_of_parts[1:].argmax())][:4])
    box_overlap = max(box_iou((x, y, w, h), box) for box in place.boxes_xywh)
    return box_overlap, np.count_nonzero(is_above & place.inside) / union


def pair_numbers(images: Sequence[ComparedImage], maps: Sequence[Maps], label: str) -> Numbers:
    """Return the correlations of the maps of two phrases of an image, for phrases with a known object."""
    rows: list[tuple[float, float]] = []
    owners: list[int] = []
    for image, image_maps in zip(images, maps, strict=True):
        for (a, map_a), (b, map_b) in combinations(zip(image.questions, image_maps[label], strict=True), 2):
            if a.object_ and b.object_:
                likeness = correlation(map_a.values, map_b.values)
                rows.append(
                    (likeness, float("nan")) if a.object_ == b.object_ else (float("nan"), likeness)
                )
                owners.append(image.number)
    columns = np.array(rows, np.float64).reshape(-1, 2)
    values = {"same_thing": columns[:, 0], "other_thing": columns[:, 1]}
    return Numbers(values=values, images=np.array(owners, np.int64))


def correlation(a: Floats32, b: Floats32) -> float:
    """Return Pearson's correlation of two maps, -1 .. 1. Maps of different grids are compared on the finer grid."""
    finer = max(a.shape, b.shape, key=lambda shape: shape[0] * shape[1])
    # Bilinear.
    values_a, values_b = (
        values if values.shape == finer else cv2.resize(values, finer[::-1]) for values in (a, b)
    )
    return pearson(values_a.astype(np.float64), values_b.astype(np.float64))


def pearson(a: Floats, b: Floats) -> float:
    """Return the correlation of the values of two arrays, -1 .. 1; 0 for a map that is the same everywhere."""
    a = a - a.mean()
    b = b - b.mean()
    norm = float(np.sqrt((a * a).sum() * (b * b).sum()))
    if norm <= np.finfo(np.float64).tiny:
        return 0.0
    return float(np.clip((a * b).sum() / norm, -1.0, 1.0))


MapValues = Mapping[int, Mapping[str, Mapping[str, float]]]
"""Number of an image -> label of an explainer -> values of the map of its first question, by figure."""


def numbers_in(values: MapValues, label: str, names: Sequence[str]) -> Numbers:
    """Return the numbers of a label in sanity checks or curves; NaN for values that an image lacks."""
    rows = [by_label[label] for by_label in values.values()]
    return Numbers(
        values={name: np.array([row.get(name, np.nan) for row in rows], np.float64) for name in names},
        images=np.array([*values], np.int64),
    )


def figures_of(parts: Sequence[Numbers]) -> Estimates:
    """Return the figures that have a value."""
    figures: Estimates = {}
    for part in parts:
        figures |= mean_figures(part.values, part.images)
    return {name: figures[name] for name in FIGURES if name in figures}


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference(Estimate):
    """The difference of a figure from that of `REFERENCE`; `mark` is "+" or "-" if it is significant."""

    mark: str = ""

    @property
    def p(self) -> float:
        """The p-value, by a normal law with the width of the interval: 2,000 resamples give none below 0.0005."""
        normal = NormalDist()
        deviation = (self.high - self.low) / (2 * normal.inv_cdf((1 + LEVEL) / 2))
        return 2 * normal.cdf(-abs(self.value) / deviation) if deviation else 0.0


def differences_of(parts: Sequence[Numbers], reference: Sequence[Numbers]) -> dict[str, Difference]:
    """Return the differences from another contender, phrase by phrase.

    The interval is NaN where the values belong to fewer than `FEWEST_IMAGES` images.
    """
    differences: dict[str, Difference] = {}
    for part, reference_part in zip(parts, reference, strict=True):
        values = {name: part.values[name] - reference_part.values[name] for name in part.values}
        for name, figure in mean_figures(values, part.images).items():
            images = np.unique(part.images[~np.isnan(values[name])])
            has_interval = images.size >= FEWEST_IMAGES
            low = figure.low if has_interval else math.nan
            high = figure.high if has_interval else math.nan
            differences[name] = Difference(value=figure.value, low=low, high=high, n=figure.n)
    return {name: differences[name] for name in FIGURES if name in differences}


def mark_differences(rows: Sequence[Mapping[str, Difference]]) -> list[dict[str, Difference]]:
    """Return the same differences with their marks, by Holm's correction at `LEVEL` over all rows."""
    candidates = sorted(
        (difference.p, row, name)
        for row, differences in enumerate(rows)
        for name, difference in differences.items()
        if not math.isnan(difference.low) and difference.value
    )
    marked = [dict(differences) for differences in rows]
    for rank, (p, row, name) in enumerate(candidates):
        if p > (1 - LEVEL) / (len(candidates) - rank):
            break
        difference = marked[row][name]
        marked[row][name] = replace(difference, mark="+" if difference.value > 0 else "-")
    return marked


@dataclass(frozen=True, slots=True, kw_only=True)
class CosineAgreement:
    """The cosine that an explainer explains beside that of the whole image tower, over all phrases.

    Attributes:
        correlation: None if one of them is constant.
        mean_distance: Mean size of the difference.
    """

    correlation: float | None
    mean_distance: float


def cosine_agreement(maps: Sequence[Sequence[HeatMap]], cosines: Sequence[Floats]) -> CosineAgreement:
    """Compare `HeatMap.similarity` of the maps of each image with the image tower's cosines."""
    explained_cosines = np.array([heat_map.similarity for image_maps in maps for heat_map in image_maps])
    true = np.concatenate(cosines)
    varies = explained_cosines.std() > 0 and true.std() > 0
    return CosineAgreement(
        correlation=float(np.corrcoef(explained_cosines, true)[0, 1]) if varies else None,
        mean_distance=float(np.abs(explained_cosines - true).mean()),
    )
