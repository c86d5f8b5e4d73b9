"""Grids over the image: `source.kind: grid`, the same for all images, and `crops`, a random one for each.

PTP (Wang and others, CVPR 2023, arXiv 2212.09737) cuts the former, CLIPSelf (Wu and others,
ICLR 2024, arXiv 2310.01403) the latter.
"""

from __future__ import annotations

from itertools import pairwise, product
from typing import Final, Literal

import numpy as np
from pydantic import Field

from phrasebox.stages.contract.records import Record
from phrasebox.stages.contract.values import PixelBox, Rgb
from phrasebox.stages.sources.naming import CandidateBox, NamedBoxes, NamedBoxesConfig

MAX_CROPS: Final = 20  # most crops of an image, drawn from the grid's; CLIPSelf's

_LEAST_SIDE_PX: Final = 8
"""CLIPSelf leaves out crops below 8 x 8 pixels."""


class GridSourceConfig(NamedBoxesConfig):
    """Blocks of a grid, each called by its best phrase."""

    kind: Literal["grid"] = "grid"
    blocks: int = Field(3, ge=1, le=32, description="Blocks along each side. PTP takes 3.")


class GridSource(NamedBoxes[GridSourceConfig]):
    """Every block gets its best phrase.

    PTP asks an object detector for the objects in each block, or CLIP with the names of a
    vocabulary. This is the latter, with the phrases of the captions, and a pool, in place of the
    vocabulary. PTP writes the name into a prompt ("The block 4 has a dog"); here it is a region.
    """

    config_type = GridSourceConfig
    regions_come_from = "the blocks of a grid, each called by the phrase that CLIP finds nearest to it"

    def candidates(self, record: Record, canvas: Rgb) -> list[CandidateBox]:
        """See `NamedBoxes.candidates`."""
        return [
            CandidateBox(box)
            for box in grid_boxes(canvas.shape[:2], self.config.blocks, self.config.blocks)
        ]


class CropSourceConfig(NamedBoxesConfig):
    """Crops of a random grid, each called by its best phrase."""

    kind: Literal["crops"] = "crops"
    max_split: int = Field(
        6, ge=1, le=32, description="Most parts along a side, drawn for each image. CLIPSelf's is 6."
    )


class CropSource(NamedBoxes[CropSourceConfig]):
    """The parts of a random grid of m x n, with m and n up to `max_split` and neither more than twice the other.

    The grid depends on the sample's id alone.

    CLIPSelf compares crops with themselves and has no text. Here each gets its best phrase, so
    that the rows are those of the other sources. `finetune --recipe clipself` ignores it.
    """

    config_type = CropSourceConfig
    regions_come_from = "random grids, each crop called by the phrase that CLIP finds nearest to it"

    def candidates(self, record: Record, canvas: Rgb) -> list[CandidateBox]:
        """See `NamedBoxes.candidates`."""
        rng = np.random.default_rng([0, record.sample.id])
        return [CandidateBox(box) for box in draw_crops(canvas.shape[:2], self.config.max_split, rng)]


def draw_crops(size: tuple[int, ...], max_split: int, rng: np.random.Generator) -> list[PixelBox]:
    """Return the parts (x0, y0, x1, y1) of a random grid over `size` (height, width), `MAX_CROPS` of them at most."""
    splits = splits_up_to(max_split)
    rows, columns = splits[int(rng.integers(len(splits)))]
    least_px = min(_LEAST_SIDE_PX, *size)
    boxes = grid_boxes(size, rows, columns)
    boxes = [box for box in boxes if min(box[2] - box[0], box[3] - box[1]) >= least_px]
    if len(boxes) > MAX_CROPS:
        numbers = sorted(rng.choice(len(boxes), MAX_CROPS, replace=False).tolist())
        boxes = [boxes[number] for number in numbers]
    return boxes


def splits_up_to(most: int) -> list[tuple[int, int]]:
    """Return rows and columns of all grids up to `most`, neither more than twice the other."""
    sides = range(1, most + 1)
    return [
        (rows, columns)
        for rows, columns in product(sides, sides)
        if max(rows, columns) <= 2 * min(rows, columns)
    ]


def grid_boxes(size: tuple[int, ...], rows: int, columns: int) -> list[PixelBox]:
    """Return the blocks (x0, y0, x1, y1) of a grid over `size` (height, width), row by row, without empty ones.

    >>> grid_boxes((4, 6), rows=1, columns=2)
    [(0, 0, 3, 4), (3, 0, 6, 4)]
    """
    tops, lefts = (
        [round(part * side / parts) for part in range(parts + 1)]
        for side, parts in zip(size, (rows, columns), strict=True)
    )
    return [
        (x0, y0, x1, y1) for y0, y1 in pairwise(tops) for x0, x1 in pairwise(lefts) if x0 < x1 and y0 < y1
    ]
