"""`source.kind: proposals`: class-agnostic proposals and a pool of concepts, as RegionCLIP joins them (2112.09106).

The proposals come from selective search (Uijlings and others, IJCV 2013), without classes and without training:
graph-based segments (Felzenszwalb and Huttenlocher, IJCV 2004) are joined again and again, the most alike neighbours
first, until one is left. Every segment on the way is a proposal.

Deviations: one colour space and one segmentation instead of up to 80 strategies; textures are left out; proposals are
ordered by how long they last instead of at random within their level, so that the first ones are the best.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar, Final, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from stages.contract.errors import ConfigError
from stages.contract.geometry import box_iou, xyxy_to_xywh
from stages.contract.records import Record
from stages.sources.naming import CandidateBox, NamedBoxes, NamedBoxesConfig

BINS: Final = 8  # of each channel of the colour histograms
SMOOTHING: Final = 0.8  # standard deviation in pixels of the blur before the segmentation, as in the paper


class ProposalSourceConfig(NamedBoxesConfig):
    """Proposals, each called by its best concept."""

    kind: Literal["proposals"] = "proposals"
    count: int = Field(100, ge=1, le=2000, description="Most proposals of an image. RegionCLIP samples 100 of 300.")
    nms_iou: float = Field(
        0.5,
        ge=0,
        le=1,
        description="A proposal whose box has a larger IoU with that of a better one is left out. RegionCLIP's.",
    )
    # On 40 photographs 0.002 gives 80 proposals an image and 0.01 a third of them, with two to three times as many of
    # the best-scored ones on their thing: what is small looks like anything (measured).
    min_area_share: float = Field(
        0.01, ge=0, le=1, description="Smallest share of the image that a proposal may cover."
    )
    max_area_share: float = Field(0.95, ge=0, le=1, description="Largest share: the whole image is no proposal.")
    scale: float = Field(
        100.0, gt=0.0, description="Size of the first segments; larger gives fewer. Selective search takes 50 to 300."
    )
    search_side_px: int = Field(
        224, ge=32, le=2048, description="Longer side of the image that is searched; parts are cut from the larger one."
    )
    min_score: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Proposals whose best concept has a smaller share of the softmax are left out. RegionCLIP's.",
    )


class ProposalSource(NamedBoxes[ProposalSourceConfig]):
    """Proposals by selective search, each called by a concept of the captions or of a pool.

    RegionCLIP (Zhong and others, CVPR 2022) takes the proposals of a network that has learned from human boxes; here
    nothing has. Its concepts are parsed from a corpus of captions (`source.pool`), and it embeds
    proposals by RoIAlign on the teacher's feature map (`by: roi`). A region's mask is the proposal's own segment.
    """

    config_type = ProposalSourceConfig
    regions_come_from: ClassVar[str] = (
        "proposals of selective search, each called by the concept that CLIP finds nearest to it"
    )

    def check(self) -> None:
        """See `RegionSource.check`."""
        super().check()
        segmentation()

    def candidates(self, record: Record, canvas: NDArray[np.uint8]) -> list[CandidateBox]:
        """See `NamedBoxes.candidates`."""
        config = self.config
        height, width = canvas.shape[:2]
        shrink = min(1.0, config.search_side_px / max(height, width))
        small_wh = max(1, round(width * shrink)), max(1, round(height * shrink))
        small = cv2.resize(canvas, small_wh, interpolation=cv2.INTER_AREA) if shrink < 1 else canvas
        total = small.shape[0] * small.shape[1]
        least = max(1, round(config.min_area_share * total))
        most_px = round(config.max_area_share * total)
        labels = finest_segments(small, scale=config.scale, min_size_px=least)
        segments = hierarchy(small, labels)
        found = spread_out(segments, most=config.count, iou=config.nms_iou, least_px=least, most_px=most_px)
        fine = cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST) if shrink < 1 else labels
        masks = [np.isin(fine, sorted(each.parts)) for each in found]
        placed = [(cv2.boundingRect(mask.view(np.uint8)), mask) for mask in masks if mask.any()]
        return [CandidateBox((x, y, x + w, y + h), mask) for (x, y, w, h), mask in placed]


@dataclass(slots=True, eq=False)
class Segment:
    """A segment of the hierarchy."""

    parts: frozenset[int]  # numbers of the finest segments that it is made of
    box_xyxy: tuple[int, int, int, int]  # whole pixels, half open
    area_px: int
    colours: NDArray[np.float64]  # histogram of its colours, which sums to 1
    born: float = 0.0  # share of all joins after which it exists
    died: float = 1.0  # share of all joins after which it does no more

    def joined(self, other: Segment, when: float) -> Segment:
        """Return the segment of both, which end `when` it begins."""
        area = self.area_px + other.area_px
        colours = (self.colours * self.area_px + other.colours * other.area_px) / area
        self.died = other.died = when
        return Segment(self.parts | other.parts, self._around(other), area, colours, born=when)

    def likeness(self, other: Segment, total: int) -> float:
        """Return how alike two segments of an image of `total` pixels are."""
        colour = float(np.minimum(self.colours, other.colours).sum())
        both = self.area_px + other.area_px
        x0, y0, x1, y1 = self._around(other)
        return round(colour + (1 - both / total) + (1 - ((x1 - x0) * (y1 - y0) - both) / total), 9)

    def _around(self, other: Segment) -> tuple[int, int, int, int]:
        a0, b0, a1, b1 = self.box_xyxy
        c0, d0, c1, d1 = other.box_xyxy
        return min(a0, c0), min(b0, d0), max(a1, c1), max(b1, d1)


def segmentation() -> ModuleType:
    """Return scikit-image's module. Raise ConfigError if it is not installed."""
    try:
        import skimage.segmentation  # noqa: PLC0415  an extra
    except ImportError as error:
        raise ConfigError('source.kind: proposals needs scikit-image: pip install "phrasebox[proposals]"') from error
    module: ModuleType = skimage.segmentation
    return module


