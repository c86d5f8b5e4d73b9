"""What a sample holds: chosen once, so that nothing else is read or computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from stages.contract.errors import ConfigError
from stages.images.decode import DecodeLimits

Tokenize = Callable[[Sequence[str]], Any]
"""Texts -> whole numbers (texts, context), a tensor or an array, as `open_clip.get_tokenizer` gives."""

Masks = Literal["none", "full"]

_REGION_FIELDS: Final = ("id", "bbox", "phrase", "head", "caption_index", "span", "score", "similarity")
_MASK_FIELDS: Final = ("segmentation.size", "segmentation.counts")
_ROW_COLUMNS: Final = ("id", "sample_id", "file_name", "width", "height", "captions", "error", "error_detail")


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What a sample holds beside its annotations. All functions must be picklable where workers are spawned."""

    images: bool = True
    """Load and decode the images: uint8 RGB, upright."""

    image_root: str | None = None
    """Folder or URL that `file_name` is relative to, where the shards hold no images; None: the run's own."""

    square_px: int | None = None
    """Stretch images to squares of this side, as CLIP's training sees them without cropping. Boxes and masks follow.
    None: the original size."""

    shrink_jpeg: bool = False
    """With `square_px`: let the JPEG decoder halve large images, see `stages.images.decode.decode_resized`."""

    image_transform: Callable[[Any], Any] | None = None
    """uint8 array (H, W, 3) -> what stands in the sample as its image. It must leave the geometry alone: nothing
    else follows. `PIL.Image.fromarray` makes a PIL image of the array."""

    masks: Masks = "none"
    """"full": bool masks in the size of the image."""

    grid_hw: tuple[int, int] | None = None
    """Masks at the size of a feature grid (height, width): the share of each cell that is inside."""

    tokenizer: Tokenize | Literal["dataset"] | None = None
    """Token numbers of the phrases: "dataset" takes the tokenizer of the model that made the dataset."""

    transform: Callable[[dict[str, Any]], Any] | None = None
    """Sample -> what is yielded; last of all. See `stages.dataset.load.sample` for transforms that move things."""

    limits: DecodeLimits = field(default_factory=DecodeLimits)
    """What is decoded at most."""

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
        """Names of the leaf columns that Parquet must read.

        embedded  whether the shards hold the images
        """
        regions = (*_REGION_FIELDS, *(_MASK_FIELDS if self.needs_masks else ()))
        images = ("image.bytes",) if self.images and embedded else ()
        return (*_ROW_COLUMNS, *(f"annotations.list.element.{name}" for name in regions), *images)
