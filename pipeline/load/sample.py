"""A row as a sample: a plain dict, so that transforms of any library take it.

    id, sample_id, file_name   int, str, str
    captions         list[str], untouched
    original_hw      (height, width) of the original image, px
    size_hw          (height, width) that boxes and masks refer to, px: the original's or the square's
    image            uint8 (3, H, W), or what `image_transform` made of the (H, W, 3) array
    boxes_xyxy_px    float32 (n, 4), half open, px of `size_hw`
    phrases, heads   list[str], n of each
    spans            int64 (n, 2), [start, end): `captions[caption_indices[i]][start:end]` are the phrase's words;
                     [0, 0) of caption 0 where no caption says it (a pool of concepts does)
    caption_indices  int64 (n,)
    scores           float32 (n,), 0 .. 1
    similarities     float32 (n,), cosine of image and phrase
    region_ids       int64 (n,), the annotations' ids
    masks            bool (n, H, W), with `masks="full"`
    grid_masks       float32 (n, grid_h, grid_w), share of each cell inside, with `grid_hw`
    tokens           int64 (n, context), with `tokenizer`
    error, error_detail        str or None, if failed rows are kept

Boxes, masks and the rest are in the order of the row's annotations. All tensors own their memory.

`Contents.transform` gets this dict. Tell torchvision what each entry is, and a geometric transform moves all of them:

    def flip(sample):
        sample["image"] = tv_tensors.Image(sample["image"])
        sample["masks"] = tv_tensors.Mask(sample["masks"])
        sample["boxes_xyxy_px"] = tv_tensors.BoundingBoxes(
            sample["boxes_xyxy_px"], format="XYXY", canvas_size=sample["size_hw"])
        return v2.RandomHorizontalFlip()(sample)

`grid_masks` would stay behind: leave `grid_hw` out, take `masks="full"`, and compute them afterwards with
`torch.nn.functional.adaptive_avg_pool2d(sample["masks"].float(), grid_hw)`, which gives the same numbers where the
sides are multiples of the grid's. A transform that changes the size also sets `size_hw`. Nothing corrects captions that
say "left".
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.utils.data import get_worker_info

from pipeline.dataset.folder import Dataset
from pipeline.dataset.image_source import ImageSource
from pipeline.dataset.origin import MODEL, unnamed
from pipeline.dataset.selection import REGION, Selector
from pipeline.load.region_masks import full_masks, grid_shares
from pipeline.load.row_groups import Choice, RowBlock, block_of, samples_of
from stages.contract.errors import ConfigError, InputError, RowFault, WeightsError
from stages.shared.images.decode import decode_resized
from stages.shared.images.faults import DecodeLimits
from stages.shared.model.config import ModelConfig

Tokenize = Callable[[Sequence[str]], Any]
"""Texts -> whole numbers (texts, context), a tensor or an array, as `open_clip.get_tokenizer` gives."""

Masks = Literal["none", "full"]

OnBadImage = Literal["raise", "skip"]

MAX_PHRASES: Final = 200_000
"""Phrases whose tokens are kept; then the oldest are forgotten. 200,000 phrases of 77 tokens take 120 MB."""

_REGION_FIELDS: Final = ("id", "bbox", "phrase", "head", "caption_index", "span", "score", "similarity")
_MASK_FIELDS: Final = ("segmentation.size", "segmentation.counts")
_ROW_COLUMNS: Final = ("id", "sample_id", "file_name", "width", "height", "captions", "error", "error_detail")

_WORKERS: Final = 1024
"""Workers of a DataLoader whose skipped images are counted apart."""

_INHERITED: Final[list[Selector | None]] = []
"""Selectors of the process that this one was forked from. DuckDB crashes if they are closed here, without its threads,
so they are kept alive."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What a sample holds beside its annotations; nothing else is read or computed.

    All functions must be picklable where workers are spawned.

    Raises:
        ConfigError: A value is invalid, or two contradict each other.
    """

    images: bool = True
    """Load and decode the images: uint8 RGB, upright."""

    image_root: str | None = None
    """Folder or URL that `file_name` is relative to, where the shards hold no images; None: the run's own."""

    square_px: int | None = None
    """Stretch images to squares of this side, as CLIP's training sees them without cropping. Boxes and masks follow.
    None: the original size."""

    shrink_jpeg: bool = False
    """With `square_px`: let the JPEG decoder halve large images, see `stages.shared.images.decode.decode_resized`."""

    image_transform: Callable[[Any], Any] | None = None
    """uint8 array (H, W, 3) -> the sample's image. It must not change the geometry, since nothing else follows.
    `PIL.Image.fromarray` makes a PIL image of the array."""

    masks: Masks = "none"
    """"full": bool masks in the size of the image."""

    grid_hw: tuple[int, int] | None = None
    """Masks at the size of a feature grid (height, width): the share of each cell that is inside."""

    tokenizer: Tokenize | Literal["dataset"] | None = None
    """Token numbers of the phrases: "dataset" takes the tokenizer of the model that made the dataset."""

    transform: Callable[[dict[str, Any]], Any] | None = None
    """Sample -> what is yielded; last of all. See `pipeline.load.sample` for geometric transforms."""

    limits: DecodeLimits = field(default_factory=DecodeLimits)
    """The largest images that are decoded."""

    def __post_init__(self) -> None:
        if self.square_px is not None and self.square_px < 1:
            raise ConfigError(f"square_px: expected >= 1, got {self.square_px}")
        if self.grid_hw is not None and (len(self.grid_hw) != 2 or min(self.grid_hw) < 1):
            raise ConfigError(f"grid_hw: expected a height and a width >= 1, got {self.grid_hw}")
        if self.masks not in ("none", "full"):
            raise ConfigError(f"masks: expected 'none' or 'full', got {self.masks!r}")
        if isinstance(self.tokenizer, str) and self.tokenizer != "dataset":
            raise ConfigError(f"tokenizer: expected 'dataset' or a function, got {self.tokenizer!r}")
        if not self.images and (self.image_transform is not None or self.image_root is not None):
            raise ConfigError("image_transform and image_root are given, but images is False")

    @property
    def needs_masks(self) -> bool:
        """Whether run lengths are read at all."""
        return self.masks != "none" or self.grid_hw is not None

    def leaf_columns(self, *, embedded: bool) -> tuple[str, ...]:
        """Paths of the leaf columns that Parquet must read; `embedded` says whether the shards hold the images."""
        regions = (*_REGION_FIELDS, *(_MASK_FIELDS if self.needs_masks else ()))
        images = ("image.bytes",) if self.images and embedded else ()
        return (*_ROW_COLUMNS, *(REGION + name for name in regions), *images)


