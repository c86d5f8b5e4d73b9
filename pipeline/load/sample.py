"""A row as a sample, and samples as a batch.

A sample is a plain dict, so that transforms of any library take it.

    id, sample_id, file_name   int, str, str
    captions         list[str], unchanged
    absent           list[str], the absent phrases of the captions
    original_hw      (height, width) of the original image, px
    size_hw          (height, width) that boxes and masks refer to, px: the original's or the square's
    image            uint8 (3, H, W)
    boxes_xyxy_px    float32 (n, 4), half open, px of `size_hw`
    phrases, heads   list[str], n of each
    spans            int64 (n, 2), [start, end): `captions[caption_indices[i]][start:end]` are the phrase's words;
                     [0, 0) of caption 0 if the phrase comes from a pool of concepts
    caption_indices  int64 (n,)
    scores           float32 (n,), 0 .. 1
    similarities     float32 (n,), cosine of image and phrase
    region_ids       int64 (n,), the annotations' ids
    masks            bool (n, H, W), with `masks="full"`
    grid_masks       float32 (n, grid_h, grid_w), share of each cell inside, with `grid_hw`
    tokens           int64 (n, context), with `tokenizer`

Boxes, masks and the rest are in the order of the row's annotations. All tensors own their memory.

`Contents.transform` gets this dict. Name the type of each entry, and torchvision's geometric
transforms move all of them:

    def flip(sample):
        sample["image"] = tv_tensors.Image(sample["image"])
        sample["masks"] = tv_tensors.Mask(sample["masks"])
        sample["boxes_xyxy_px"] = tv_tensors.BoundingBoxes(
            sample["boxes_xyxy_px"], format="XYXY", canvas_size=sample["size_hw"])
        return v2.RandomHorizontalFlip()(sample)

`grid_masks` would stay behind: take `masks="full"` instead, and compute them afterwards with
`torch.nn.functional.adaptive_avg_pool2d(sample["masks"].float(), grid_hw)`. A transform that
changes the size also sets `size_hw`. Captions with "left" or "right" are not corrected. Functions
must be picklable if workers are spawned.

A batch of B images with R regions in total (`collate_regions`) is a dict, too. Each phrase is in it
once, so that a contrastive loss can distinguish them:

    images            uint8 (B, 3, H, W), or a list of B if they differ in size or are no tensors
    ids               int64 (B,)
    sample_ids, file_names, captions, absent   lists of B
    sizes_hw, original_sizes_hw        int64 (B, 2), px
    region_counts     int64 (B,), R in total:
                      `torch.split(batch["scores"], batch["region_counts"].tolist())`
    rois              float32 (R, 5): image of the batch, x0, y0, x1, y1 in px of `sizes_hw`, half
                      open, as `torchvision.ops.roi_align` takes them, with `aligned=True`
    batch_indices     int64 (R,), image of the batch
    scores, similarities               float32 (R,)
    spans             int64 (R, 2), [start, end) characters of
                      `captions[batch_indices[r]][caption_indices[r]]`
    caption_indices, region_ids        int64 (R,)
    heads             list of R
    phrases           list of U different phrases, in the order of their first regions
    phrase_indices    int64 (R,): region r has the phrase `phrases[phrase_indices[r]]`
    tokens            int64 (U, context), if the samples have them
    grid_masks        float32 (R, grid_h, grid_w), 0 .. 1, if the samples have them
    masks             bool (R, H, W), or a list of B (n, H, W) if the images differ in size; if
                      the samples have them
"""

from __future__ import annotations

import os
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Final, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor
from torch.utils.data import get_worker_info

from phrasebox.pipeline.config.errors import Checked
from phrasebox.pipeline.dataset.corrected import Corrections
from phrasebox.pipeline.dataset.folder import Dataset
from phrasebox.pipeline.dataset.origin import ImageSource
from phrasebox.pipeline.dataset.rows import Row, absent_phrases
from phrasebox.pipeline.dataset.selection import REGION, Selection, Selector
from phrasebox.pipeline.load.row_groups import LoadOptions, add_runs, grid_shares, masks_of, select_samples
from phrasebox.stages.contract.errors import ConfigError, InputError, RowFault, SchemaError, one_line
from phrasebox.stages.contract.values import Json
from phrasebox.stages.images.decode import decode_resized
from phrasebox.stages.images.faults import DecodeLimits

