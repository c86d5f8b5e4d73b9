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
"""Tensors of every sample, with a row for each region."""


def collate_regions(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Make a batch of B images with R regions in total: a `collate_fn` for DataLoader.

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

    An image may hold a phrase several times, and images may share one: `phrases` holds each once, so that a contrastive
    loss can distinguish them. An empty list of samples gives a batch with B = 0 without the optional entries.
    """

    def listed(name: str) -> list[Any]:
        return [sample[name] for sample in samples]

    counts = [len(sample["scores"]) for sample in samples]
    owners = torch.arange(len(samples)).repeat_interleave(_whole(counts))
    texts = [phrase for phrases in listed("phrases") for phrase in phrases]
    places: dict[str, int] = {}
    for place, text in enumerate(texts):
        places.setdefault(text, place)
    numbers = {text: number for number, text in enumerate(places)}
    regions = {
        # Plain tensors: the subclasses of torchvision's transforms would spread to the batch.
        name: torch.cat([empty, *(values.as_subclass(Tensor) for values in listed(name))])
        for name, empty in _EMPTY.items()
    }
    boxes = regions.pop("boxes_xyxy_px")
    batch: dict[str, Any] = {
        "ids": _whole(listed("id")),
        "sample_ids": listed("sample_id"),
        "file_names": listed("file_name"),
        "captions": listed("captions"),
        "sizes_hw": _whole(listed("size_hw")).reshape(-1, 2),
        "original_sizes_hw": _whole(listed("original_hw")).reshape(-1, 2),
        "region_counts": _whole(counts),
        "rois": torch.cat([owners[:, None].to(boxes.dtype), boxes], dim=1),
        "batch_indices": owners,
        **regions,
        "heads": [head for heads in listed("heads") for head in heads],
        "phrases": list(places),
        "phrase_indices": _whole([numbers[text] for text in texts]),
    }
    held = samples[0] if samples else {}
    if "tokens" in held:
        batch["tokens"] = torch.cat(listed("tokens"))[_whole(list(places.values()))]
    if "grid_masks" in held:
        batch["grid_masks"] = torch.cat(listed("grid_masks"))
    if "masks" in held:
        batch["masks"] = _if_alike(listed("masks"), torch.cat)
    if "image" in held:
        batch["images"] = _if_alike(listed("image"), torch.stack)
    if "error" in held:
        batch |= {"errors": listed("error"), "error_details": listed("error_detail")}
    return batch


def _if_alike(values: list[Any], join: Callable[[list[Tensor]], Tensor]) -> Any:
    """Return the values joined if all are tensors whose last two sides agree, else the list."""
    if not all(isinstance(value, Tensor) for value in values) or len({value.shape[-2:] for value in values}) > 1:
        return values
    return join([value.as_subclass(Tensor) for value in values])


def _whole(values: list[Any]) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)