class BadImages:
    """Raises, or counts and warns, at broken and missing images, so that they are never silent.

    The process that made it and its DataLoader's workers share the count.
    """

    def __init__(self, policy: OnBadImage) -> None:
        if policy not in ("raise", "skip"):
            raise ConfigError(f"on_bad_image: expected 'raise' or 'skip', got {policy!r}")
        self.policy = policy
        # A number for each worker: adding is not atomic.
        self._counts = torch.zeros(_WORKERS, dtype=torch.int64).share_memory_()

    @property
    def count(self) -> int:
        """Images that all workers have skipped so far, counted each time one came up."""
        return int(self._counts.sum())

    def met(self, where: str, fault: RowFault) -> None:
        """Warns at this process's 1st, 10th, 100th, ... bad image. Raises InputError under the policy "raise"."""
        if self.policy == "raise":
            raise InputError(f"{where}: {fault}. To train on without such images, give on_bad_image='skip'") from fault
        worker = get_worker_info()
        own = self._counts[(0 if worker is None else worker.id) % _WORKERS]
        own += 1
        number = int(own)
        if number == 10 ** (len(str(number)) - 1):
            so_far = "an image is skipped" if number == 1 else f"{number} images skipped so far, the last"
            warnings.warn(f"{so_far}: {where}: {fault}", RuntimeWarning, stacklevel=2)


class PhraseTokens:
    """Phrases -> int64 (phrases, context); a phrase is tokenised once."""

    def __init__(self, tokenize: Tokenize) -> None:
        self.tokenize = tokenize
        self._rows: dict[str, Tensor] = {}

    def __call__(self, phrases: Sequence[str]) -> Tensor:
        """The tokens of one or more phrases. Raises ConfigError unless the tokenizer gives a row for each."""
        new = [phrase for phrase in dict.fromkeys(phrases) if phrase not in self._rows]
        if new:
            tokens = torch.as_tensor(self.tokenize(new))
            if tokens.ndim != 2 or len(tokens) != len(new) or tokens.is_floating_point():
                shape = tuple(tokens.shape)
                raise ConfigError(
                    f"tokenizer: expected ({len(new)}, context) whole numbers, got {shape} {tokens.dtype}"
                )
            # Copies: a view would keep its whole batch alive.
            self._rows.update(zip(new, (row.clone() for row in tokens.long()), strict=True))
        rows = torch.stack([self._rows[phrase] for phrase in phrases])
        while len(self._rows) > MAX_PHRASES:
            del self._rows[next(iter(self._rows))]
        return rows