Tokenize = Callable[
    [Sequence[str]], Any
]  # texts -> whole numbers (texts, context), as `open_clip.get_tokenizer` gives
MAX_PHRASES: Final = 200_000  # Phrases with cached tokens, the last used ones: 120 MB with 77 tokens
_ROW_KEYS: Final = ("id", "sample_id", "file_name", "captions")
_COLUMNS: Final = (*_ROW_KEYS, "width", "height", "error", "absent.list.element.phrase")
_REGION_FIELDS: Final = (
    "id", "bbox", "phrase", "head", "caption_index", "span", "score", "similarity"
)  # fmt: skip
_MASK_FIELDS: Final = ("segmentation.size", "segmentation.counts")

_REGION_TENSORS: Final = {
    "boxes_xyxy_px": ("bbox", torch.zeros(0, 4)),
    "scores": ("score", torch.zeros(0)),
    "similarities": ("similarity", torch.zeros(0)),
    "spans": ("span", torch.zeros(0, 2, dtype=torch.int64)),
    "caption_indices": ("caption_index", torch.zeros(0, dtype=torch.int64)),
    "region_ids": ("id", torch.zeros(0, dtype=torch.int64)),
}
"""Tensor of every sample, with a row for each region -> the field of an annotation, and the tensor
without regions."""

_JOINS: Final[Json] = {"grid_masks": torch.cat, "masks": torch.cat, "image": torch.stack}
"""Entry of a sample -> function that joins those of a batch, if they are equal in size."""

_FOREIGN_SELECTORS: Final[list[Selector | None]] = []
"""Selectors of the process before a fork: DuckDB crashes if they are closed in this one."""


class Contents(Checked, arbitrary_types_allowed=True):
    """Contents of a sample beside its annotations; nothing else is read or computed.

    Raise ConfigError for a value that cannot be used.

    Attributes:
        images: Load and decode the images: uint8 RGB, upright.
        image_root: The folder or URL that `file_name` is relative to, if the shards hold no
            images; None for the run's.
        square_px: Side of the square that images are stretched to, as CLIP takes them without
            cropping; boxes and masks follow. None for the original size.
        masks: "full" for bool masks in the size of the image.
        grid_hw: Size of a feature grid, for the share of each cell inside each mask.
        tokenizer: Function for the phrases' tokens.
        transform: Function: sample -> sample of any kind, see above.
        limits: The largest images to decode.
    """

    images: bool = True
    image_root: str | None = None
    square_px: int | None = Field(None, ge=1)
    masks: Literal["none", "full"] = "none"
    grid_hw: tuple[PositiveInt, PositiveInt] | None = None
    tokenizer: Tokenize | None = None
    transform: Callable[[Json], Any] | None = None
    limits: DecodeLimits = DecodeLimits()


class BadImages:
    """Error or warning for broken and missing images. A DataLoader's workers share the count."""

    def __init__(self, policy: str) -> None:
        self.policy = policy
        self._counts = torch.zeros(
            1024, dtype=torch.int64
        ).share_memory_()  # one a worker: adding is not atomic

    @property
    def count(self) -> int:
        """Number of images that all workers have skipped so far; repeated ones count again."""
        return int(self._counts.sum())

    def report(self, where: str, fault: RowFault) -> None:
        """Warn at this process's 1st, 10th, 100th, ... bad image.

        Raise InputError under the policy "raise".
        """
        if self.policy == "raise":
            raise InputError(
                f"{where}: {fault}. To train on without such images, give on_bad_image='skip'"
            ) from fault
        worker = get_worker_info()
        counter = self._counts[(0 if worker is None else worker.id) % len(self._counts)]
        counter += 1
        number = int(counter)
        if number == 10 ** (len(str(number)) - 1):
            subject = "an image is skipped" if number == 1 else f"{number} images skipped so far, the last"
            warnings.warn(f"{subject}: {where}: {fault}", RuntimeWarning, stacklevel=2)


def phrase_tokens(tokenize: Tokenize) -> Callable[[str], Tensor]:
    """Return a function phrase -> int64 (context,) with a cache of `MAX_PHRASES`."""

    @lru_cache(MAX_PHRASES)
    def tokens_of(phrase: str) -> Tensor:
        tokens = torch.as_tensor(tokenize([phrase]))
        if tokens.ndim != 2 or len(tokens) != 1 or tokens.is_floating_point():
            shape = f"{tuple(tokens.shape)} {tokens.dtype}"
            raise ConfigError(
                f"expected (1, context) whole numbers for a text, got {shape}", key="tokenizer"
            )
        return tokens[0].long()

    return tokens_of


