"""Names for boxes of any origin: each becomes a region, called by the phrase that CLIP finds nearest to it.

RegionCLIP (Zhong and others, CVPR 2022, arXiv 2112.09106) names proposals by a pool of
concepts. PTP (Wang and others, CVPR 2023, arXiv 2212.09737) names the blocks of a grid by CLIP.
A softmax with a temperature runs over all names that a box may get, and the largest share is
the score.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal, Self, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from phrasebox.stages.contract.errors import ConfigError
from phrasebox.stages.contract.masks import encode_box, encode_mask
from phrasebox.stages.contract.records import Phrase, Record, Region, Rle
from phrasebox.stages.contract.stage import Device, Forwards
from phrasebox.stages.contract.values import Floats32, Json, PixelBox, Rgb, Sides
from phrasebox.stages.sources.source import NOT_FINITE, RegionSource, RegionSourceConfig, region_of_mask

if TYPE_CHECKING:
    from phrasebox.stages.model.text_cache import TextCache
    from phrasebox.stages.sources.box_embeddings import BoxEmbedder

LONGEST_SIDE_PX: Final = 448
"""Longer side that larger images are reduced to before boxes are made and cut. A box of half
the image then has the 224 pixels that most models take."""

BATCH_SIZES: Final[dict[Device, int]] = {"cpu": 16, "cuda": 64}
"""Records whose boxes share forward passes, and images or parts of images of one forward pass."""

_LEAST_SIMILARITY: Final = 1e-6  # in place of 0, which means that nothing is measured


class NamedBoxesConfig(RegionSourceConfig):
    """Settings of sources that make boxes without names and let CLIP choose the best phrase of each."""

    concepts: Literal["captions", "pool"] = Field(
        "captions",
        description="Names of boxes. captions: the phrases of the image's own captions. pool: these "
        "and the concepts of a pool, whatever the captions say. A run parses the pool from all captions "
        "of its input.",
    )
    pool_size: int = Field(
        1000, ge=1, le=100_000, description="Most concepts of the pool: those that most images have."
    )
    pool: dict[str, str] | None = Field(
        None,
        description="The concepts of the pool with their head nouns. null: a run parses them before "
        "its first image, and stores them with the dataset.",
    )
    by: Literal["crop", "roi"] = Field(
        "crop",
        description="What is compared with the phrases. crop: the embedding of the image's part in "
        "the box, one forward pass for each box. roi: RoIAlign on the image's dense features, one "
        "forward pass for all boxes.",
    )
    temperature: float = Field(
        0.01, gt=0.0, le=1.0, description="Temperature of the softmax; RegionCLIP's is 0.01."
    )
    min_score: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        description="Boxes whose best phrase has a smaller share of the softmax are left out.",
    )
    per_phrase: int | None = Field(
        None,
        ge=1,
        description="Most boxes of one phrase, those with the highest score; null keeps all, as RegionCLIP.",
    )

    @property
    def concept_count(self) -> int | None:
        """See `RegionSourceConfig.concept_count`."""
        return None if self.pool is None or self.concepts == "captions" else len(self.pool)

    @property
    def pool_to_parse(self) -> int | None:
        """See `RegionSourceConfig.pool_to_parse`."""
        return self.pool_size if self.concepts == "pool" and self.pool is None else None

    def with_pool(self, concepts: Mapping[str, str]) -> Self:
        """See `RegionSourceConfig.with_pool`."""
        return self.model_copy(update={"pool": dict(concepts)})

    def score_settings(self) -> Json:
        """See `RegionSourceConfig.score_settings`. A pool of other captions is as good as this one."""
        return self.model_dump(mode="json", exclude={"pool"})


NamedConfigT = TypeVar("NamedConfigT", bound=NamedBoxesConfig)


@dataclass(frozen=True, slots=True)
class CandidateBox:
    """A box that has no name yet.

    Attributes:
        box_xyxy: Whole pixels of the canvas, half open, with an area.
        mask: Pixels of the object in the canvas; None for a box without a mask.
    """

    box_xyxy: PixelBox
    mask: NDArray[np.bool_] | None = None


class NamedBoxes(RegionSource[NamedConfigT]):
    """A source that makes boxes and lets CLIP choose the name of each. Derived classes make the boxes.

    A box gets one name, as in RegionCLIP: the text with the highest cosine. If several captions
    say it, the region occurs once for each of them, as regions of heat maps do. `similarity` is
    the cosine of box and text, with six decimals. A cosine of 0 is 0.000001, because 0 means
    that nothing is measured. An image in which an embedding is not finite, as 16 bits may
    overflow, has no region, and its row says why.
    """

    needs_model = True
    looks_for_phrases = True
    score_means = (
        "the share of the phrase in the softmax over all that the box may be called, which ranks and "
        "is no probability"
    )

    @abstractmethod
    def candidates(self, record: Record, canvas: Rgb) -> list[CandidateBox]:
        """Return the boxes of an image, uint8 (H, W, 3), in a fixed order."""

    def canvas(self) -> Json:
        """See `RegionSource.canvas`."""
        return {"mode": "keep", "patch_px": 1, "max_side_px": LONGEST_SIDE_PX}

    def forward_batch_size(self, device: Device | None = None) -> int:
        """See `Stage.forward_batch_size`."""
        on = device or ("cuda" if self._embed_boxes.model.device.type == "cuda" else "cpu")
        return self.model.batch_size or BATCH_SIZES[on]

    def setup(self) -> None:
        """Load the model. Raise as `load`."""
        # torch and open_clip take seconds to import; only the workers that need them pay for it.
        from phrasebox.stages.model.load import load  # noqa: PLC0415
        from phrasebox.stages.model.text_cache import TextCache  # noqa: PLC0415
        from phrasebox.stages.sources.box_embeddings import CropEmbedder, RoiEmbedder  # noqa: PLC0415

        if self.description is None:
            raise ConfigError("no model is described", key="model.name")
        if self.config.pool_to_parse is not None:
            raise ConfigError(
                "no pool: a run parses it from its captions, and its dataset stores it", key="source.pool"
            )
        settings = self.model
        model = load(
            self.description, device=settings.device, precision=settings.precision, threads=settings.threads
        )
        self._texts: TextCache = TextCache(model)
        pool = (self.config.concepts == "pool" and self.config.pool) or {}
        # No caption says them, so their span is empty.
        self._pool = {
            text: Phrase(text=text, caption_index=0, start=0, end=0, head=head)
            for text, head in pool.items()
        }
        self._pool_embeddings = self._embed_texts([*pool]) if pool else None
        embedder = RoiEmbedder if self.config.by == "roi" else CropEmbedder
        batch_size = self.forward_batch_size("cuda" if model.device.type == "cuda" else "cpu")
        self._embed_boxes: BoxEmbedder = embedder(model, batch_size)

    def teardown(self) -> None:
        """Let the model go."""
        del self._embed_boxes, self._texts, self._pool_embeddings

    def take_forwards(self) -> Forwards:
        """See `Stage.take_forwards`; with `by: crop` each part of an image counts."""
        return self._embed_boxes.take_forwards()

    def with_regions(self, records: Sequence[Record]) -> list[Record]:
        """See `RegionSource.with_regions`."""
        out: list[Record] = []
        rows = self.forward_batch_size()
        for start in range(0, len(records), rows):
            batch = records[start : start + rows]
            boxed = [self._boxed(record) for record in batch]
            images = [
                (canvas, [box.box_xyxy for box in candidates]) for canvas, candidates in boxed if candidates
            ]
            embeddings = iter(self._embed_boxes(images))
            for record, (canvas, candidates) in zip(batch, boxed, strict=True):
                named = (
                    self._choose_names(record, canvas, candidates, next(embeddings))
                    if candidates
                    else record
                )
                out.append(named)
        return out

    def _boxed(self, record: Record) -> tuple[Rgb, list[CandidateBox]]:
        """Return the canvas of a record and its boxes, none where it has no pixels or no names."""
        if record.pixels is None:
            return np.zeros((0, 0, 3), np.uint8), []
        canvas = record.pixels.rgb
        return canvas, self.candidates(record, canvas) if self._pool or record.phrases else []

    def _embed_texts(self, texts: Sequence[str]) -> Floats32:
        embeddings: Floats32 = self._texts(texts).detach().cpu().numpy()
        return embeddings

    def _choose_names(
        self,
        record: Record,
        canvas: Rgb,
        candidates: Sequence[CandidateBox],
        embeddings: Floats32,
    ) -> Record:
        texts, text_embeddings = self._names_for(record)
        cosines, shares = shares_of(embeddings, text_embeddings, self.config.temperature)
        if not np.isfinite(cosines).all():
            return replace(record, notes=(*record.notes, NOT_FINITE))
        best = cosines.argmax(axis=1)
        cosine, share = (values[np.arange(len(candidates)), best].tolist() for values in (cosines, shares))
        regions_of: dict[str, list[Region]] = {}
        for number in sorted(range(len(candidates)), key=lambda number: (-share[number], -cosine[number])):
            if share[number] < self.config.min_score:
                continue
            regions = regions_of.setdefault(texts[best[number]], [])
            if self.config.per_phrase is None or len(regions) < self.config.per_phrase:
                mask = _mask_of(candidates[number], canvas, (record.height_px, record.width_px))
                similarity = min(1.0, max(-1.0, cosine[number])) or _LEAST_SIMILARITY
                regions.append(region_of_mask(0, mask, min(1.0, max(0.0, share[number])), similarity))
        caption_texts = {phrase.text for phrase in record.phrases}
        phrases = (*record.phrases, *(self._pool[text] for text in regions_of if text not in caption_texts))
        regions = [
            replace(region, phrase_index=index)
            for index, phrase in enumerate(phrases)
            for region in regions_of.get(phrase.text, ())
        ]
        return replace(record, phrases=phrases, regions=tuple(regions))

    def _names_for(self, record: Record) -> tuple[list[str], Floats32]:
        """Return the texts that a box of an image may be called, and their unit embeddings (T, E)."""
        caption_texts = dict.fromkeys(phrase.text for phrase in record.phrases)
        if self._pool_embeddings is None:
            return [*caption_texts], self._embed_texts([*caption_texts])
        new = [text for text in caption_texts if text not in self._pool]
        embeddings = [self._pool_embeddings, *([self._embed_texts(new)] if new else [])]
        return [*self._pool, *new], np.concatenate(embeddings)


def shares_of(
    embeddings: Floats32, texts: Floats32, temperature: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Unit embeddings (N, E) of boxes and (T, E) of texts -> cosines and shares of the softmax over the texts, (N, T).

    Cosines are rounded to six decimals before anything is compared: sums in float32 are no more
    exact.

    >>> boxes = np.array([[1.0, 0.0]], np.float32)
    >>> texts = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
    >>> shares_of(boxes, texts, temperature=1.0)
    (array([[1., 0.]]), array([[0.731059, 0.268941]]))
    """
    cosines = (embeddings @ texts.T).astype(np.float64).round(6)
    powers = np.exp((cosines - cosines.max(axis=1, keepdims=True)) / temperature)
    return cosines, np.round(powers / powers.sum(axis=1, keepdims=True), 6)


def _mask_of(candidate: CandidateBox, canvas: Rgb, size_hw: Sides) -> Rle:
    """Return a candidate's mask at the size of the image; boxes hold every pixel they touch."""
    height, width = size_hw
    if candidate.mask is not None:
        mask = cv2.resize(candidate.mask.view(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
        return encode_mask(mask)
    rows, columns = canvas.shape[:2]
    x0, y0, x1, y1 = candidate.box_xyxy
    edges = (x0 * width // columns, y0 * height // rows, -(-x1 * width // columns), -(-y1 * height // rows))
    return encode_box(edges, size_hw)
