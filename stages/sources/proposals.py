"""`source.kind: proposals`: class-agnostic proposals and a pool of concepts, as RegionCLIP joins them (2112.09106)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from stages.contract.records import Record
from stages.sources.config import NamedBoxesConfig
from stages.sources.naming import CandidateBox, NamedBoxes
from stages.sources.selective_search import finest_segments, hierarchy, segmentation, spread_out

Share = Annotated[float, Field(ge=0.0, le=1.0)]


class ProposalSourceConfig(NamedBoxesConfig):
    """Proposals, each called by its best concept."""

    kind: Literal["proposals"] = "proposals"

    count: Annotated[int, Field(ge=1, le=2000)] = 100
    """The most proposals of an image, those that last longest in the hierarchy. RegionCLIP samples 100 of 300."""

    nms_iou: Share = 0.5
    """A proposal whose box has a larger IoU with that of a better one is left out. RegionCLIP takes .5."""

    min_area_share: Share = 0.01
    """Smallest share of the image that a proposal may cover. On 40 photographs .002 gives 80 proposals an image and .01
    a third of them, with two to three times as many of the best-scored ones on their thing: what is small looks like
    anything (measured)."""

    max_area_share: Share = 0.95
    """Largest share: the whole image is no proposal."""

    scale: Annotated[float, Field(gt=0.0)] = 100.0
    """Of the segments that the hierarchy begins with: larger gives fewer and larger ones. Selective search takes 50 to
    300."""

    search_side_px: Annotated[int, Field(ge=32, le=2048)] = 224
    """The longer side of the image that is searched for segments; the parts are cut from the larger one."""

    min_score: Share = 0.1
    """Proposals whose best concept has a smaller share of the softmax are left out. .1 is RegionCLIP's."""


class ProposalSource(NamedBoxes[ProposalSourceConfig]):
    """Proposals by selective search (`selective_search`), each called by a concept of the captions or of a pool.

    RegionCLIP (Zhong and others, CVPR 2022) takes the proposals of a region proposal network, which has learned from
    human boxes; here nothing has. Its concepts are parsed from a corpus of captions: `phrasebox pool` writes such a
    pool, and `source.pool` names it. It embeds proposals by RoIAlign on the teacher's feature map (`by: roi`). A
    region's mask is the proposal's own segment.
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
        """See `NamedBoxes.candidates`: the longest-lasting first."""
        height, width = canvas.shape[:2]
        shrink = min(1.0, self.config.search_side_px / max(height, width))
        small_wh = max(1, round(width * shrink)), max(1, round(height * shrink))
        small = cv2.resize(canvas, small_wh, interpolation=cv2.INTER_AREA) if shrink < 1 else canvas
        total = small.shape[0] * small.shape[1]
        least = max(1, round(self.config.min_area_share * total))
        labels = finest_segments(small, scale=self.config.scale, min_size_px=least)
        found = spread_out(
            hierarchy(small, labels),
            most=self.config.count,
            iou=self.config.nms_iou,
            least_px=least,
            most_px=round(self.config.max_area_share * total),
        )
        fine = cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST) if shrink < 1 else labels
        boxes = []
        for each in found:
            mask = np.isin(fine, sorted(each.parts))
            x, y, w, h = cv2.boundingRect(mask.view(np.uint8))
            if w and h:
                boxes.append(CandidateBox((x, y, x + w, y + h), mask))
        return boxes
