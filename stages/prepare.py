"""Opens each sample's image, notes its size and resizes it to the model's input.

Every image is decoded in full, also if its captions hold no phrase. So the errors of images do
not depend on captions, and `width` and `height` are right in every row without an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from phrasebox.stages.contract.errors import RowFault
from phrasebox.stages.contract.geometry import round_to_multiple
from phrasebox.stages.contract.records import Pixels, Record, Sample
from phrasebox.stages.contract.stage import Stage
from phrasebox.stages.contract.values import Sides
from phrasebox.stages.files.storage import is_local
from phrasebox.stages.images.decode import Interpolation, decode_resized, load_image_bytes
from phrasebox.stages.images.faults import MAX_PIXELS_CEILING, DecodeLimits

FETCH_THREADS: Final = 16  # Images behind URLs that are fetched at once


class ImagesConfig(BaseModel):
    """The settings of reading images: the `images` section of a run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    shrink_jpeg: bool = Field(
        True,
        description="Let the JPEG decoder halve large images while twice the target is left. "
        "Less time for photographs from some 1,000 px on; grey levels differ by less than one "
        "on average.",
    )
    resize: Literal["pillow", "torch"] = Field(
        "pillow",
        description="`torch` resizes by the same filter in half of the time. One of 50 values "
        "of a photograph differs from Pillow's, by up to 3 of 255 levels, and heat maps differ "
        "as by noise of that size.",
    )
    max_pixels: int = Field(
        128_000_000, ge=1, le=MAX_PIXELS_CEILING, description="Width x height; larger images are faults."
    )
    max_bytes: int = Field(
        256 * 1024 * 1024,
        ge=1,
        description="Bytes of an encoded image; larger ones are faults.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareConfig:
    """The way images are read and resized. Derived from the model and `explain.image_size`.

    Attributes:
        images: The settings of reading images.
        mode: square: the whole image is stretched to exactly `size_px`, and not cropped. keep:
            the aspect is kept as in Grad-ECLIP's own input, each side rounded to the nearest
            multiple of the patch (arXiv 2502.18816, generate_emap.py).
        size_px: square: the side, or (width, height).
        patch_px: keep: side of the model's patches.
        shorter_side_max_px: keep: an image with a longer shorter side is reduced to this one
            first; 640 in generate_emap.py. There the image is resized twice; here the size is
            computed in the same two steps and the image resized once.
        max_side_px: keep: limit of the longer side after rounding, which bounds the memory.
        interpolation: Antialiased; bicubic is CLIP's own.
        keep_image_bytes: Whether the encoded image stays in the sample, for embedding it.
    """

    images: ImagesConfig = field(default_factory=ImagesConfig)
    mode: Literal["square", "keep"] = "square"
    size_px: int | Sides = 224
    patch_px: int = 16
    shorter_side_max_px: int | None = None
    max_side_px: int | None = None
    interpolation: Interpolation = "bicubic"
    keep_image_bytes: bool = False


class PrepareStage(Stage):
    """Record -> size of the image and `pixels`, or the reason why there are none."""

    name = "prepare"

    def __init__(self, config: PrepareConfig) -> None:
        self.config = config
        images = config.images
        self._limits = DecodeLimits(max_pixels=images.max_pixels, max_bytes=images.max_bytes)
        self._pool: ThreadPoolExecutor | None = None

    def teardown(self) -> None:
        """End the threads, which start with the first image behind a URL."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def process(self, batch: Sequence[Record]) -> list[Record]:
        """Decode the images.

        Unless `keep_image_bytes`, samples that had no error no longer hold theirs.
        """
        if any(map(_is_remote, batch)) and self._pool is None:
            self._pool = ThreadPoolExecutor(FETCH_THREADS, thread_name_prefix="fetch")
        # Images behind URLs come at once, those of this machine one by one.
        downloads = {
            number: self._pool.submit(load_image_bytes, record.sample.image, self._limits)
            for number, record in enumerate(batch)
            if self._pool is not None and _is_remote(record)
        }
        return [self._answer(record, downloads.get(number)) for number, record in enumerate(batch)]

    def _answer(self, record: Record, download: Future[bytes] | None) -> Record:
        if record.error is not None:
            return record
        try:
            content = (
                load_image_bytes(record.sample.image, self._limits)
                if download is None
                else download.result()
            )
            image = decode_resized(
                content,
                self._limits,
                partial(target_size_px, self.config),
                interpolation=self.config.interpolation,
                shrink_jpeg=self.config.images.shrink_jpeg,
                resize=self.config.images.resize,
            )
        except RowFault as fault:
            error = fault.error.at(record.sample.source)
            return replace(record, sample=_with_content(record.sample, None), error=error)
        return replace(
            record,
            sample=_with_content(record.sample, content if self.config.keep_image_bytes else None),
            width_px=image.width_px,
            height_px=image.height_px,
            pixels=Pixels(rgb=image.rgb),
        )


def target_size_px(config: PrepareConfig, width_px: int, height_px: int) -> Sides:
    """Return (width, height) of the model's input for an original of this size.

    >>> target_size_px(PrepareConfig(mode="keep", patch_px=16, shorter_side_max_px=640), 6000, 4000)
    (960, 640)
    """
    if config.mode == "square":
        size = config.size_px
        return (size, size) if isinstance(size, int) else size
    scale = 1.0
    if config.shorter_side_max_px is not None:
        scale = min(scale, config.shorter_side_max_px / min(width_px, height_px))
    limit = None
    if config.max_side_px is not None:
        scale = min(scale, config.max_side_px / max(width_px, height_px))
        limit = max(1, config.max_side_px // config.patch_px) * config.patch_px
    width, height = (round_to_multiple(side * scale, config.patch_px) for side in (width_px, height_px))
    return (width, height) if limit is None else (min(width, limit), min(height, limit))


def _is_remote(record: Record) -> bool:
    image = record.sample.image
    is_needed = record.error is None and image.content is None and image.url is not None
    return is_needed and not is_local(image.url or "")


def _with_content(sample: Sample, content: bytes | None) -> Sample:
    return replace(sample, image=replace(sample.image, content=content))
