"""A row as a sample: a plain dict, so that transforms of any library take it.

    id, sample_id, file_name   int, str, str
    captions         list[str], untouched
    original_hw      (height, width) of the original image, px
    size_hw          (height, width) that boxes and masks refer to, px: the original's or the square's
    image            uint8 (3, H, W), or what `image_transform` made of the (H, W, 3) array
    boxes_xyxy_px    float32 (n, 4), half open, px of `size_hw`
    phrases, heads   list[str], n of each
    spans            int64 (n, 2), [start, end): `captions[caption_indices[i]][start:end]` are the phrase's words
    caption_indices  int64 (n,)
    scores           float32 (n,), 0 .. 1
    similarities     float32 (n,), cosine of image and phrase
    region_ids       int64 (n,), the annotations' ids
    masks            bool (n, H, W), with `masks="full"`
    grid_masks       float32 (n, grid_h, grid_w), share of each cell inside, with `grid_hw`
    tokens           int64 (n, context), with `tokenizer`
    error, error_detail        str or None, if failed rows are kept

Boxes, masks and the rest are in the order of the row's annotations. All tensors own their memory.

`Contents.transform` gets this dict. For what moves things, let torchvision know what is what, and all moves together:

    def flip(sample):
        sample["image"] = tv_tensors.Image(sample["image"])
        sample["masks"] = tv_tensors.Mask(sample["masks"])
        sample["boxes_xyxy_px"] = tv_tensors.BoundingBoxes(
            sample["boxes_xyxy_px"], format="XYXY", canvas_size=sample["size_hw"])
        return v2.RandomHorizontalFlip()(sample)

`grid_masks` would stay behind: leave `grid_hw` out, take `masks="full"`, and afterwards
`torch.nn.functional.adaptive_avg_pool2d(sample["masks"].float(), grid_hw)`, which gives the same numbers where the
sides are multiples of the grid's. A transform that changes the size also sets `size_hw`. Captions that say "left" are
the user's to think of.
"""

from __future__ import annotations

import os
from typing import Any, Final

import numpy as np
import torch

from stages.contract.errors import ConfigError, RowFault
from stages.dataset.folder import Dataset
from stages.dataset.image_source import ImageSource
from stages.dataset.load.block import Block, block_of
from stages.dataset.load.contents import Contents
from stages.dataset.load.pieces import Choice, samples_of
from stages.dataset.load.region_masks import full_masks, grid_shares
from stages.dataset.load.tokens import PhraseTokens, tokenizer_of
from stages.dataset.selection import Selector
from stages.images.decode import decode_resized

_INHERITED: Final[list[Selector | None]] = []
"""Those of the process that this one was forked from: DuckDB crashes if they are closed here, without its threads."""


class SampleMaker:
    """Tables of rows -> blocks -> samples. What cannot be shared between processes is made where it is used."""

    def __init__(self, dataset: Dataset, contents: Contents, choice: Choice) -> None:
        if choice.keep_failed and contents.images:
            raise ConfigError("keep_failed: rows with an error have no image; give Contents(images=False)")
        self.dataset = dataset
        self.contents = contents
        self.choice = choice
        self.source = ImageSource(dataset, contents.image_root, contents.limits)
        leaves = contents.leaf_columns(embedded=dataset.has_images and contents.image_root is None)
        self.columns = tuple(dict.fromkeys((*leaves, *choice.selection.columns)))
        self._selector: Selector | None = None
        self._process = 0
        self._phrase_tokens: PhraseTokens | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_selector": None, "_phrase_tokens": None}

    @property
    def selector(self) -> Selector:
        """This process's own: a connection of DuckDB is of no use after a fork."""
        if self._selector is None or self._process != os.getpid():
            _INHERITED.append(self._selector)
            self._selector, self._process = Selector(self.choice.selection), os.getpid()
        return self._selector

    def block(self, table: Any) -> tuple[Block, Any]:
        """The samples of a table, and the numbers of their rows in it."""
        table, numbers = samples_of(table, self.choice, self.selector)
        return block_of(table), numbers

    def sample(self, block: Block, row: int) -> Any:
        """A sample, as the transform leaves it. Raises RowFault for an image that cannot be had."""
        contents = self.contents
        first, last = int(block.starts[row]), int(block.starts[row + 1])
        width, height = block.size_wh[row].tolist()
        h, w = (height, width) if contents.square_px is None else (contents.square_px, contents.square_px)
        scale = np.array([w / max(width, 1), h / max(height, 1)] * 2, np.float32)
        sample: dict[str, Any] = {
            "id": int(block.ids[row]),
            "sample_id": block.sample_ids[row],
            "file_name": block.file_names[row],
            "captions": block.captions[row],
            "original_hw": (height, width),
            "size_hw": (h, w),
            "boxes_xyxy_px": torch.from_numpy(block.boxes_xyxy_px[first:last] * scale),
            "phrases": block.phrases[first:last],
            "heads": block.heads[first:last],
            "spans": torch.from_numpy(block.spans[first:last].copy()),
            "caption_indices": torch.from_numpy(block.caption_indices[first:last].copy()),
            "scores": torch.from_numpy(block.scores[first:last].copy()),
            "similarities": torch.from_numpy(block.similarities[first:last].copy()),
            "region_ids": torch.from_numpy(block.region_ids[first:last].copy()),
        }
        if self.choice.keep_failed:
            sample["error"], sample["error_detail"] = block.errors[row], block.error_details[row]
        if contents.needs_masks:
            self._add_masks(sample, block, first, last)
        if contents.tokenizer is not None:
            sample["tokens"] = self._tokens(sample["phrases"])
        if contents.images:
            sample["image"] = self._image(block, row)
        return sample if contents.transform is None else contents.transform(sample)

    def _add_masks(self, sample: dict[str, Any], block: Block, first: int, last: int) -> None:
        starts = block.run_starts[first : last + 1]
        ends, starts = block.run_ends[starts[0] : starts[-1]], starts - starts[0]
        if self.contents.masks == "full":
            sample["masks"] = torch.from_numpy(full_masks(ends, starts, sample["original_hw"], sample["size_hw"]))
        if self.contents.grid_hw is not None:
            # The square's grid has the same cells as the original's: both are stretched alike.
            shares = grid_shares(ends, starts, sample["original_hw"], self.contents.grid_hw)
            sample["grid_masks"] = torch.from_numpy(shares)

    def _tokens(self, phrases: list[str]) -> torch.Tensor:
        if self._phrase_tokens is None:
            chosen = self.contents.tokenizer
            tokenize = tokenizer_of(self.dataset) if chosen is None or chosen == "dataset" else chosen
            self._phrase_tokens = PhraseTokens(tokenize)
        return self._phrase_tokens(phrases or [""])[: len(phrases)]

    def _image(self, block: Block, row: int) -> Any:
        contents = self.contents
        content = self.source.load({"file_name": block.file_names[row], "image": {"bytes": block.images[row]}})
        side = contents.square_px
        decoded = decode_resized(
            content,
            contents.limits,
            lambda width, height: (width, height) if side is None else (side, side),
            shrink_jpeg=contents.shrink_jpeg and side is not None,
        )
        width, height = block.size_wh[row].tolist()
        if (decoded.width_px, decoded.height_px) != (width, height):
            raise RowFault(
                "bad_image",
                f"it has {decoded.width_px} x {decoded.height_px} pixels, its regions were found in {width} x {height}",
            )
        if contents.image_transform is not None:
            return contents.image_transform(decoded.rgb)
        return torch.from_numpy(decoded.rgb).permute(2, 0, 1)
