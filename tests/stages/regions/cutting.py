"""One heat map cut alone, as tests want it."""

import numpy as np

from phrasebox.stages.contract.records import HeatMap
from phrasebox.stages.regions.colours import Canvas
from phrasebox.stages.regions.config import RegionsConfig
from phrasebox.stages.regions.contours import MapRegions, regions_of_maps
from phrasebox.stages.regions.cut import Cutter
from phrasebox.stages.regions.maker import levels_of_map
from phrasebox.stages.regions.parts import ObjectMap
from phrasebox.stages.scores.learned_box import INPUTS, BoxModel, UsualBoxes

USUAL = UsualBoxes(
    mean=(0.5, 0.5, -1.0, -1.0), words=("=dog", "red"), terms=np.array([[0.1, 0, 0, 0], [0, 0.2, 0, 0]])
)
ENDS = ((INPUTS + 1) * 64, (INPUTS + 1) * 64 + 65 * 64)


def fit_that(moves: tuple[float, float, float, float]) -> BoxModel:
    """A fit whose only network changes the logits of centre and sides by these numbers, whatever it sees."""
    network = np.zeros(ENDS[1] + 65 * 4)
    network[-4:] = moves
    return BoxModel(usual=USUAL, mean=np.zeros(INPUTS), scale=np.ones(INPUTS), networks=(network,))


def object_map(
    heat_map: HeatMap, size_hw: tuple[int, int] = (40, 40), limit: int = 1, canvas: Canvas | None = None
) -> ObjectMap:
    """A heat map that has heat, ready to be cut."""
    levels = levels_of_map(heat_map)
    assert levels is not None
    return ObjectMap(
        levels=levels,
        shift_cells=heat_map.shift_cells,
        size_hw=size_hw,
        limit=limit,
        canvas=canvas,
    )


def regions_of(
    heat_map: HeatMap,
    size_hw: tuple[int, int],
    limit: int,
    config: RegionsConfig,
    canvas: Canvas | None = None,
) -> MapRegions:
    [regions] = regions_of_maps([object_map(heat_map, size_hw, limit, canvas)], Cutter(config))
    return regions


def mask_of(*rows: str) -> np.ndarray:
    """A mask drawn with # and dots."""
    return np.array([[letter == "#" for letter in row] for row in rows])


def share(mask: np.ndarray, *parts: tuple[slice, slice]) -> float:
    """IoU of a mask with parts of its image."""
    truth = np.zeros(mask.shape, bool)
    for part in parts:
        truth[part] = True
    return float((mask & truth).sum() / (mask | truth).sum())
