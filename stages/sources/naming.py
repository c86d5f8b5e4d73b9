"""Boxes of any origin become regions: each is called by the phrase that CLIP finds nearest to it.

RegionCLIP (Zhong and others, CVPR 2022, arXiv 2112.09106) calls proposals so by a pool of concepts, and PTP (Wang and
others, CVPR 2023, arXiv 2212.09737) the blocks of a grid by CLIP. Softmax with a temperature over all that a box may be
called; the largest share is the score.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from stages.contract.masks import encode_box, encode_mask, rle_area_px, rle_box_xywh_px
from stages.contract.records import Phrase, Record, Region, Rle
from stages.contract.stage import Device, Forwards
from stages.sources.base import RegionSource
from stages.sources.config import NamedBoxesConfig
from stages.sources.pools import Concept, read_pool

if TYPE_CHECKING:
    from stages.shared.model.texts import TextCache
    from stages.sources.looks import Look

NamedConfigT = TypeVar("NamedConfigT", bound=NamedBoxesConfig)

AT_ONCE: Final[dict[Device, int]] = {"cpu": 16, "cuda": 64}
"""Records whose boxes share forward passes, and images or parts of them of one pass: as many come as a pass has."""


@dataclass(frozen=True, slots=True)
class CandidateBox:
    """A box that has no name yet.

    Attributes:
        box_xyxy: Whole pixels of the canvas, half open, with an area.
        mask: bool of the canvas, the pixels of the thing; None if the box is all there is.
    """

    box_xyxy: tuple[int, int, int, int]
    mask: NDArray[np.bool_] | None = None


@dataclass(frozen=True, slots=True)
class Named:
    """A candidate with its name: number of the text, cosine -1 .. 1 and share of the softmax 0 .. 1."""

    candidate: CandidateBox
    text: int
    cosine: float
    share: float


class NamedBoxes(RegionSource[NamedConfigT]):
    """A source that makes boxes and lets CLIP choose what each is called. Derived classes make the boxes.

    A box gets one name, as in RegionCLIP: the text with the highest cosine. If several captions say it, the region
    stands once for each of them, as regions of heat maps do. `similarity` is the cosine of box and text.
    """

    score_means: ClassVar[str] = (
        "the share of the phrase in the softmax over all that the box may be called, which ranks and is no probability"
    )

    @abstractmethod
    def candidates(self, record: Record, canvas: NDArray[np.uint8]) -> list[CandidateBox]:
        """The boxes of an image, in a fixed order.

        Args:
            record: The record, for what a box depends on beside the pixels.
            canvas: uint8 (H, W, 3), the image.
        """

    def canvas(self) -> dict[str, Any]:
        """See `RegionSource.canvas`."""
        return {"mode": "keep", "patch_px": 1, "max_side_px": self.config.longest_side_px}

    def check(self) -> None:
        """See `RegionSource.check`."""
        if self.config.pool != "captions":
            read_pool(self.config.pool)

    def batch_rows(self, device: Device | None = None) -> int:
        """See `Stage.batch_rows`."""
        on = device or ("cuda" if self._look.model.device.type == "cuda" else "cpu")
        return self.model.batch_size or AT_ONCE[on]

    def setup(self) -> None:
        """Load the model and embed the pool. Raises as `load`, and InputError for a pool that cannot be read."""
        # torch and open_clip take seconds to import; only the workers that need them pay for it.
        from stages.shared.model.load import load  # noqa: PLC0415
        from stages.shared.model.texts import TextCache  # noqa: PLC0415
        from stages.sources.looks import CropLook, RoiLook  # noqa: PLC0415

        cv2.setNumThreads(1)
        model = self._loaded or load(self.model)
        self._texts: TextCache = TextCache(model, self.config.templates)
        self._pool: tuple[Concept, ...] | None = None
        self._pool_embeddings: NDArray[np.float32] | None = None
        if self.config.pool != "captions":
            self._pool = tuple(read_pool(self.config.pool))
            self._pool_embeddings = self._embedded([concept.text for concept in self._pool])
        at_once = self.batch_rows("cuda" if model.device.type == "cuda" else "cpu")
        self._look: Look = (
            RoiLook(model, at_once)
            if self.config.by == "roi"
            else CropLook(model, at_once, enlarge=self.config.enlarge)
        )

    def teardown(self) -> None:
        """Let the model go."""
        del self._look, self._texts

    def take_forwards(self) -> Forwards:
        """See `Stage.take_forwards`; with `by: crop` of parts of images, of which each image has many."""
        return self._look.take_forwards()

    def with_regions(self, records: Sequence[Record]) -> list[Record]:
        """See `RegionSource.with_regions`."""
        out: list[Record] = []
        rows = self.batch_rows()
        for start in range(0, len(records), rows):
            out += self._answered(records[start : start + rows])
        return out

    def _answered(self, records: Sequence[Record]) -> list[Record]:
        found = [self._candidates_of(record) for record in records]
        embeddings = iter(
            self._look(
                [
                    (record.pixels.rgb, [each.box_xyxy for each in own])
                    for record, own in zip(records, found, strict=True)
                    if own and record.pixels is not None
                ]
            )
        )
        return [
            self._named(record, own, next(embeddings)) if own else record
            for record, own in zip(records, found, strict=True)
        ]

    def _candidates_of(self, record: Record) -> list[CandidateBox]:
        if record.pixels is None or (self._pool is None and not record.phrases):
            return []
        return self.candidates(record, record.pixels.rgb)

    def _embedded(self, texts: Sequence[str]) -> NDArray[np.float32]:
        import torch  # noqa: PLC0415

        with torch.no_grad():
            embeddings: NDArray[np.float32] = self._texts(texts).cpu().numpy()
        return embeddings

    def _named(self, record: Record, own: Sequence[CandidateBox], embeddings: NDArray[np.float32]) -> Record:
        if self._pool is None or self._pool_embeddings is None:
            texts = list(dict.fromkeys(phrase.text for phrase in record.phrases))
            against, concepts = self._embedded(texts), {}
        else:
            texts, against = [concept.text for concept in self._pool], self._pool_embeddings
            concepts = {concept.text: concept for concept in self._pool}
        cosines, shares = shares_of(embeddings, against, self.config.temperature)
        best = cosines.argmax(axis=1)
        named = [
            Named(candidate, int(text), float(cosines[number, text]), float(shares[number, text]))
            for number, (candidate, text) in enumerate(zip(own, best, strict=True))
            if shares[number, text] >= self.config.min_score
        ]
        by_text: dict[str, list[Named]] = {}
        for each in sorted(named, key=lambda one: (-one.share, -one.cosine)):
            ours = by_text.setdefault(texts[each.text], [])
            if self.config.per_phrase is None or len(ours) < self.config.per_phrase:
                ours.append(each)
        said = {phrase.text for phrase in record.phrases}
        unsaid = [concepts[text].as_phrase() for text in by_text if text not in said]
        return with_named(record, (*record.phrases, *unsaid), by_text)


def shares_of(
    embeddings: NDArray[np.float32], texts: NDArray[np.float32], temperature: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Unit embeddings (N, E) of boxes and (T, E) of texts -> cosines and shares of the softmax over the texts, (N, T).

    Cosines are rounded to six decimals before anything is compared: sums in float32 are no more exact.
    """
    products: NDArray[np.float32] = embeddings @ texts.T
    cosines: NDArray[np.float64] = products.astype(np.float64).round(6)
    powers = np.exp((cosines - cosines.max(axis=1, keepdims=True)) / temperature)
    return cosines, np.round(powers / powers.sum(axis=1, keepdims=True), 6)


