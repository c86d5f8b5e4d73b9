"""Queries made by hand."""

from typing import Any

import numpy as np

from phrasebox.pipeline.evaluate.matching import Answer, ImageHeat, Query
from phrasebox.stages.contract.geometry import Box
from phrasebox.stages.contract.masks import encode_mask
from phrasebox.stages.contract.records import HeatMap, Rle
from phrasebox.stages.truth.ground_truth import TruthTarget


def mask_of(*boxes: Box, size_hw: tuple[int, int] = (8, 8)) -> Rle:
    """A mask that fills boxes with whole-number edges."""
    mask = np.zeros(size_hw, np.bool_)
    for x, y, w, h in boxes:
        mask[int(y) : int(y + h), int(x) : int(x + w)] = True
    return encode_mask(mask)


def target_of(
    *boxes: Box, size_hw: tuple[int, int] = (8, 8), masked: bool = True, **fields: Any
) -> TruthTarget:
    """Things that fill their boxes."""
    mask = mask_of(*boxes, size_hw=size_hw) if masked else None
    return TruthTarget(
        **{"phrase": "car", "match": "phrase", "boxes_xywh_px": boxes, "mask": mask, **fields}
    )


def answer_of(
    box: Box, score: float = 0.5, size_hw: tuple[int, int] = (8, 8), similarity: float = 0.2
) -> Answer:
    return Answer(box_xywh_px=box, mask=mask_of(box, size_hw=size_hw), score=score, similarity=similarity)


def map_of(values: Any, text: str = "car", fault: str = "") -> HeatMap:
    return HeatMap(text=text, values=np.array(values, np.float32), similarity=0.2, fault=fault)


def query_of(
    target: TruthTarget | None,
    *answers: Answer,
    heat: HeatMap | None = None,
    size_hw: tuple[int, int] = (8, 8),
    image: int = 1,
    phrase: str | None = "car",
    **fields: Any,
) -> Query:
    regions = tuple(sorted(answers, key=lambda answer: -answer.score))
    image_heat = ImageHeat(heat, size_hw) if heat is not None and not heat.fault else None
    return Query(
        image=image,
        size_hw=size_hw,
        phrase=phrase,
        target=target,
        answers=regions,
        heat=image_heat,
        **fields,
    )