class SampleMaker:
    """Make samples from tables of rows. Each process makes a selector of its own."""

    def __init__(self, dataset: Dataset, contents: Contents, options: LoadOptions) -> None:
        self.dataset = dataset
        self.contents = contents
        self.options = options
        self.selection: Selection = dataset.selection(options)
        self.source = ImageSource(dataset, contents.image_root, contents.limits)
        if contents.images:
            self.source.check()
        has_masks = contents.masks != "none" or contents.grid_hw is not None
        fields = (*_REGION_FIELDS, *(_MASK_FIELDS if has_masks else ()))
        takes_embedded = contents.images and dataset.has_images and contents.image_root is None
        leaves = (
            *_COLUMNS,
            *(REGION + name for name in fields),
            *(("image.bytes",) if takes_embedded else ()),
        )
        self.corrections = Corrections(dataset) if options.corrected else None
        columns = (*leaves, *self.selection.columns)
        self.columns = tuple(
            dict.fromkeys(columns if self.corrections is None else self.corrections.columns(columns))
        )
        self._selector: Selector | None = None
        self._process = 0
        self._tokens: Callable[[str], Tensor] | None = None

    def __getstate__(self) -> Json:
        return {**self.__dict__, "_selector": None, "_tokens": None}

    @property
    def selector(self) -> Selector:
        """The selector of this process: a connection of DuckDB does not survive a fork."""
        if self._selector is None or self._process != os.getpid():
            _FOREIGN_SELECTORS.append(self._selector)
            self._selector = Selector(self.selection)
            self._process = os.getpid()
        return self._selector

    def choose(self, table: Any) -> tuple[Any, Any]:
        """Return the samples in a table of rows, as a table, and their numbers in it."""
        return select_samples(table, self.options, self.selector, self.corrections)

    def rows(self, table: Any) -> list[Row]:
        """Return the table of `choose` as plain values."""
        rows: list[Row] = table.to_pylist()
        if self.contents.grid_hw is not None:
            try:
                add_runs(rows)
            except (TypeError, ValueError, AttributeError) as error:
                places = f"samples {rows[0]['sample_id']!r} to {rows[-1]['sample_id']!r}"
                raise SchemaError(
                    f"{self.dataset.path}: {places}: a mask is damaged: {one_line(error)}"
                ) from error
        return rows

    def where(self, row: Row) -> str:
        """Return the name of a sample for messages."""
        return f"{self.dataset.path}: sample {row['sample_id']!r}, image {row['file_name']!r}"

    def sample(self, row: Row) -> Any:
        """Return a row as a sample, transformed.

        Raise RowFault for an image that is missing or broken, SchemaError for values that violate
        the dataset's contract.
        """
        contents = self.contents
        try:
            sample = self._annotations(row)
        # torch raises several kinds for a null.
        except (TypeError, ValueError, RuntimeError, LookupError) as error:
            raise SchemaError(f"{self.where(row)}: the row is damaged: {one_line(error)}") from error
        if contents.tokenizer is not None:
            if self._tokens is None:
                self._tokens = phrase_tokens(contents.tokenizer)
            phrases = sample["phrases"]
            sample["tokens"] = torch.stack([self._tokens(phrase) for phrase in phrases or [""]])[
                : len(phrases)
            ]
        if contents.images:
            sample["image"] = self._image(row)
        return sample if contents.transform is None else contents.transform(sample)

    def _annotations(self, row: Row) -> Json:
        contents = self.contents
        regions = row["annotations"] or []
        height = row["height"]
        width = row["width"]
        h, w = (height, width) if contents.square_px is None else (contents.square_px, contents.square_px)
        sample: Json = {name: row[name] for name in _ROW_KEYS}
        sample |= {
            "absent": absent_phrases(row),
            "original_hw": (height, width),
            "size_hw": (h, w),
            "phrases": [region["phrase"] for region in regions],
            "heads": [region["head"] for region in regions],
        }
        for name, (key, empty) in _REGION_TENSORS.items():
            values = torch.tensor([region[key] for region in regions], dtype=empty.dtype)
            sample[name] = values.reshape(len(regions), *empty.shape[1:])
        boxes = sample["boxes_xyxy_px"]
        boxes[:, 2:] += boxes[:, :2]
        boxes *= torch.tensor([w / max(width, 1), h / max(height, 1)] * 2)
        if contents.masks == "full":
            sample["masks"] = torch.from_numpy(masks_of(regions, (height, width), (h, w)))
        if contents.grid_hw is not None:
            # The square's grid has the same cells as the original's: both are stretched alike.
            ends, starts = row["runs"]
            shares = grid_shares(ends, starts, (height, width), contents.grid_hw)
            sample["grid_masks"] = torch.from_numpy(shares)
        return sample

    def _image(self, row: Row) -> Any:
        contents = self.contents
        side = self.contents.square_px
        content = self.source.load(row)
        image = decode_resized(
            content, contents.limits, lambda w, h: (w, h) if side is None else (side, side)
        )
        if (image.width_px, image.height_px) != (row["width"], row["height"]):
            size = f"{image.width_px} x {image.height_px}"
            expected_size = f"{row['width']} x {row['height']}"
            raise RowFault("bad_image", f"it has {size} pixels, its regions were found in {expected_size}")
        return torch.from_numpy(image.rgb).permute(2, 0, 1)


