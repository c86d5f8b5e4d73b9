"""Samples -> a batch in the form that CLIP training and RoIAlign take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor

_EMPTY: Final = {
    "boxes_xyxy_px": torch.zeros(0, 4),
    "scores": torch.zeros(0),
    "similarities": torch.zeros(0),
    "spans": torch.zeros(0, 2, dtype=torch.int64),
    "caption_indices": torch.zeros(0, dtype=torch.int64),
    "region_ids": torch.zeros(0, dtype=torch.int64),
}
"""What every sample has for each region."""


def collate_regions(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A `collate_fn` for DataLoader: makes a batch of B images with R regions in total.

    The regions of all images follow each other: nothing is padded, and an image may have any number of regions.

        images            uint8 (B, 3, H, W), or a list of B if they differ in size or are no tensors
        ids               int64 (B,)
        sample_ids, file_names, captions   lists of B
        sizes_hw, original_sizes_hw        int64 (B, 2), px
        region_counts     int64 (B,), R in total: `torch.split(batch["scores"], batch["region_counts"].tolist())`
        rois              float32 (R, 5): image of the batch, x0, y0, x1, y1 in px of `sizes_hw`, half open, as
                          `torchvision.ops.roi_align` takes them, with `aligned=True`
        batch_indices     int64 (R,), image of the batch
        scores, similarities               float32 (R,)
        spans             int64 (R, 2), [start, end) characters of `captions[batch_indices[r]][caption_indices[r]]`
        caption_indices, region_ids        int64 (R,)
        heads             list of R
        phrases           list of U different phrases, in the order of their first regions
        phrase_indices    int64 (R,): region r has the phrase `phrases[phrase_indices[r]]`
        tokens            int64 (U, context), if the samples have them
        grid_masks        float32 (R, grid_h, grid_w), 0 .. 1, if the samples have them
        masks             bool (R, H, W), or a list of B (n, H, W) if the images differ in size; if there are any
        errors, error_details              lists of B, if failed rows are kept

    An image may hold a phrase several times, and images may share one: `phrases` holds each once, for a contrastive
    loss to tell apart. An empty list of samples gives a batch with B = 0 without the optional entries.
    """
    counts = [len(sample["scores"]) for sample in samples]
    owners = torch.arange(len(samples)).repeat_interleave(_whole(counts))
    texts = [phrase for sample in samples for phrase in sample["phrases"]]
    firsts: dict[str, int] = {}
    for place, text in enumerate(texts):
        firsts.setdefault(text, place)
    numbers = {text: number for number, text in enumerate(firsts)}
    boxes = _joined(samples, "boxes_xyxy_px")
    batch: dict[str, Any] = {
        "ids": _whole([sample["id"] for sample in samples]),
        "sample_ids": [sample["sample_id"] for sample in samples],
        "file_names": [sample["file_name"] for sample in samples],
        "captions": [sample["captions"] for sample in samples],
        "sizes_hw": _whole([sample["size_hw"] for sample in samples]).reshape(-1, 2),
        "original_sizes_hw": _whole([sample["original_hw"] for sample in samples]).reshape(-1, 2),
        "region_counts": _whole(counts),
        "rois": torch.cat([owners[:, None].to(boxes.dtype), boxes], dim=1),
        "batch_indices": owners,
        **{name: _joined(samples, name) for name in _EMPTY if name != "boxes_xyxy_px"},
        "heads": [head for sample in samples for head in sample["heads"]],
        "phrases": list(firsts),
        "phrase_indices": _whole([numbers[text] for text in texts]),
    }
    held = samples[0] if samples else {}
    if "tokens" in held:
        batch["tokens"] = torch.cat([sample["tokens"] for sample in samples])[_whole(list(firsts.values()))]
    if "grid_masks" in held:
        batch["grid_masks"] = torch.cat([sample["grid_masks"] for sample in samples])
    if "masks" in held:
        batch["masks"] = _if_alike([sample["masks"] for sample in samples], torch.cat)
    if "image" in held:
        batch["images"] = _if_alike([sample["image"] for sample in samples], torch.stack)
    if "error" in held:
        batch["errors"] = [sample["error"] for sample in samples]
        batch["error_details"] = [sample["error_detail"] for sample in samples]
    return batch


def _joined(samples: Sequence[dict[str, Any]], name: str) -> Tensor:
    empty = _EMPTY[name]
    # Plain tensors: the subclasses of torchvision's transforms would spread to the batch.
    return torch.cat([empty, *(sample[name].as_subclass(Tensor) for sample in samples)])


def _if_alike(values: list[Any], join: Callable[[list[Tensor]], Tensor]) -> Any:
    """The values joined if all are tensors whose last two sides agree, else the list."""
    if not all(isinstance(value, Tensor) for value in values) or len({value.shape[-2:] for value in values}) > 1:
        return values
    return join([value.as_subclass(Tensor) for value in values])


def _whole(values: list[Any]) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)
