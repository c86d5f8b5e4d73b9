"""Questions about images from ground truth, and the embeddings of images and their regions.

A region is embedded as in CLIPSelf's zero-shot evaluation (arXiv 2310.01403): by RoIAlign of the
dense features in its box.

Shapes: B images, R regions of an image, E embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from phrasebox.pipeline.evaluate.matching import check_size
from phrasebox.stages.contract.geometry import Box, xywh_to_xyxy
from phrasebox.stages.contract.values import Floats, Floats32, Integers, Rgb, Sides
from phrasebox.stages.model.clip import ClipModel
from phrasebox.stages.model.text_cache import TextCache
from phrasebox.stages.model.towers.dense import dense, pool_boxes
from phrasebox.stages.truth.ground_truth import TruthImage, TruthObject

BATCH_IMAGES: Final = {"cpu": 8, "cuda": 64}
"""Images of one forward pass, unless `model.batch_size` says it. A batch is filled up with
blank images, so that no embedding depends on how many images there are."""

TEXTS_AT_ONCE: Final = 512

PROMPTS: Final = ("a photo of a {}.",)
"""Sentences for the name of a class, unless others are given."""

Embeddings = Floats32


@dataclass(frozen=True, slots=True, kw_only=True)
class Questions:
    """The questions of an image: R regions and their names, and phrases.

    Attributes:
        boxes_rel: Boxes (R, 4), x0, y0, x1, y1 as shares of the image's sides, within it and
            not empty.
        objects: The regions. The box of a phrase that belongs to no object is a region without a
            class.
        candidates: Regions with different boxes; phrases are looked for among them.
        phrases: Text and the positions in `candidates` that it names: never all of them, or it
            would ask nothing.
    """

    boxes_rel: Floats
    objects: tuple[TruthObject, ...]
    candidates: Integers
    phrases: tuple[tuple[str, tuple[int, ...]], ...]


NO_QUESTIONS: Final = Questions(
    boxes_rel=np.zeros((0, 4)), objects=(), candidates=np.zeros(0, np.int64), phrases=()
)
"""The questions of an image without ground truth, which is only retrieved."""


def questions_of(
    image: TruthImage, objects: Sequence[TruthObject], size_hw: Sides, *, resized: bool
) -> Questions:
    """Return the questions of an image of a size, from its ground truth and the objects in it.

    Regions are the objects of the ground truth, and behind them those boxes of phrases that belong
    to no object. Boxes are cut off at the image's edges. Phrases come from captions; names of categories are asked as
    classes.

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
    for object_ in (*objects, *loose):
        is_repeated = object_.category is None and object_.box_xywh_px in index_by_box
        box = _within(object_.box_xywh_px, true_hw)
        if box is not None and not is_repeated:
            index_by_box.setdefault(object_.box_xywh_px, len(regions))
            regions.append(object_)
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
        objects=tuple(regions),
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


class Picture(NamedTuple):
    """An image with its questions; `rgb` are pixels at the model's size, uint8 (size, size, 3)."""

    rgb: Rgb
    questions: Questions


class ImageEmbeddings(NamedTuple):
    """Embeddings of an image (E,) and of its regions (R, E); float32 of length 1."""

    image: Embeddings
    regions: Embeddings


class Embedder:
    """Embeds images, regions and texts with one model, which it only reads.

    Args:
        model: The model.
        prompts: Sentences for the name of a class, with `{}` for the name; the class is the mean of
            their embeddings. Phrases are embedded as they are.
        batch_images: Images of a forward pass.
    """

    def __init__(
        self, model: ClipModel, prompts: Sequence[str] = PROMPTS, batch_images: int | None = None
    ) -> None:
        self.model = model
        self.batch_images = batch_images or BATCH_IMAGES["cuda" if model.device.type == "cuda" else "cpu"]
        self._texts = TextCache(model)
        self._classes = TextCache(model, tuple(prompts))

    def embed_classes(self, names: Sequence[str]) -> Embeddings:
        """Embed names of classes, (names, E): the mean over the prompts, of length 1."""
        return self._embed_all(self._classes, names)

    def embed_texts(self, texts: Sequence[str]) -> Embeddings:
        """Embed texts as they are, (texts, E), of length 1."""
        return self._embed_all(self._texts, texts)

    def _embed_all(self, cache: TextCache, texts: Sequence[str]) -> Embeddings:
        parts = [
            cache(texts[at : at + TEXTS_AT_ONCE]).cpu().numpy()
            for at in range(0, len(texts), TEXTS_AT_ONCE)
        ]
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
        features = dense(self.model.tower, torch.from_numpy(rgb))
        boxes = [picture.questions.boxes_rel for picture in pictures]
        owners = np.repeat(np.arange(len(pictures)), [len(part) for part in boxes])
        rois = np.column_stack([owners, np.concatenate(boxes) * side]).astype(np.float32)
        regions = pool_boxes(
            features.patches,
            placement.grid_hw(side, side),
            placement,
            torch.from_numpy(rois).to(self.model.device),
        )
        region_rows: Embeddings = regions.cpu().numpy()
        images: Embeddings = F.normalize(features.embedding.float(), dim=-1).cpu().numpy()
        return [
            ImageEmbeddings(images[number], region_rows[owners == number])
            for number in range(len(pictures))
        ]
