"""`source.kind: crops`: a random grid for each image, as CLIPSelf cuts it (Wu and others, ICLR 2024, 2310.01403)."""

from __future__ import annotations

from typing import ClassVar, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from stages.contract.records import Record
from stages.sources.grid import grid_boxes
from stages.sources.naming import CandidateBox, NamedBoxes, NamedBoxesConfig

_LEAST_SIDE_PX: Final = 8
"""CLIPSelf leaves out crops below 8 x 8 pixels."""


class CropSourceConfig(NamedBoxesConfig):
    """Crops of a random grid, each called by its best phrase."""

    kind: Literal["crops"] = "crops"

    max_split: int = Field(
        6, ge=1, le=32, description="Most parts along a side, drawn for each image. CLIPSelf's is 6."
    )
    max_crops: int = Field(20, ge=1, le=1024, description="Most crops of an image, drawn from the grid's.")
    seed: int = Field(
        0, ge=0, lt=2**32, description="Seed of the grids, each of which depends on it and the sample's id alone."
    )


class CropSource(NamedBoxes[CropSourceConfig]):
    """The parts of a grid of m x n, drawn among those with m and n up to `max_split` and neither twice the other.

    CLIPSelf compares crops with themselves and has no text. Here each gets its best phrase, so that the rows are those
    of the other sources; a recipe that needs no text leaves it alone.
    """

    config_type = CropSourceConfig
    regions_come_from: ClassVar[str] = "random grids, each crop called by the phrase that CLIP finds nearest to it"

    def candidates(self, record: Record, canvas: NDArray[np.uint8]) -> list[CandidateBox]:
        """See `NamedBoxes.candidates`: row by row."""
        draw = np.random.default_rng([self.config.seed, record.sample.id])
        splits = splits_up_to(self.config.max_split)
        rows, columns = splits[int(draw.integers(len(splits)))]
        boxes = [
            box
            for box in grid_boxes(canvas.shape[:2], rows, columns)
            if min(box[2] - box[0], box[3] - box[1]) >= min(_LEAST_SIDE_PX, *canvas.shape[:2])
        ]
        if len(boxes) > self.config.max_crops:
            chosen = sorted(draw.choice(len(boxes), self.config.max_crops, replace=False).tolist())
            boxes = [boxes[number] for number in chosen]
        return [CandidateBox(box) for box in boxes]


def splits_up_to(most: int) -> list[tuple[int, int]]:
    """Return rows and columns of all grids up to `most`, neither more than twice the other.

    >>> splits_up_to(2)
    [(1, 1), (1, 2), (2, 1), (2, 2)]
    """
    return [
        (rows, columns)
        for rows in range(1, most + 1)
        for columns in range(1, most + 1)
        if max(rows, columns) <= 2 * min(rows, columns)
    ]
