"""The plain values of a dataset's rows, what they hold, and regions as `supervision.Detections`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from phrasebox.stages.contract.errors import ConfigError, InputError
from phrasebox.stages.contract.masks import decode_mask
from phrasebox.stages.contract.schema import rle_of
from phrasebox.stages.contract.values import Bools, Floats32

Row = dict[str, Any]
"""A row of a dataset: its values by column."""

Annotation = dict[str, Any]
"""An entry of the column `annotations`: one region of one phrase, its values by field."""


def absent_phrases(row: Row) -> list[str]:
    """Return the absent phrases of a row, each once."""
    return list(dict.fromkeys(entry["phrase"] for entry in row["absent"]))


def mask_of(region: Annotation) -> Bools:
    """Return the mask (H, W) of a region. Raise InputError if it is damaged."""
    try:
        return decode_mask(rle_of(region))
    except ValueError as error:
        raise InputError(
            f"the mask of annotation {region['id']} is damaged ({error}); phrasebox validate shows what else is"
        ) from error


def detections(
    boxes_xyxy_px: Floats32,
    masks: Bools,
    scores: Floats32,
    class_ids: Sequence[int],
    **data: Sequence[Any],
) -> Any:
    """Return `supervision.Detections` of n regions.

    Boxes (n, 4) are half open; masks are (n, H, W), scores (n,) 0 .. 1.

    `data` has n values for each key; `class_name` is the one that supervision shows.

    Raise ConfigError if supervision is not installed.
    """
    try:
        import supervision  # noqa: PLC0415  an extra
    except ImportError as error:
        raise ConfigError('to_supervision needs supervision: pip install -e ".[supervision]"') from error
    return supervision.Detections(
        xyxy=boxes_xyxy_px,
        mask=masks,
        confidence=scores,
        class_id=np.array(class_ids, np.int64),
        data={name: np.array(values) for name, values in data.items()},
    )


def row_detections(row: Row) -> Any:
    """Return the regions of a dataset's row as `supervision.Detections`.

    Raise ConfigError as `detections`.

    The class is the phrase, its id the `category_id` of the dataset; `data` also has the `head`
    and the `region_id` of each region.
    """
    regions = row["annotations"]

    def values_of(name: str) -> list[Any]:
        return [region[name] for region in regions]

    boxes = np.array(values_of("bbox"), np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    masks = [decode_mask(rle_of(region)) for region in regions]
    return detections(
        boxes,
        np.array(masks, np.bool_).reshape(len(masks), row["height"], row["width"]),
        np.array(values_of("score"), np.float32),
        values_of("category_id"),
        class_name=values_of("phrase"),
        head=values_of("head"),
        region_id=values_of("id"),
    )