def with_named(record: Record, phrases: tuple[Phrase, ...], named: dict[str, list[Named]]) -> Record:
    """The record with a region for each phrase and each box that is called so, in the order of the phrases."""
    size_hw = (record.height_px, record.width_px)
    masks = {text: [mask_at(each.candidate, record, size_hw) for each in own] for text, own in named.items()}
    regions = tuple(
        Region(
            phrase_index=index,
            box_xywh_px=rle_box_xywh_px(mask),
            mask=mask,
            area_px=rle_area_px(mask),
            score=min(1.0, max(0.0, each.share)),
            similarity=min(1.0, max(-1.0, each.cosine)),
        )
        for index, phrase in enumerate(phrases)
        for each, mask in zip(named.get(phrase.text, ()), masks.get(phrase.text, ()), strict=True)
    )
    return replace(record, phrases=phrases, regions=regions)


def mask_at(candidate: CandidateBox, record: Record, size_hw: tuple[int, int]) -> Rle:
    """The mask of a candidate at the size of the image. A box keeps every pixel that it touches."""
    assert record.pixels is not None, "a candidate comes from pixels"  # noqa: S101
    height, width = size_hw
    rows, columns = record.pixels.rgb.shape[:2]
    if candidate.mask is not None:
        mask = cv2.resize(candidate.mask.view(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
        return encode_mask(mask)
    x0, y0, x1, y1 = candidate.box_xyxy
    left, right = x0 * width // columns, -(-x1 * width // columns)
    top, bottom = y0 * height // rows, -(-y1 * height // rows)
    return encode_box((left, top, right, bottom), size_hw)
