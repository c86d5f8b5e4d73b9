"""Contrast between the phrases of an image: each map minus what the others' maps show at the same place.

The maps of all phrases of an image share some heat: on whatever stands out, whichever phrase is asked for.
CLIP Surgery (Li et al., arXiv 2304.05653) calls it redundant features and subtracts their mean over the classes
from the tokens. Here it is done on the finished maps, so that it works with any explainer. With every map
divided by its largest value,

    H_i - strength * max over the others of H_j, not below 0

times the largest value of map i. Two maps of the same form only become fainter: phrases that
mean the same thing ("car" and "red car") do not erase each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from stages.contract.records import HeatMap


def contrasted(maps: Sequence[HeatMap], strength: float) -> list[HeatMap]:
    """Contrast the maps of one image's phrases with each other.

    Args:
        maps: Of one shape. Maps with a fault, and a map without others, stay as they are.
        strength: 0 <= strength < 1, so that no map becomes empty.
    """
    clear = [index for index, heat_map in enumerate(maps) if not heat_map.fault]
    out = list(maps)
    if strength == 0 or len(clear) < 2:
        return out
    peaks = [maps[index].values.max() for index in clear]
    shares = np.stack([maps[index].values / peak for index, peak in zip(clear, peaks, strict=True)])
    for row, index in enumerate(clear):
        others = np.delete(shares, row, axis=0).max(axis=0)
        values = np.maximum(shares[row] - np.float32(strength) * others, 0) * peaks[row]
        out[index] = replace(maps[index], values=values.astype(np.float32))
    return out
