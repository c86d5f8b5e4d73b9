"""Boxes of any origin become regions: each is called by the phrase that CLIP finds nearest to it.

RegionCLIP (Zhong and others, CVPR 2022, arXiv 2112.09106) calls proposals so by a pool of concepts, and PTP (Wang and
others, CVPR 2023, arXiv 2212.09737) the blocks of a grid by CLIP. Softmax with a temperature over all that a box may be
called; the largest share is the score.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
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
    from stages.model.clip import ClipModel
    from stages.model.texts import TextCache

NamedConfigT = TypeVar("NamedConfigT", bound=NamedBoxesConfig)

PARTS_AT_ONCE: Final[dict[Device, int]] = {"cpu": 16, "cuda": 256}
"""Parts of images in one forward pass. The last pass of a batch is filled up, so that all have one shape and no region
depends on a neighbour."""

RECORDS_AT_ONCE: Final = 16
"""Records whose boxes share forward passes."""


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
        return RECORDS_AT_ONCE

    def setup(self) -> None:
        """Load the model and embed the pool. Raises as `load`, and InputError for a pool that cannot be read."""
        # torch and open_clip take seconds to import; only the workers that need them pay for it.
        from stages.model.load import load  # noqa: PLC0415
        from stages.model.texts import TextCache  # noqa: PLC0415

        cv2.setNumThreads(1)
        model = self._loaded or load(self.model, pack=True)
        self._clip: ClipModel = model
        self._texts: TextCache = TextCache(model, self.config.templates)
        self._pool: tuple[Concept, ...] | None = None
        self._pool_embeddings: NDArray[np.float32] | None = None
        if self.config.pool != "captions":
            self._pool = tuple(read_pool(self.config.pool))
            self._pool_embeddings = self._embedded([concept.text for concept in self._pool])
        self._images = self._computed = 0

    def teardown(self) -> None:
        """Let the model go."""
        del self._clip, self._texts

    def take_forwards(self) -> Forwards:
        """See `Stage.take_forwards`: parts of images, of which each image has many."""
        forwards = Forwards(images=self._images, computed=self._computed, device=self._clip.device_name)
        self._images = self._computed = 0
        return forwards

    def with_regions(self, records: Sequence[Record]) -> list[Record]:
        """See `RegionSource.with_regions`."""
        out: list[Record] = []
        for start in range(0, len(records), RECORDS_AT_ONCE):
            out += self._answered(records[start : start + RECORDS_AT_ONCE])
        return out

    def _answered(self, records: Sequence[Record]) -> list[Record]:
        found = [self._candidates_of(record) for record in records]
        parts = (
            self._part(record.pixels.rgb, each.box_xyxy)
            for record, own in zip(records, found, strict=True)
            if record.pixels is not None
            for each in own
        )
        embeddings = iter(self._embedded_parts(parts))
        answers = []
        for record, own in zip(records, found, strict=True):
            if not own:
                answers.append(record)
                continue
            rows = np.stack(list(islice(embeddings, len(own))))
            answers.append(self._named(record, own, rows))
        return answers

    def _candidates_of(self, record: Record) -> list[CandidateBox]:
        if record.pixels is None or (self._pool is None and not record.phrases):
            return []
        return self.candidates(record, record.pixels.rgb)

    def _part(self, canvas: NDArray[np.uint8], box_xyxy: tuple[int, int, int, int]) -> NDArray[np.uint8]:
        """The part of the image in a box, enlarged within the image, at the size of the model's input."""
        x0, y0, x1, y1 = enlarged(box_xyxy, self.config.enlarge, (canvas.shape[0], canvas.shape[1]))
        side = self._clip.input.size_px
        part = canvas[y0:y1, x0:x1]
        how = cv2.INTER_AREA if min(part.shape[:2]) > side else cv2.INTER_CUBIC
        resized: NDArray[np.uint8] = cv2.resize(part, (side, side), interpolation=how)
        return resized

    def _embedded_parts(self, parts: Iterator[NDArray[np.uint8]]) -> Iterator[NDArray[np.float32]]:
        """The unit embedding of each part, (E,)."""
        import torch  # noqa: PLC0415
        import torch.nn.functional as F  # noqa: PLC0415

        size = self.model.batch_size or PARTS_AT_ONCE["cuda" if self._clip.device.type == "cuda" else "cpu"]
        while batch := list(islice(parts, size)):
            self._images += len(batch)
            self._computed += size
            filled = np.stack([*batch, *[np.zeros_like(batch[0])] * (size - len(batch))])
            with torch.no_grad():
                embedded = F.normalize(self._clip.tower.encode(torch.from_numpy(filled)).float(), dim=-1)
            yield from embedded[: len(batch)].cpu().numpy()

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
        for each in sorted(named, key=lambda one: -one.cosine):
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


def enlarged(box_xyxy: tuple[int, int, int, int], factor: float, size_hw: tuple[int, int]) -> tuple[int, int, int, int]:
    """A box with its sides multiplied about its centre, cut off at the image's edges; whole pixels."""
    x0, y0, x1, y1 = box_xyxy
    by_x, by_y = (round((factor - 1) * side / 2) for side in (x1 - x0, y1 - y0))
    height, width = size_hw
    return max(0, x0 - by_x), max(0, y0 - by_y), min(width, x1 + by_x), min(height, y1 + by_y)
