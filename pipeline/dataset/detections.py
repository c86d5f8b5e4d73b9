"""Regions of one image as `supervision.Detections`, for its annotators, metrics and trackers (extra `supervision`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.contract.errors import ConfigError
from stages.contract.masks import decode_mask
from stages.contract.records import Rle


def detections(
    boxes_xyxy_px: NDArray[np.float32],
    masks: NDArray[np.bool_],
    scores: NDArray[np.float32],
    class_ids: Sequence[int],
    class_names: Sequence[str],
    **data: Sequence[Any],
) -> Any:
    """Return `supervision.Detections` of n regions; `data` stands beside the names of the classes in its `data`.

    Args:
        boxes_xyxy_px: (n, 4), half open.
        masks: (n, H, W).
        scores: (n,), 0 .. 1, the confidence.
        class_ids: n.
        class_names: n, for the key "class_name".
        **data: n values each.

    Raise ConfigError if supervision is not installed.
    """
    try:
        import supervision  # noqa: PLC0415  an extra
    except ImportError as error:
        raise ConfigError('to_supervision needs supervision: pip install "phrasebox[supervision]"') from error
    return supervision.Detections(
        xyxy=boxes_xyxy_px,
        mask=masks,
        confidence=scores,
        class_id=np.array(class_ids, np.int64),
        data={name: np.array(values) for name, values in {"class_name": class_names, **data}.items()},
    )


def row_detections(row: Mapping[str, Any]) -> Any:
    """Return the regions of a dataset's row as `supervision.Detections`. Raise ConfigError as `detections`.

    The class is the phrase, whose id is the category of the dataset; `data` also has the `head` and the `region_id` of
    each region.
    """
    regions = row["annotations"]

    def each(name: str) -> list[Any]:
        return [region[name] for region in regions]

    boxes = np.array(each("bbox"), np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    masks = [decode_mask(Rle(size_hw=tuple(rle["size"]), counts=rle["counts"])) for rle in each("segmentation")]
    return detections(
        boxes,
        np.array(masks, np.bool_).reshape(len(masks), row["height"], row["width"]),
        np.array(each("score"), np.float32),
        each("category_id"),
        each("phrase"),
        head=each("head"),
        region_id=each("id"),
    )
