"""The ladder of a map: where its parts lie when it is cut at many heights, see `scores/learned_box.py`."""

from __future__ import annotations

from typing import Final

import numpy as np

from phrasebox.stages.contract.geometry import scaled_sides
from phrasebox.stages.contract.levels import LEVELS
from phrasebox.stages.contract.values import Levels, Plane
from phrasebox.stages.regions.cut_rules import parts_of_cuts
from phrasebox.stages.regions.fine_map import refine_grid
from phrasebox.stages.scores.fits import Floats
from phrasebox.stages.scores.learned_box import LADDER_CUTS, QUANTILES, Ladder

SIDE: Final = 44  # samples on the longer side of the map that is cut

KEEP_SHARE: Final = 0.1  # least heat of a part in the box around all parts, as a share of the main part's

MOST_PARTS: Final = 9.0  # more parts of a cut say no more


def ladder_of(levels: Levels, shift_cells: float) -> Ladder:
    """Cut a map in levels at all heights; its highest level is `LEVELS`. See `HeatMap.shift_cells`."""
    h, w = levels.shape
    fine = refine_grid(levels, scaled_sides((h, w), SIDE / max(h, w)), shift_cells)
    return Ladder(*_cut(fine), _profile(fine))


def _cut(fine: Plane) -> tuple[Floats, Floats]:
    """Return `Ladder.boxes` and `Ladder.parts`."""
    h, w = fine.shape
    cuts = len(LADDER_CUTS)
    cut_parts = parts_of_cuts(fine, LADDER_CUTS * LEVELS)
    labels, owner, energy, boxes_xywh, area = cut_parts
    left, top, width, height = boxes_xywh
    edges = np.stack([left, top, left + width, top + height])
    places, main = cut_parts.main_parts()
    most = np.zeros(cuts)
    most[places] = energy[main]
    is_warm = energy >= KEEP_SHARE * most[owner]
    low = np.full((cuts, 2), max(h, w))
    high = np.zeros((cuts, 2), np.intp)
    np.minimum.at(low, owner[is_warm], edges[:2, is_warm].T)
    np.maximum.at(high, owner[is_warm], edges[2:, is_warm].T)
    row, column = divmod(int(fine.argmax()), w)
    boxes = np.tile(np.array([column, row, column + 1, row + 1]), (2, cuts, 1))
    boxes[0, places] = edges[:, main].T
    boxes[1, places] = np.hstack([low, high])[places]
    parts = np.zeros((cuts, 5))
    sums = np.zeros((h + 1, w + 1))
    sums[1:, 1:] = fine.cumsum(axis=0, dtype=np.float64).cumsum(axis=1)
    x0, y0, x1, y1 = edges[:, main]
    holds_peak = labels[places, row, column] == main + 1
    parts[places] = np.column_stack([
        energy[main] / sums[-1, -1],
        area[main] / fine.size,
        (sums[y1, x1] - sums[y0, x1] - sums[y1, x0] + sums[y0, x0]) / sums[-1, -1],
        np.minimum(np.bincount(owner, minlength=cuts)[places], MOST_PARTS),
        holds_peak,
    ])  # fmt: skip
    return boxes / np.array([w, h, w, h]), parts


def _profile(fine: Plane) -> Floats:
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
    row, column = divmod(int(fine.argmax()), w)
    warm = shares[shares > 0]
    entropy = -float(warm @ np.log(warm)) / np.log(max(2, fine.size))
    warm_share = float((fine > LEVELS / 2).mean())
    profile += [(column + 0.5) / w, (row + 0.5) / h, entropy, float(fine.mean()) / LEVELS, warm_share]
    return np.array(profile)
