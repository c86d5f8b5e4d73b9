"""SAM and its relatives in `transformers` (the extra `sam`): masks for prompts, several images and prompts at a time.

MobileSAM and EdgeSAM have image towers that transformers does not know.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from phrasebox.stages.contract.geometry import Box
from phrasebox.stages.contract.values import Json, Plane, Rgb, Sides
from phrasebox.stages.model.config import SegmenterConfig, about
from phrasebox.stages.model.device import DTYPES, to_device
from phrasebox.stages.model.hugging_face import ProcessedModel, identify_model, load_model

KINDS: Final = (
    "sam",
    "sam_hq",
    "sam2",
    "sam2_video",
    "edgetam",
    "edgetam_video",
    "sam3_tracker",
    "sam3_video",
)
"""The `model_type` of a `config.json`. Of a video model the image's part is used."""

PROMPTS_AT_ONCE: Final = 32  # Decoded together: each takes about 60 MB where an image has 64 x 64 tokens

_KEY: Final = "regions.sam.model"


class Prompt(NamedTuple):
    """A point on an object and a box around it, in pixels of the image."""

    point_xy_px: tuple[float, float]
    box_xyxy_px: Box


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderInput:
    """An image as the encoder takes it.

    Attributes:
        pixels: Normalised pixels, float32 (3, height, width).
        size_hw: Size of the image.
        content_hw: The part of `pixels` that the image fills, from the upper left corner.
        is_padded: Whether the model pads images. Its masks are then padded, too.
    """

    pixels: Tensor
    size_hw: Sides
    content_hw: Sides
    is_padded: bool

    def cells(self, logits: Plane) -> Plane:
        """Return those logits (masks, cells_h, cells_w) that the image touches."""
        sides = zip(self.content_hw, logits.shape[1:], self.pixels.shape[1:], strict=True)
        h, w = (-(-content * cells // side) for content, cells, side in sides)
        return logits[:, :h, :w]

    def field(self, logits: Plane) -> Plane:
        """Return the logits (cells_h, cells_w) of a mask as a field over the image alone, as transformers draws it."""
        if not self.is_padded:
            return logits
        full = F.interpolate(
            torch.from_numpy(logits)[None, None], tuple(self.pixels.shape[1:]), mode="bilinear"
        )
        field: Plane = full[0, 0, : self.content_hw[0], : self.content_hw[1]].numpy()
        return field


class Segmenter(ProcessedModel):
    """One of transformers' models for mask generation, in evaluation mode, with its image processor.

    The image encoder computes in `precision`, all else in fp32.
    """

    def prepare(self, rgb: Rgb) -> EncoderInput:
        """Resize and normalise an image, uint8 (H, W, 3), on the host."""
        features = self._processor([rgb], return_tensors="pt")
        pixels: Tensor = features["pixel_values"][0]
        is_padded = "reshaped_input_sizes" in features
        h, w = features["reshaped_input_sizes"][0].tolist() if is_padded else pixels.shape[1:]
        return EncoderInput(
            pixels=pixels, size_hw=(rgb.shape[0], rgb.shape[1]), content_hw=(h, w), is_padded=is_padded
        )

    @torch.no_grad()
    def encode(self, images: Sequence[EncoderInput]) -> Json:
        """Start encoding a batch of images. A GPU computes while the caller goes on, until `masks` waits for it."""
        pixels = to_device(torch.stack([image.pixels for image in images]), self.device)
        with self._computing():
            embeddings = self._model.get_image_embeddings(pixels)
        # HQ-SAM's decoder looks at earlier features, too.
        names = ("image_embeddings", "intermediate_embeddings")
        return dict(
            zip(names, embeddings if isinstance(embeddings, tuple) else (embeddings,), strict=False)
        )

    @torch.no_grad()
    def masks(
        self, embeddings: Json, images: Sequence[EncoderInput], prompts: Sequence[Sequence[Prompt]]
    ) -> list[list[Plane]]:
        """Return the logits (masks, cells_h, cells_w) for each prompt of each image, given what `encode` returned.

        They are above 0 inside, and those of transformers for one prompt at a time, up to rounding.
        """
        queue = [
            (number, prompt)
            for number, prompts_of_image in enumerate(prompts)
            for prompt in prompts_of_image
        ]
        masks: list[list[Plane]] = [[] for _ in images]
        for start in range(0, len(queue), PROMPTS_AT_ONCE):
            batch = queue[start : start + PROMPTS_AT_ONCE]
            owners = torch.tensor([number for number, _ in batch], device=self.device)
            points = [_scale(prompt.point_xy_px, images[number]) for number, prompt in batch]
            boxes = [_scale(prompt.box_xyxy_px, images[number]) for number, prompt in batch]
            output = self._model(
                **{name: _select(value, owners) for name, value in embeddings.items()},
                input_points=torch.tensor(points, device=self.device)[:, None, None],
                input_boxes=torch.tensor(boxes, device=self.device)[:, None],
                multimask_output=True,
            )
            for (number, _), logits in zip(
                batch, output.pred_masks[:, 0].float().cpu().numpy(), strict=True
            ):
                masks[number].append(logits)
        return masks


def _scale(places_px: Sequence[float], image: EncoderInput) -> list[float]:
    """Return the places (x, y, ...) in pixels of the encoder's input."""
    down, across = (content / size for content, size in zip(image.content_hw, image.size_hw, strict=True))
    return [place * (down if number % 2 else across) for number, place in enumerate(places_px)]


def _select(value: Any, owners: Tensor) -> Any:
    """Return the embeddings of each prompt's image; a list has them at several sizes."""
    return (
        value[owners].float() if isinstance(value, Tensor) else [_select(level, owners) for level in value]
    )


@about(_KEY)
def usable_segmenter(config: SegmenterConfig) -> str:
    """Check before any work that a segmenter can be loaded, and return the identity of its weights.

    Raise as `identify_model`.
    """
    title = "SAM, HQ-SAM, SAM 2, EdgeTAM or SAM 3's tracker"
    return identify_model(config.model or "", KINDS, title, "sam")


@lru_cache(maxsize=1)
@about(_KEY)
def load_segmenter(config: SegmenterConfig, device: str) -> Segmenter:
    """Load a segmenter onto a device, see `pick_device`; the same one again for the same settings.

    Raise WeightsError for damaged or other weights, and ResourceError without the device.
    """
    # An extra that takes seconds to import.
    import transformers  # noqa: PLC0415

    model, processor = load_model(
        config.model or "", transformers.AutoModelForMaskGeneration, transformers.AutoImageProcessor, device
    )
    return Segmenter(model, processor, DTYPES[config.precision])
