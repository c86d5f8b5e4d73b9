"""`source.kind: grid`: the blocks of a grid over the image, as PTP cuts it (Wang and others, CVPR 2023, 2212.09737)."""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from stages.contract.records import Record
from stages.sources.naming import CandidateBox, NamedBoxes, NamedBoxesConfig


class GridSourceConfig(NamedBoxesConfig):
    """Blocks of a grid, each called by its best phrase."""

    kind: Literal["grid"] = "grid"

    blocks: int = Field(3, ge=1, le=32, description="Blocks along each side. PTP takes 3.")


class GridSource(NamedBoxes[GridSourceConfig]):
    """Every block gets its best phrase.

    PTP asks an object detector for the things in each block, or CLIP with the names of a vocabulary. This is the
    latter, with the phrases of the captions, or a pool, in place of the vocabulary. PTP writes the answer into a prompt
    ("The block 4 has a dog"); here it is a region.
    """

    config_type = GridSourceConfig
    regions_come_from: ClassVar[str] = "the blocks of a grid, each called by the phrase that CLIP finds nearest to it"

    def candidates(self, record: Record, canvas: NDArray[np.uint8]) -> list[CandidateBox]:
        """See `NamedBoxes.candidates`: row by row."""
        return [CandidateBox(box) for box in grid_boxes(canvas.shape[:2], self.config.blocks, self.config.blocks)]


def grid_boxes(size: tuple[int, ...], rows: int, columns: int) -> list[tuple[int, int, int, int]]:
    """Return the blocks (x0, y0, x1, y1) of a grid over `size` (height, width), row by row, without empty ones."""
    height, width = size
    tops = [round(row * height / rows) for row in range(rows + 1)]
    lefts = [round(column * width / columns) for column in range(columns + 1)]
    return [(x0, y0, x1, y1) for y0, y1 in pairwise(tops) for x0, x1 in pairwise(lefts) if x0 < x1 and y0 < y1]
