"""Questions about images from ground truth, and the embeddings of images and their regions.

A region is embedded in three ways, as CLIPSelf (arXiv 2310.01403, zero-shot evaluation of
regions) does it: RoIAlign of the dense features in its box, the mean of the dense features on
its mask, and the image of the box alone.

Shapes: B images, R regions of an image, E embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import torch
import torch.nn.functional as F

from pipeline.evaluate.matching import check_size
from pipeline.load.row_groups import grid_shares, runs_of
from stages.contract.errors import ConfigError
from stages.contract.geometry import Box, xywh_to_xyxy
from stages.contract.values import Floats, Floats32, Integers, Rgb, Sides
from stages.shared.images.decode import crop_regions
from stages.shared.model.clip import ClipModel, TextCache, templates_of
from stages.shared.model.towers.dense import dense, pool_boxes, pool_masks
from stages.truth.ground_truth import TruthImage, TruthObject

BATCH_IMAGES: Final = {"cpu": 8, "cuda": 64}
"""Images of one forward pass, unless `model.batch_size` says it. A batch is filled up with
blank images, so that no embedding depends on how many images there are."""

TEXTS_AT_ONCE: Final = 512

Embeddings = Floats32


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeConfig:
    """The settings of `phrasebox score-model`.

    Attributes:
        residual: Whether the last block's residual and MLP follow the values in the dense
            features of a tower with a class token. CLIPSelf (arXiv 2310.01403) trains and
            measures True; False is MaskCLIP without them, for a model that nobody trained for
            it. Crops and retrieval do not depend on it.
        prompts: Sentences for the name of a class, with `{}` for the name; the class is the
            mean of their embeddings. `{}` is the bare name, `openai_imagenet` stands for
            OpenAI's 80. Phrases are embedded as they are.
        crops: Whether every region is also embedded as an image, for CLIPSelf the ceiling of
            dense features.
        pool_images: The most images with regions in one pool, in the harder search of phrases.
    """

    residual: bool = False
    prompts: tuple[str, ...] | Literal["openai_imagenet"] = ("a photo of a {}.",)
    crops: bool = True
    pool_images: int = 50

    def __post_init__(self) -> None:
        for prompt in () if isinstance(self.prompts, str) else self.prompts:
            if prompt.count("{}") != 1:
                raise ConfigError(f"expected one {{}} in a prompt, got {prompt!r}", key="prompts")


@dataclass(frozen=True, slots=True, kw_only=True)
class Questions:
    """The questions of an image: R regions and their names, and phrases.

    Attributes:
        boxes_rel: Boxes (R, 4), x0, y0, x1, y1 as shares of the image's sides, within it and
            not empty.
        things: The regions. The box of a phrase that belongs to no thing is a region without a
            class.
        candidates: Regions with different boxes; phrases are looked for among them.
        phrases: Text and the positions in `candidates` that it names: never all of them, or it
            would ask nothing.
    """

    boxes_rel: Floats
    things: tuple[TruthObject, ...]
    candidates: Integers
    phrases: tuple[tuple[str, tuple[int, ...]], ...]


NO_QUESTIONS: Final = Questions(
    boxes_rel=np.zeros((0, 4)), things=(), candidates=np.zeros(0, np.int64), phrases=()
)
"""The questions of an image without ground truth, which is only retrieved."""


def questions_of(
    image: TruthImage, things: Sequence[TruthObject], size_hw: Sides, *, resized: bool
) -> Questions:
    """Return the questions of an image of a size, from its ground truth and the things in it.

    Regions are the things of the ground truth, and behind them those boxes of phrases that belong
    to no thing. Boxes are cut off at the image's edges. Phrases come from captions and from the
    sentences of RefCOCO; names of categories are asked as classes.

    Raise InputError if the ground truth is for an image of another size, unless it was resized
    afterwards.
    """
    if not resized:
        check_size(image.file_name, size_hw, image)
    true_hw = (image.height_px, image.width_px)
    true_hw = size_hw if 0 in true_hw else true_hw
    phrase_targets = [target for target in image.targets if target.match != "category"]
    loose = (
        TruthObject(box_xywh_px=box, category=None, description=None, mask=None)
        for target in phrase_targets
        for box in target.boxes_xywh_px
    )
    regions: list[TruthObject] = []
    boxes: list[Box] = []
    index_by_box: dict[Box, int] = {}
    for thing in (*things, *loose):
        is_repeated = thing.category is None and thing.box_xywh_px in index_by_box
        box = _within(thing.box_xywh_px, true_hw)
        if box is not None and not is_repeated:
            index_by_box.setdefault(thing.box_xywh_px, len(regions))
            regions.append(thing)
            boxes.append(box)
    places = {region: place for place, region in enumerate(index_by_box.values())}
    phrases: list[tuple[str, tuple[int, ...]]] = []
    for target in phrase_targets:
        named_places = tuple(
            sorted({places[index_by_box[box]] for box in target.boxes_xywh_px if box in index_by_box})
        )
        if target.phrase and 0 < len(named_places) < len(places):
            phrases.append((target.phrase, named_places))
    return Questions(
        boxes_rel=np.array(boxes, np.float64).reshape(-1, 4),
        things=tuple(regions),
        candidates=np.array(list(index_by_box.values()), np.int64),
        phrases=tuple(phrases),
    )


def _within(box_xywh_px: Box, size_hw: Sides) -> Box | None:
    """Return the part of a box that is in the image, as shares of its sides; None if there is none."""
    x0, y0, x1, y1 = xywh_to_xyxy(box_xywh_px)
    height, width = size_hw
    left, right = (min(max(x / width, 0.0), 1.0) for x in (x0, x1))
    top, bottom = (min(max(y / height, 0.0), 1.0) for y in (y0, y1))
    return (left, top, right, bottom) if left < right and top < bottom else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """An image with its questions.

    Attributes:
        rgb: Rgb at the model's size, uint8 (size, size, 3).
        full: Rgb in the image's own size, uint8 (H, W, 3); None if no region is cut out.
    """

    rgb: Rgb
    full: Rgb | None
    questions: Questions


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageEmbeddings:
    """Embeddings of an image (E,) and, in three ways, of its regions (R, E); float32 of length 1.

    `mask` is 0 for a region without a mask or with an empty one; `crop` is None without
    `ProbeConfig.crops`.
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
        self._texts = TextCache(model)

    def embed_classes(self, names: Sequence[str]) -> Embeddings:
        """Embed names of classes, (names, E): the mean over `ProbeConfig.prompts`, of length 1."""
        return self._embed_all(TextCache(self.model, templates_of(self.config.prompts)), names)

    def embed_texts(self, texts: Sequence[str]) -> Embeddings:
        """Embed texts as they are, (texts, E), of length 1."""
        return self._embed_all(self._texts, texts)

    def _embed_all(self, cache: TextCache, texts: Sequence[str]) -> Embeddings:
        parts = [
            cache(texts[at : at + TEXTS_AT_ONCE]).cpu().numpy()
            for at in range(0, len(texts), TEXTS_AT_ONCE)
        ]
        return self._concatenate(parts)

    def _concatenate(self, parts: Sequence[Embeddings]) -> Embeddings:
        return np.concatenate([np.zeros((0, self.model.embed_dim), np.float32), *parts])

    @torch.no_grad()
    def embed_pictures(self, pictures: Sequence[Picture]) -> list[ImageEmbeddings]:
        """Embed at most `batch_images` images with their regions.

        An image's embeddings depend on the others of the batch in the last digit at most.
        """
        side = self.model.input.size_px
        placement = self.model.tower.placement
        blanks = self.batch_images - len(pictures)
        rgb = np.stack(
            [*(picture.rgb for picture in pictures), *[np.zeros((side, side, 3), np.uint8)] * blanks]
        )
        features = dense(self.model.tower, torch.from_numpy(rgb), residual=self.config.residual)
        grid_hw = placement.grid_hw(side, side)
        owners = np.repeat(
            np.arange(len(pictures)), [len(picture.questions.boxes_rel) for picture in pictures]
        )
        boxes = np.concatenate([picture.questions.boxes_rel for picture in pictures]) * side
        rois = torch.from_numpy(np.column_stack([owners, boxes]).astype(np.float32)).to(self.model.device)
        roi = _numpy(pool_boxes(features.patches, grid_hw, placement, rois))
        image = _numpy(F.normalize(features.embedding.float(), dim=-1))
        crops = self._embed_crops(pictures) if self.config.crops else None
        return [
            ImageEmbeddings(
                image=image[number],
                roi=roi[owners == number],
                mask=self._embed_masks(features.patches[number], picture.questions.things, grid_hw),
                crop=None if crops is None else crops[owners == number],
            )
            for number, picture in enumerate(pictures)
        ]

    def _embed_masks(
        self, patches: torch.Tensor, things: Sequence[TruthObject], grid_hw: Sides
    ) -> Embeddings:
        masks = {row: thing.mask for row, thing in enumerate(things) if thing.mask is not None}
        embeddings = np.zeros((len(things), self.model.embed_dim), np.float32)
        if masks:
            size_hw = next(iter(masks.values())).size_hw
            shares = torch.from_numpy(grid_shares(*runs_of(list(masks.values())), size_hw, grid_hw))
            embeddings[list(masks)] = _numpy(
                pool_masks(patches.expand(len(masks), -1, -1), shares.to(patches.device))
            )
        return embeddings

    def _embed_crops(self, pictures: Sequence[Picture]) -> Embeddings:
        """Embed the regions of all images, one after the other, as images of their own, (all regions, E)."""
        side = self.model.input.size_px
        interpolation = self.model.input.interpolation
        parts = []
        boxes = [
            (picture, box)
            for picture in pictures
            for box in map(tuple, picture.questions.boxes_rel.tolist())
        ]
        for start in range(0, len(boxes), self.batch_images):
            batch = boxes[start : start + self.batch_images]
            rgb = np.zeros((self.batch_images, side, side, 3), np.uint8)
            for place, (picture, box) in enumerate(batch):
                assert picture.full is not None, "images whose regions are cut out come in full"  # noqa: S101
                rgb[place] = crop_regions(picture.full, [box], side, interpolation)[0]
            embeddings = self.model.tower.encode(torch.from_numpy(rgb)).float()
            parts.append(_numpy(F.normalize(embeddings, dim=-1))[: len(batch)])
        return self._concatenate(parts)


def _numpy(values: torch.Tensor) -> Embeddings:
    array: Embeddings = values.cpu().numpy()
    return array