def tokenizer_of(dataset: Dataset) -> Tokenize:
    """The tokenizer of the model that made the dataset, by its manifest; no weights are read.

    Raises:
        ConfigError: The manifest's model is unknown here, or is not followed: see `pipeline.dataset.origin`.
    """
    from stages.shared.model.load import load_tokenizer

    strange = unnamed(dataset, MODEL)
    if strange:
        raise ConfigError(
            f"tokenizer: {dataset.path} was not made by you on this machine, so the tokenizer of the model that it "
            f"names ({', '.join(map(str, strange.values()))}) is not looked for; if it is right, give it as a function"
        )
    try:
        tokenize: Tokenize = load_tokenizer(ModelConfig.model_validate(dataset.manifest.get("config", {}).get("model")))
    except (ConfigError, WeightsError, ValidationError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"{dataset.path}: the tokenizer of the dataset's model cannot be loaded ({reason}): give a function as "
            "tokenizer"
        ) from error
    return tokenize


class SampleMaker:
    """Tables of rows -> blocks -> samples. What processes cannot share is made in the process that uses it."""

    def __init__(self, dataset: Dataset, contents: Contents, choice: Choice) -> None:
        if choice.keep_failed and contents.images:
            raise ConfigError("keep_failed: rows with an error have no image; give Contents(images=False)")
        self.dataset = dataset
        self.contents = contents
        self.choice = choice
        self.source = ImageSource(dataset, contents.image_root, contents.limits)
        if contents.images:
            self.source.check()
        leaves = contents.leaf_columns(embedded=dataset.has_images and contents.image_root is None)
        self.columns = tuple(dict.fromkeys((*leaves, *choice.selection.columns)))
        self._selector: Selector | None = None
        self._process = 0
        self._phrase_tokens: PhraseTokens | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_selector": None, "_phrase_tokens": None}

    @property
    def selector(self) -> Selector:
        """This process's own: a connection of DuckDB does not survive a fork."""
        if self._selector is None or self._process != os.getpid():
            _INHERITED.append(self._selector)
            self._selector, self._process = Selector(self.choice.selection), os.getpid()
        return self._selector

    def block(self, table: Any) -> tuple[RowBlock, Any]:
        """The samples of a table, and the numbers of their rows in it."""
        table, numbers = samples_of(table, self.choice, self.selector)
        return block_of(table), numbers

    def where(self, block: RowBlock, row: int) -> str:
        """Names a sample in a message."""
        return f"{self.dataset.path}: sample {block.sample_ids[row]!r}, image {block.file_names[row]!r}"

    def sample(self, block: RowBlock, row: int) -> Any:
        """A sample, as the transform leaves it. Raises RowFault for an image that is missing or broken."""
        contents = self.contents
        first, last = int(block.starts[row]), int(block.starts[row + 1])
        width, height = block.size_wh[row].tolist()
        h, w = (height, width) if contents.square_px is None else (contents.square_px, contents.square_px)
        scale = np.array([w / max(width, 1), h / max(height, 1)] * 2, np.float32)

        def own(values: Any) -> Tensor:
            return torch.from_numpy(values[first:last].copy())

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
            "spans": own(block.spans),
            "caption_indices": own(block.caption_indices),
            "scores": own(block.scores),
            "similarities": own(block.similarities),
            "region_ids": own(block.region_ids),
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

    def _add_masks(self, sample: dict[str, Any], block: RowBlock, first: int, last: int) -> None:
        starts = block.run_starts[first : last + 1]
        ends, starts = block.run_ends[starts[0] : starts[-1]], starts - starts[0]
        if self.contents.masks == "full":
            sample["masks"] = torch.from_numpy(full_masks(ends, starts, sample["original_hw"], sample["size_hw"]))
        if self.contents.grid_hw is not None:
            # The square's grid has the same cells as the original's: both are stretched alike.
            shares = grid_shares(ends, starts, sample["original_hw"], self.contents.grid_hw)
            sample["grid_masks"] = torch.from_numpy(shares)

    def _tokens(self, phrases: list[str]) -> Tensor:
        if self._phrase_tokens is None:
            chosen = self.contents.tokenizer
            tokenize = tokenizer_of(self.dataset) if chosen is None or chosen == "dataset" else chosen
            self._phrase_tokens = PhraseTokens(tokenize)
        return self._phrase_tokens(phrases or [""])[: len(phrases)]

    def _image(self, block: RowBlock, row: int) -> Any:
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
