"""The ladder of a map: where its parts lie when it is cut at many heights, see `scores/learned_box.py`."""

from __future__ import annotations

from typing import Final

import numpy as np

from phrasebox.stages.contract.geometry import scaled_sides
from phrasebox.stages.contract.levels import LEVELS
from phrasebox.stages.contract.values import Floats, Integers, Levels, Plane
from phrasebox.stages.regions.cut_rules import CutParts, MainParts, parts_of_cuts
from phrasebox.stages.regions.fine_map import refine_grid
from phrasebox.stages.scores.learned_box import LADDER_CUTS, QUANTILES, Ladder

SIDE: Final = 44  # samples on the longer side of the map that is cut

KEEP_SHARE: Final = 0.1  # least heat of a part in the box around all parts, as a share of the main part's

MOST_PARTS: Final = 9.0  # more parts of a cut say no more


def ladder_of(levels: Levels, shift_cells: float) -> Ladder:
    """Cut a map in levels at all heights; its highest level is `LEVELS`. See `HeatMap.shift_cells`."""
    h, w = levels.shape
    fine = refine_grid(levels, scaled_sides((h, w), SIDE / max(h, w)), shift_cells)
    parts = parts_of_cuts(fine, LADDER_CUTS * LEVELS)
    main = parts.main_parts()
    return Ladder(_boxes_of(fine, parts, main), _figures_of(fine, parts, main), _profile(fine))


def _boxes_of(fine: Plane, parts: CutParts, main: MainParts) -> Floats:
    """Return `Ladder.boxes` (2, cuts, 4). Where nothing lies above a cut both boxes are the highest sample."""
    h, w = fine.shape
    row, column = _peak(fine)
    boxes = np.tile(np.array([column, row, column + 1, row + 1]), (2, len(LADDER_CUTS), 1))
    boxes[0, main.cuts] = parts.edges[main.numbers]
    boxes[1, main.cuts] = _boxes_around_warm(parts, main)[main.cuts]
    shares: Floats = boxes / np.array([w, h, w, h])
    return shares


def _boxes_around_warm(parts: CutParts, main: MainParts) -> Integers:
    """Return the box around the parts of each cut that are not far colder than its main part (`KEEP_SHARE`).

    They are (cuts, 4), x0, y0, x1, y1 in samples; of a cut with nothing above they mean nothing.
    """
    cuts, h, w = parts.labels.shape
    most = np.zeros(cuts)
    most[main.cuts] = parts.energy[main.numbers]
    is_warm = parts.energy >= KEEP_SHARE * most[parts.cuts]
    edges = parts.edges[is_warm]
    low = np.full((cuts, 2), max(h, w))
    high = np.zeros((cuts, 2), np.int64)
    np.minimum.at(low, parts.cuts[is_warm], edges[:, :2])
    np.maximum.at(high, parts.cuts[is_warm], edges[:, 2:])
    return np.hstack([low, high])


def _figures_of(fine: Plane, parts: CutParts, main: MainParts) -> Floats:
    """Return `Ladder.parts` (cuts, 5); zeros where nothing lies above a cut."""
    cuts = len(LADDER_CUTS)
    sums = _sums_above_left(fine)
    total = sums[-1, -1]
    x0, y0, x1, y1 = parts.edges[main.numbers].T
    heat_in_box = sums[y1, x1] - sums[y0, x1] - sums[y1, x0] + sums[y0, x0]
    figures = np.zeros((cuts, 5))
    figures[main.cuts] = np.column_stack([
        parts.energy[main.numbers] / total,
        parts.area[main.numbers] / fine.size,
        heat_in_box / total,
        np.minimum(np.bincount(parts.cuts, minlength=cuts)[main.cuts], MOST_PARTS),
        parts.labels[main.cuts, *_peak(fine)] == main.numbers + 1,
    ])  # fmt: skip
    return figures


def _sums_above_left(fine: Plane) -> Floats:
    """Return the sum (h + 1, w + 1) of all heat above and left of each corner of a sample."""
    h, w = fine.shape
    sums = np.zeros((h + 1, w + 1))
    sums[1:, 1:] = fine.cumsum(axis=0, dtype=np.float64).cumsum(axis=1)
    return sums


def _peak(fine: Plane) -> tuple[int, int]:
    """Return row and column of the highest sample, of several the first."""
    place: tuple[int, int] = divmod(int(fine.argmax()), fine.shape[1])
    return place


def _profile(fine: Plane) -> Floats:
    """Return `Ladder.profile` (27,)."""
    h, w = fine.shape
    shares = fine / fine.sum(dtype=np.float64)
    profile: list[float] = []
    for axis, samples in ((0, w), (1, h)):
        along = shares.sum(axis=axis)
        centres = (np.arange(samples) + 0.5) / samples
        mean = float(along @ centres)
        edges = np.arange(samples + 1) / samples
        profile += np.interp(QUANTILES, np.concatenate([[0.0], along.cumsum()]), edges).tolist()
        profile += [mean, float(along @ (centres - mean) ** 2) ** 0.5]
    row, column = _peak(fine)
    warm = shares[shares > 0]
    entropy = -float(warm @ np.log(warm)) / np.log(max(2, fine.size))
    warm_share = float((fine > LEVELS / 2).mean())
    profile += [(column + 0.5) / w, (row + 0.5) / h, entropy, float(fine.mean()) / LEVELS, warm_share]
    return np.array(profile)
