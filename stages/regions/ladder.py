"""The ladder of a map: where its parts lie when it is cut at many heights, see `scores/learned_box.py`."""

from __future__ import annotations

from collections.abc import Sequence
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


def ladders_of(maps: Levels, shifts_cells: Sequence[float]) -> list[Ladder]:
    """Cut maps in levels, uint8 (n, h, w), at all heights; the highest level of each is `LEVELS`.

    See `HeatMap.shift_cells`.
    """
    h, w = maps.shape[1:]
    fine_hw = scaled_sides((h, w), SIDE / max(h, w))
    fine = np.stack([
        refine_grid(levels, fine_hw, shift) for levels, shift in zip(maps, shifts_cells, strict=True)
    ])  # fmt: skip
    parts = parts_of_cuts(fine, LADDER_CUTS * LEVELS)
    main = parts.main_parts()
    return list(map(Ladder, _boxes_of(fine, parts, main), _figures_of(fine, parts, main), _profiles(fine)))


def _boxes_of(fine: Plane, parts: CutParts, main: MainParts) -> Floats:
    """Return `Ladder.boxes` of each map (n, 2, cuts, 4).

    Where nothing lies above a cut both boxes are the highest sample.
    """
    h, w = fine.shape[1:]
    rows, columns = _peaks(fine)
    peaks = np.stack([columns, rows, columns + 1, rows + 1], axis=-1)
    boxes = np.tile(peaks[:, None, None], (1, 2, len(LADDER_CUTS), 1))
    boxes[main.maps, 0, main.cuts] = parts.edges[main.numbers]
    boxes[main.maps, 1, main.cuts] = _boxes_around_warm(parts, main)[main.maps, main.cuts]
    shares: Floats = boxes / np.array([w, h, w, h])
    return shares


def _boxes_around_warm(parts: CutParts, main: MainParts) -> Integers:
    """Return the box around the parts of each cut that are not far colder than its main part (`KEEP_SHARE`).

    They are (n, cuts, 4), x0, y0, x1, y1 in samples; of a cut with nothing above they mean nothing.
    """
    n, cuts, h, w = parts.labels.shape
    most = np.zeros((n, cuts))
    most[main.maps, main.cuts] = parts.energy[main.numbers]
    is_warm = parts.energy >= KEEP_SHARE * most[parts.maps, parts.cuts]
    places = parts.maps[is_warm], parts.cuts[is_warm]
    edges = parts.edges[is_warm]
    low = np.full((n, cuts, 2), max(h, w))
    high = np.zeros((n, cuts, 2), np.int64)
    np.minimum.at(low, places, edges[:, :2])
    np.maximum.at(high, places, edges[:, 2:])
    return np.concatenate([low, high], axis=-1)


def _figures_of(fine: Plane, parts: CutParts, main: MainParts) -> Floats:
    """Return `Ladder.parts` of each map (n, cuts, 5); zeros where nothing lies above a cut."""
    n, h, w = fine.shape
    cuts = len(LADDER_CUTS)
    sums = _sums_above_left(fine)
    total = sums[main.maps, -1, -1]
    x0, y0, x1, y1 = parts.edges[main.numbers].T
    of = main.maps
    heat_in_box = sums[of, y1, x1] - sums[of, y0, x1] - sums[of, y1, x0] + sums[of, y0, x0]
    counts = np.bincount(parts.maps * cuts + parts.cuts, minlength=n * cuts)
    rows, columns = _peaks(fine)
    figures = np.zeros((n, cuts, 5))
    figures[main.maps, main.cuts] = np.stack([
        parts.energy[main.numbers] / total,
        parts.area[main.numbers] / (h * w),
        heat_in_box / total,
        np.minimum(counts[main.maps * cuts + main.cuts], MOST_PARTS),
        parts.labels[main.maps, main.cuts, rows[of], columns[of]] == main.numbers + 1,
    ], axis=-1)  # fmt: skip
    return figures


def _sums_above_left(fine: Plane) -> Floats:
    """Return the sum (n, h + 1, w + 1) of all heat of each map above and left of each corner of a sample."""
    n, h, w = fine.shape
    sums = np.zeros((n, h + 1, w + 1))
    sums[:, 1:, 1:] = fine.cumsum(axis=1, dtype=np.float64).cumsum(axis=2)
    return sums


def _peaks(fine: Plane) -> tuple[Integers, Integers]:
    """Return rows (n,) and columns (n,) of the highest sample of each map, of several the first."""
    n, _, w = fine.shape
    rows, columns = np.divmod(fine.reshape(n, -1).argmax(axis=1), w)
    return rows, columns


def _profiles(fine: Plane) -> Floats:
    """Return `Ladder.profile` of each map (n, 27)."""
    n, h, w = fine.shape
    shares = fine / fine.sum(axis=(1, 2), dtype=np.float64, keepdims=True)
    columns_of: list[Floats] = []
    for axis, samples in ((1, w), (2, h)):
        along = shares.sum(axis=axis)
        centres = (np.arange(samples) + 0.5) / samples
        edges = np.arange(samples + 1) / samples
        sums = np.concatenate([np.zeros((n, 1)), along.cumsum(axis=1)], axis=1)
        mean = along @ centres
        spread = (along * (centres - mean[:, None]) ** 2).sum(axis=1) ** 0.5
        columns_of += [*np.array([np.interp(QUANTILES, each, edges) for each in sums]).T, mean, spread]
    rows, columns = _peaks(fine)
    flat = shares.reshape(n, -1)
    logs = np.log(flat, where=flat > 0, out=np.zeros_like(flat))
    entropy = -(flat * logs).sum(axis=1) / np.log(max(2, h * w))
    warm_share = (fine > LEVELS / 2).mean(axis=(1, 2))
    mean_heat = fine.mean(axis=(1, 2)) / LEVELS
    columns_of += [(columns + 0.5) / w, (rows + 0.5) / h, entropy, mean_heat, warm_share]
    return np.stack(columns_of, axis=1)
