"""One heat map cut alone, as tests want it."""

import numpy as np

from stages.contract.records import HeatMap
from stages.regions.colours import Canvas
from stages.regions.config import RegionsConfig
from stages.regions.cut import MapRegions, regions_of_map
from stages.regions.maker import levels_of_map
from stages.regions.parts import ThingMap


def thing_map(
    heat_map: HeatMap, size_hw: tuple[int, int] = (40, 40), limit: int = 1, canvas: Canvas | None = None
) -> ThingMap:
    """A heat map that has heat, ready to be cut."""
    levels = levels_of_map(heat_map)
    assert levels is not None
    return ThingMap(
        levels=levels,
        shift_cells=heat_map.shift_cells,
        similarity=heat_map.similarity,
        size_hw=size_hw,
        limit=limit,
        canvas=canvas,
    )


def regions_of(
    heat_map: HeatMap, size_hw: tuple[int, int], limit: int, config: RegionsConfig, canvas: Canvas | None = None
) -> MapRegions:
    return regions_of_map(thing_map(heat_map, size_hw, limit, canvas), config)


def mask_of(*rows: str) -> np.ndarray:
    """A mask drawn with # and dots."""
    return np.array([[letter == "#" for letter in row] for row in rows])