def collate_regions(samples: Sequence[Json]) -> Json:
    """Make a batch of B images with R regions in total: a `collate_fn` for DataLoader.

    The regions of all images follow each other: nothing is padded, and an image may have any
    number of regions. `phrasebox.pipeline.load.sample` lists the entries of a batch.

    >>> from phrasebox import RegionDataset, collate_regions
    >>> samples = RegionDataset("out/")
    >>> batch = collate_regions([samples[0], samples[1]])
    >>> batch["region_counts"].tolist() == [len(samples[0]["scores"]), len(samples[1]["scores"])]
    True
    >>> batch["rois"].shape == (len(batch["scores"]), 5)
    True
    >>> phrases = [batch["phrases"][number] for number in batch["phrase_indices"]]
    >>> phrases == samples[0]["phrases"] + samples[1]["phrases"]
    True
    """
    columns = defaultdict[str, list[Any]](list)
    for sample in samples:
        for name, value in sample.items():
            columns[name].append(value)
    counts = [len(scores) for scores in columns["scores"]]
    owners = torch.arange(len(samples)).repeat_interleave(_whole(counts))
    phrases = [phrase for phrases in columns["phrases"] for phrase in phrases]
    numbers = {phrase: number for number, phrase in enumerate(dict.fromkeys(phrases))}
    regions = {
        # Plain tensors: the subclasses of torchvision's transforms would spread to the batch.
        name: torch.cat([empty, *(values.as_subclass(Tensor) for values in columns[name])])
        for name, (_, empty) in _REGION_TENSORS.items()
    }
    boxes = regions.pop("boxes_xyxy_px")
    batch: Json = {
        "ids": _whole(columns["id"]),
        "sample_ids": columns["sample_id"],
        "file_names": columns["file_name"],
        "captions": columns["captions"],
        "absent": columns["absent"],
        "sizes_hw": _whole(columns["size_hw"]).reshape(-1, 2),
        "original_sizes_hw": _whole(columns["original_hw"]).reshape(-1, 2),
        "region_counts": _whole(counts),
        "rois": torch.cat([owners[:, None].to(boxes.dtype), boxes], dim=1),
        "batch_indices": owners,
        **regions,
        "heads": [head for heads in columns["heads"] for head in heads],
        "phrases": list(numbers),
        "phrase_indices": _whole([numbers[phrase] for phrase in phrases]),
    }
    if "tokens" in columns:
        last_to_first = reversed(list(enumerate(phrases)))
        first_regions = {phrase: region for region, phrase in last_to_first}
        batch["tokens"] = torch.cat(columns["tokens"])[
            _whole([first_regions[phrase] for phrase in numbers])
        ]
    for name in [name for name in _JOINS if name in columns]:
        batch["images" if name == "image" else name] = _if_alike(columns[name], _JOINS[name])
    return batch


def _if_alike(values: list[Any], join: Callable[[list[Tensor]], Tensor]) -> Any:
    """Return the values joined if they are tensors with equal last two sides, else the list."""
    if (
        not all(isinstance(value, Tensor) for value in values)
        or len({value.shape[-2:] for value in values}) > 1
    ):
        return values
    return join([value.as_subclass(Tensor) for value in values])


def _whole(values: list[Any]) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)
