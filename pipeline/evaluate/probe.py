"""The questions that ground truth lets one ask of an image, and the embeddings of images and their regions.

A region is embedded in three ways, as CLIPSelf (arXiv 2310.01403, zero-shot evaluation of regions) does it: RoIAlign of
the dense features in its box, the mean of the dense features on its mask, and the image of the box alone.

Shapes: B images, R regions of an image, E embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from pipeline.evaluate.matching import check_size
from pipeline.load.row_groups import grid_shares, runs_of
from stages.contract.errors import ConfigError
from stages.contract.geometry import Box, xywh_to_xyxy
from stages.contract.records import Rle
from stages.shared.images.crops import crop_regions
from stages.shared.model.clip import ClipModel, TextCache, templates_of
from stages.shared.model.towers.dense import dense, pool_boxes, pool_masks
from stages.truth.ground_truth import TruthImage, TruthObject

BATCH_IMAGES: Final = {"cpu": 8, "cuda": 64}
"""Images of one forward pass, unless `model.batch_size` says it. A batch is filled up with blank images, so that no
embedding depends on how many images there are."""

TEXTS_AT_ONCE: Final = 512

Embeddings = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeConfig:
    """The settings of `phrasebox score-model`.

    Attributes:
        residual: Whether the last block's residual and MLP follow the values in the dense features of a tower with a
            class token. CLIPSelf (arXiv 2310.01403) trains and measures True; False is MaskCLIP without them, for a
            model that nobody trained for it. Crops and retrieval do not depend on it.
        prompts: Sentences for the name of a class, with `{}` for the name; the class is the mean of their embeddings.
            `{}` is the bare name, `openai_imagenet` stands for OpenAI's 80. Phrases are embedded as they are.
        crops: Whether every region is also embedded as an image, for CLIPSelf the ceiling of dense features.
        pool_images: The most images whose regions together are searched in the harder search of phrases.
    """

    residual: bool = False
    prompts: tuple[str, ...] | Literal["openai_imagenet"] = ("a photo of a {}.",)
    crops: bool = True
    pool_images: int = 50

    def __post_init__(self) -> None:
        for prompt in () if isinstance(self.prompts, str) else self.prompts:
            if prompt.count("{}") != 1:
                raise ConfigError(f"--prompt: expected one {{}} in a prompt, got {prompt!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Questions:
    """The questions of an image: R regions and their names, and phrases."""

    boxes_rel: NDArray[np.float64]  # (R, 4), x0, y0, x1, y1 as shares of the image's sides, within it and not empty
    things: tuple[TruthObject, ...]  # the regions; a box of a phrase that belongs to no thing is one without a class
    candidates: NDArray[np.int64]  # the regions with different boxes, among which the phrases are looked for
    # Text, and the positions in `candidates` that it means: not all of them, or there would be nothing to find out.
    phrases: tuple[tuple[str, tuple[int, ...]], ...]


NOTHING: Final = Questions(boxes_rel=np.zeros((0, 4)), things=(), candidates=np.zeros(0, np.int64), phrases=())
"""The questions of an image without ground truth, which is only retrieved."""


def questions_of(
    image: TruthImage, things: Sequence[TruthObject], size_hw: tuple[int, int], *, resized: bool
) -> Questions:
    """Return the questions of an image of a size, from its ground truth and its things (`GroundTruth.things`).

    Regions are the things of the ground truth, and behind them those boxes of phrases that belong to no thing. Boxes
    are cut off at the image's edges. Phrases are those of captions and the sentences of RefCOCO; names of categories
    are asked as classes.

    Raise InputError if the ground truth is for an image of another size, unless it was resized afterwards.
    """
    if not resized:
        check_size(image.file_name, size_hw, image)
    true_hw = (image.height_px, image.width_px)
    true_hw = size_hw if 0 in true_hw else true_hw
    named = [target for target in image.targets if target.match != "category"]
    loose = (
        TruthObject(box_xywh_px=box, category=None, description=None, mask=None)
        for target in named
        for box in target.boxes_xywh_px
    )
    found: list[TruthObject] = []
    boxes: list[Box] = []
    first: dict[Box, int] = {}
    for thing in (*things, *loose):
        is_known = thing.category is None and thing.box_xywh_px in first
        box = _within(thing.box_xywh_px, true_hw)
        if box is not None and not is_known:
            first.setdefault(thing.box_xywh_px, len(found))
            found.append(thing)
            boxes.append(box)
    places = {region: place for place, region in enumerate(first.values())}
    phrases: list[tuple[str, tuple[int, ...]]] = []
    for target in named:
        meant = tuple(sorted({places[first[box]] for box in target.boxes_xywh_px if box in first}))
        if target.phrase and 0 < len(meant) < len(places):
            phrases.append((target.phrase, meant))
    return Questions(
        boxes_rel=np.array(boxes, np.float64).reshape(-1, 4),
        things=tuple(found),
        candidates=np.array(list(first.values()), np.int64),
        phrases=tuple(phrases),
    )


def _within(box_xywh_px: Box, size_hw: tuple[int, int]) -> Box | None:
    """The part of a box that is in the image, as shares of its sides; None if there is none."""
    x0, y0, x1, y1 = xywh_to_xyxy(box_xywh_px)
    height, width = size_hw
    left, right = (min(max(x / width, 0.0), 1.0) for x in (x0, x1))
    top, bottom = (min(max(y / height, 0.0), 1.0) for y in (y0, y1))
    return (left, top, right, bottom) if left < right and top < bottom else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """An image with its questions: uint8 (size, size, 3) at the model's size, and (H, W, 3) in its own size, which is
    None where no region is cut out."""

    rgb: NDArray[np.uint8]
    full: NDArray[np.uint8] | None
    asked: Questions


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedded:
    """Embeddings of an image (E,) and, in three ways, of its regions (R, E); float32 of length 1.

    `mask` is 0 for a region without a mask or with an empty one; `crop` is None without `ProbeConfig.crops`.
    """

    image: Embeddings
    roi: Embeddings
    mask: Embeddings
    crop: Embeddings | None


class Embedder:
    """Embeds images, regions and texts with one model, which it only reads."""

    def __init__(self, model: ClipModel, config: ProbeConfig, batch_images: int | None = None) -> None:
        self.model = model
        self.config = config
        self.batch_images = batch_images or BATCH_IMAGES["cuda" if model.device.type == "cuda" else "cpu"]
        self._texts = TextCache(model, max_texts=TEXTS_AT_ONCE)

    def classes(self, names: Sequence[str]) -> Embeddings:
        """Return names -> (names, E), the mean over `ProbeConfig.prompts`, of length 1."""
        return self._all(TextCache(self.model, templates_of(self.config.prompts)), names)

    def texts(self, texts: Sequence[str]) -> Embeddings:
        """Texts as they are -> (texts, E), of length 1."""
        return self._all(self._texts, texts)

    def _all(self, cache: TextCache, texts: Sequence[str]) -> Embeddings:
        parts = [cache(texts[at : at + TEXTS_AT_ONCE]).cpu().numpy() for at in range(0, len(texts), TEXTS_AT_ONCE)]
        return self._joined(parts)

    def _joined(self, parts: Sequence[Embeddings]) -> Embeddings:
        return np.concatenate([np.zeros((0, self.model.embed_dim), np.float32), *parts])

    @torch.no_grad()
    def pictures(self, pictures: Sequence[Picture]) -> list[Embedded]:
        """Embed at most `batch_images` images with their regions.

        An image's embeddings depend on the others of the batch in the last digit at most.
        """
        side, placement = self.model.input.size_px, self.model.tower.placement
        missing = self.batch_images - len(pictures)
        rgb = np.stack([*(picture.rgb for picture in pictures), *[np.zeros((side, side, 3), np.uint8)] * missing])
        found = dense(self.model.tower, torch.from_numpy(rgb), residual=self.config.residual)
        grid_hw = placement.grid_hw(side, side)
        owners = np.repeat(np.arange(len(pictures)), [len(picture.asked.boxes_rel) for picture in pictures])
        boxes = np.concatenate([picture.asked.boxes_rel for picture in pictures]) * side
        rois = torch.from_numpy(np.column_stack([owners, boxes]).astype(np.float32)).to(self.model.device)
        roi = _numpy(pool_boxes(found.patches, grid_hw, placement, rois))
        image = _numpy(F.normalize(found.embedding.float(), dim=-1))
        crops = self._crops(pictures) if self.config.crops else None
        return [
            Embedded(
                image=image[number],
                roi=roi[owners == number],
                mask=self._by_masks(found.patches[number], [thing.mask for thing in picture.asked.things], grid_hw),
                crop=None if crops is None else crops[owners == number],
            )
            for number, picture in enumerate(pictures)
        ]

    def _by_masks(self, patches: torch.Tensor, masks: Sequence[Rle | None], grid_hw: tuple[int, int]) -> Embeddings:
        known = [number for number, mask in enumerate(masks) if mask is not None]
        found = np.zeros((len(masks), self.model.embed_dim), np.float32)
        if known:
            given = [mask for mask in masks if mask is not None]
            shares = torch.from_numpy(grid_shares(*runs_of(given), given[0].size_hw, grid_hw))
            found[known] = _numpy(pool_masks(patches.expand(len(known), -1, -1), shares.to(patches.device)))
        return found

    def _crops(self, pictures: Sequence[Picture]) -> Embeddings:
        """(all regions, E), the regions of all images one after the other."""
        side, parts = self.model.input.size_px, []
        interpolation = self.model.input.interpolation
        boxes = [(picture, box) for picture in pictures for box in map(tuple, picture.asked.boxes_rel.tolist())]
        for start in range(0, len(boxes), self.batch_images):
            batch = boxes[start : start + self.batch_images]
            rgb = np.zeros((self.batch_images, side, side, 3), np.uint8)
            for place, (picture, box) in enumerate(batch):
                assert picture.full is not None, "images whose regions are cut out come in full"  # noqa: S101
                rgb[place] = crop_regions(picture.full, [box], side, interpolation)[0]
            embeddings = self.model.tower.encode(torch.from_numpy(rgb)).float()
            parts.append(_numpy(F.normalize(embeddings, dim=-1))[: len(batch)])
        return self._joined(parts)


def _numpy(values: torch.Tensor) -> Embeddings:
    found: Embeddings = values.cpu().numpy()
    return found
