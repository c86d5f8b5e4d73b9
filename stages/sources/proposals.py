"""`source.kind: proposals`: class-agnostic proposals, named by CLIP, as RegionCLIP joins them (arXiv 2112.09106).

The proposals are those of selective search (Uijlings and others, IJCV 2013), without classes and
without training: small segments are joined again and again, the most alike neighbours first,
until one is left. Every segment on the way is a proposal.

Deviations: the small segments are a watershed of OpenCV, flooded from areas without edges, in
place of a graph-based segmentation. There is one colour space and one segmentation instead of up
to 80 strategies. Textures are left out. Proposals are ordered by how long they last instead of
at random within their level, so that the first ones are the best.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from phrasebox.stages.contract.geometry import box_iou, scaled_sides, xyxy_to_xywh
from phrasebox.stages.contract.records import Record
from phrasebox.stages.contract.values import PixelBox, Rgb
from phrasebox.stages.sources.naming import CandidateBox, NamedBoxes, NamedBoxesConfig

BINS: Final = 8  # of each channel of the colour histograms
SMOOTHING: Final = 0.8  # standard deviation in pixels of the blur before the segmentation, as in the paper
MOST_SEGMENTS: Final = 200  # small segments of an image; each costs a search through all pairs
SEARCH_SIDE_PX: Final = 224  # longer side of the image that is searched; parts are cut from the larger one
MAX_AREA_SHARE: Final = 0.95  # largest share of the image: the whole image is no proposal
NMS_IOU: Final = 0.5  # a proposal that overlaps a better one by more is left out; RegionCLIP's


class ProposalSourceConfig(NamedBoxesConfig):
    """Proposals, each called by its nearest phrase."""

    kind: Literal["proposals"] = "proposals"
    count: int = Field(
        100, ge=1, le=2000, description="Most proposals of an image. RegionCLIP samples 100 of 300."
    )
    # What is small looks like anything.
    min_area_share: float = Field(
        0.01, ge=0, le=1, description="Smallest share of the image that a proposal may cover."
    )
    min_score: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Proposals whose nearest phrase has a smaller share of the softmax are left out. RegionCLIP's.",
    )


class ProposalSource(NamedBoxes[ProposalSourceConfig]):
    """Proposals by selective search, each called by its nearest phrase.

    RegionCLIP (Zhong and others, CVPR 2022) takes the proposals of a network trained on human
    boxes; here nothing is trained. Its concepts are parsed from a corpus of captions (`concepts:
    pool`), without the image's own phrases, which count here. It embeds proposals by RoIAlign on
    the teacher's feature map (`by: roi`). A region's mask is the proposal's own segment.
    """

    config_type = ProposalSourceConfig
    regions_come_from = (
        "proposals of selective search, each called by the phrase that CLIP finds nearest to it"
    )

    def candidates(self, record: Record, canvas: Rgb) -> list[CandidateBox]:
        """See `NamedBoxes.candidates`."""
        config = self.config
        height, width = canvas.shape[:2]
        shrink = min(1.0, SEARCH_SIDE_PX / max(height, width))
        small_wh = scaled_sides((width, height), shrink)
        small = cv2.resize(canvas, small_wh, interpolation=cv2.INTER_AREA) if shrink < 1 else canvas
        total = small.shape[0] * small.shape[1]
        least_px = max(1, round(config.min_area_share * total))
        most_px = round(MAX_AREA_SHARE * total)
        labels = segment_finely(small)
        segments = [
            segment for segment in build_hierarchy(small, labels) if least_px <= segment.area_px <= most_px
        ]
        proposals = suppress_overlaps(segments, most=config.count, iou=NMS_IOU)
        fine_labels = (
            cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST) if shrink < 1 else labels
        )
        masks = [np.isin(fine_labels, sorted(proposal.parts)) for proposal in proposals]
        boxes = [(cv2.boundingRect(mask.view(np.uint8)), mask) for mask in masks if mask.any()]
        return [CandidateBox((x, y, x + w, y + h), mask) for (x, y, w, h), mask in boxes]


@dataclass(slots=True, eq=False)
class Segment:
    """A segment of the hierarchy.

    Attributes:
        parts: Numbers of its finest segments.
        box_xyxy: Whole pixels, half open.
        area_px: Number of its pixels.
        colours: Histogram of its colours, with the sum 1.
        birth: Share of all joins before it exists.
        death: Share of all joins before it ends.
    """

    parts: frozenset[int]
    box_xyxy: PixelBox
    area_px: int
    colours: NDArray[np.float64]
    birth: float = 0.0
    death: float = 1.0

    def join(self, other: Segment, when: float) -> Segment:
        """Return the segment of both. It begins `when` both end."""
        area = self.area_px + other.area_px
        colours = (self.colours * self.area_px + other.colours * other.area_px) / area
        self.death = other.death = when
        return Segment(self.parts | other.parts, self._union_box(other), area, colours, birth=when)

    def likeness(self, other: Segment, total: int) -> float:
        """Return the likeness of two segments of an image of `total` pixels."""
        colour = float(np.minimum(self.colours, other.colours).sum())
        area = self.area_px + other.area_px
        x0, y0, x1, y1 = self._union_box(other)
        return round(colour + (1 - area / total) + (1 - ((x1 - x0) * (y1 - y0) - area) / total), 9)

    def _union_box(self, other: Segment) -> PixelBox:
        a0, b0, a1, b1 = self.box_xyxy
        c0, d0, c1, d1 = other.box_xyxy
        return min(a0, c0), min(b0, d0), max(a1, c1), max(b1, d1)


def segment_finely(rgb: Rgb, *, most: int = MOST_SEGMENTS) -> NDArray[np.int32]:
    """Return the numbers from 0 of the small segments of an image uint8 (H, W, 3), at most `most`: int32 (H, W).

    The `most` largest areas of below-median gradient are the basins of a watershed.
    """
    height, width = rgb.shape[:2]
    smooth = cv2.GaussianBlur(rgb, (0, 0), SMOOTHING)
    gradient = cv2.morphologyEx(smooth, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)).max(axis=2)
    is_flat = (gradient <= np.median(gradient)).astype(np.uint8)
    _, areas, facts, _ = cv2.connectedComponentsWithStats(is_flat, connectivity=4)
    largest = np.argsort(-facts[1:, cv2.CC_STAT_AREA], kind="stable")[:most] + 1
    number_of = np.zeros(len(facts), np.int32)
    number_of[largest] = np.arange(1, len(largest) + 1)
    # OpenCV floods no pixel of the border, and leaves a line between basins.
    framed = cv2.copyMakeBorder(smooth, 1, 1, 1, 1, cv2.BORDER_REPLICATE)
    basins = cv2.copyMakeBorder(number_of[areas], 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    labels = cv2.watershed(framed, basins)[1 : height + 1, 1 : width + 1].clip(0).astype(np.float32)
    while not labels.all():
        labels = np.where(labels, labels, cv2.dilate(labels, np.ones((3, 3), np.uint8)))
    # An area that others enclose may have lost all its pixels.
    numbers: NDArray[np.int64] = np.unique(labels, return_inverse=True)[1]
    return numbers.reshape(height, width).astype(np.int32)


def build_hierarchy(rgb: Rgb, labels: NDArray[np.int32]) -> list[Segment]:
    """Image uint8 (H, W, 3) and its finest segments -> all on the way to the whole image, in the order of their birth.

    The likeness of two neighbours has three of the four measures of selective search, added up:
    the intersection of their colour histograms, their smallness in the image, and their share
    of the box around both.
    """
    segments = _finest_segments(rgb, labels)
    count = len(segments)
    total = labels.size
    neighbours = _neighbours(labels, count)
    likeness = {
        (a, b): segments[a].likeness(segments[b], total)
        for a in range(count)
        for b in neighbours[a]
        if a < b
    }
    while likeness:
        first, second = max(likeness, key=lambda pair: (likeness[pair], -pair[0], -pair[1]))
        number = len(segments)
        segments.append(segments[first].join(segments[second], when=(number - count + 1) / (count - 1)))
        adjacent = (neighbours[first] | neighbours[second]) - {first, second}
        for part in (first, second):
            for other in neighbours[part]:
                likeness.pop((min(part, other), max(part, other)), None)
                neighbours[other].discard(part)
        neighbours.append(adjacent)
        for other in adjacent:
            neighbours[other].add(number)
            likeness[other, number] = segments[other].likeness(segments[number], total)
    return [segment for segment in segments if len(segment.parts) < count]


def _finest_segments(rgb: Rgb, labels: NDArray[np.int32]) -> list[Segment]:
    count = int(labels.max()) + 1
    colours = cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB).reshape(-1, 3).astype(np.int64) * BINS // 256
    bins = labels.reshape(-1, 1).astype(np.int64) * (3 * BINS) + np.arange(3) * BINS + colours
    histograms = np.bincount(bins.ravel(), minlength=count * 3 * BINS).reshape(count, 3 * BINS)
    segments = []
    for number, histogram in enumerate(histograms):
        x, y, w, h = cv2.boundingRect((labels == number).view(np.uint8))
        area = int(histogram.sum()) // 3
        segments.append(
            Segment(frozenset((number,)), (x, y, x + w, y + h), area, histogram / max(1, 3 * area))
        )
    return segments


def _neighbours(labels: NDArray[np.int32], count: int) -> list[set[int]]:
    """Return the segments that touch each segment along an edge of a pixel."""
    neighbours: list[set[int]] = [set() for _ in range(count)]
    for before, after in ((labels[:, :-1], labels[:, 1:]), (labels[:-1], labels[1:])):
        differ = before != after
        for a, b in set(zip(before[differ].tolist(), after[differ].tolist(), strict=True)):
            neighbours[a].add(b)
            neighbours[b].add(a)
    return neighbours


def suppress_overlaps(segments: list[Segment], *, most: int, iou: float) -> list[Segment]:
    """Return the `most` segments that last longest, without those that overlap a better one with a larger IoU."""
    best: list[Segment] = []
    for segment in sorted(segments, key=lambda s: (round(s.birth - s.death, 9), -s.area_px, s.box_xyxy)):
        box = xyxy_to_xywh(segment.box_xyxy)
        if len(best) < most and all(box_iou(box, xyxy_to_xywh(other.box_xyxy)) <= iou for other in best):
            best.append(segment)
    return best