def finest_segments(rgb: NDArray[np.uint8], *, scale: float, min_size_px: int) -> NDArray[np.int32]:
    """Return the numbers from 0 of the finest segments of an image uint8 (H, W, 3): int32 (H, W).

    For `scale` see `felzenszwalb` of scikit-image. Segments smaller than `min_size_px` are joined with a neighbour.
    """
    found: Any = segmentation().felzenszwalb(rgb, scale=scale, sigma=SMOOTHING, min_size=min_size_px)
    labels: NDArray[np.int32] = found.astype(np.int32)
    return labels


def hierarchy(rgb: NDArray[np.uint8], labels: NDArray[np.int32]) -> list[Segment]:
    """Image uint8 (H, W, 3) and its finest segments -> all on the way to the whole image, in the order of their birth.

    Two neighbours are as alike as the intersection of their colour histograms, how little of the image both take, and
    how much of the box around both they fill: three of the four measures of selective search, added up.
    """
    found = _finest(rgb, labels)
    count = len(found)
    total = labels.size
    near = _neighbours(labels, count)
    alike = {(a, b): found[a].likeness(found[b], total) for a in range(count) for b in near[a] if a < b}
    while alike:
        best = max(alike, key=lambda pair: (alike[pair], -pair[0], -pair[1]))
        number = len(found)
        found.append(found[best[0]].joined(found[best[1]], when=(number - count + 1) / (count - 1)))
        beside = (near[best[0]] | near[best[1]]) - set(best)
        for old in best:
            for other in near[old]:
                alike.pop((min(old, other), max(old, other)), None)
                near[other].discard(old)
        near.append(beside)
        for other in beside:
            near[other].add(number)
            alike[other, number] = found[other].likeness(found[number], total)
    return [segment for segment in found if len(segment.parts) < count]


def _finest(rgb: NDArray[np.uint8], labels: NDArray[np.int32]) -> list[Segment]:
    count = int(labels.max()) + 1
    colours = cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB).reshape(-1, 3).astype(np.int64) * BINS // 256
    places = labels.reshape(-1, 1).astype(np.int64) * (3 * BINS) + np.arange(3) * BINS + colours
    histograms = np.bincount(places.ravel(), minlength=count * 3 * BINS).reshape(count, 3 * BINS)
    found = []
    for number, histogram in enumerate(histograms):
        x, y, w, h = cv2.boundingRect((labels == number).view(np.uint8))
        area = int(histogram.sum()) // 3
        found.append(Segment(frozenset((number,)), (x, y, x + w, y + h), area, histogram / max(1, 3 * area)))
    return found


def _neighbours(labels: NDArray[np.int32], count: int) -> list[set[int]]:
    """Return the segments that touch each segment along an edge of a pixel."""
    near: list[set[int]] = [set() for _ in range(count)]
    for one, other in ((labels[:, :-1], labels[:, 1:]), (labels[:-1], labels[1:])):
        differ = one != other
        for a, b in set(zip(one[differ].tolist(), other[differ].tolist(), strict=True)):
            near[a].add(b)
            near[b].add(a)
    return near


def spread_out(found: list[Segment], *, most: int, iou: float, least_px: int, most_px: int) -> list[Segment]:
    """Return the `most` segments of `least_px` to `most_px` pixels that last longest.

    Those whose boxes overlap a better one's with a larger IoU than `iou` are left out.
    """
    fitting = [each for each in found if least_px <= each.area_px <= most_px]
    kept: list[Segment] = []
    for each in sorted(fitting, key=lambda one: (round(one.born - one.died, 9), -one.area_px, one.box_xyxy)):
        box = xyxy_to_xywh(each.box_xyxy)
        if len(kept) < most and all(box_iou(box, xyxy_to_xywh(other.box_xyxy)) <= iou for other in kept):
            kept.append(each)
    return kept
