"""How the generic calibration does on models that its fit has not seen, and what a fit to their own maps would do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from benchmarks.generic.fit import REGIONS, Source
from benchmarks.generic.maps import MapSet
from phrasebox.pipeline.evaluate.estimates import (
    Estimate,
    debiased_calibration_error,
    risk_coverage_area,
    weighted_estimate,
)
from phrasebox.pipeline.evaluate.metrics import is_right
from phrasebox.pipeline.run.generic import box_inputs
from phrasebox.stages.contract.values import Floats
from phrasebox.stages.regions.stage import RegionsStage
from phrasebox.stages.scores.score import Calibration

HIGH: Final = 0.5  # the score from which most regions are used


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What a calibration makes of the photographs of a split.

    Attributes:
        images: The image of each query (queries,).
        hits: Whether a region of each query is right, 0 or 1.
        scores, right, owners: Of each region once: its score, whether it is right, its image.
    """

    images: Floats
    hits: Floats
    scores: Floats
    right: Floats
    owners: Floats

    @property
    def recall(self) -> Estimate:
        """The share of the queries with a right region."""
        return weighted_estimate(
            lambda draw: float(draw @ self.hits / draw.sum()), self.images.astype(np.int64)
        )

    def gain_over(self, other: Answers) -> Estimate:
        """The gain in that share over other answers to the same queries."""
        gain = self.hits - other.hits
        return weighted_estimate(lambda draw: float(draw @ gain / draw.sum()), self.images.astype(np.int64))

    def figures(self) -> dict[str, Any]:
        """Return the figures of the scores."""
        right = self.right.astype(np.bool_)
        is_high = self.scores >= HIGH
        error = debiased_calibration_error(self.scores, right, self.owners.astype(np.int64))
        return {
            "error": error,
            "excess": float(self.scores.mean() - self.right.mean()),
            "aurc": risk_coverage_area(self.scores, right)(np.ones(len(right))),
            "share_high": float(is_high.mean()),
            "right_high": float(self.right[is_high].mean()) if is_high.any() else float("nan"),
        }


def brought(generic: Calibration, maps: MapSet) -> Calibration:
    """Return a generic calibration brought to maps, which have their exponent."""
    assert generic.box is not None
    inputs = box_inputs(REGIONS, generic, maps.raised())
    return generic.model_copy(update={"box": generic.box.with_moments(inputs)})


def answer(source: Source, calibration: Calibration | None, *, one_caption: bool = False) -> Answers:
    """Return the answers of a calibration, or of none, about all captions or one."""
    images: list[int] = []
    hits: list[bool] = []
    regions: list[tuple[float, bool, int]] = []
    stage = RegionsStage(REGIONS.model_copy(update={"absent_share": 0.05}), calibration)
    rows = (
        [view for view in source.views if view.captions == 1]
        if one_caption
        else [view for view in source.views if view.captions is None]
    )
    for row, record, _ in rows:
        answers = stage.regions_of(record)
        presences = {heat_map.text: heat_map.presence for heat_map in record.heat_maps}
        judged = set()
        for query in source.labels.queries(row, record.phrases):
            if query.target is None:
                continue
            boxes = query.target.boxes_xywh_px
            regions_of_phrase = [] if query.phrase_index is None else answers[query.phrase_index]
            is_hit = [is_right(region.box_xywh_px, boxes) for region, _ in regions_of_phrase]
            images.append(query.image)
            hits.append(any(is_hit))
            if (query.phrase, boxes) in judged:
                continue
            judged.add((query.phrase, boxes))
            for (_, evidence), right in zip(regions_of_phrase, is_hit, strict=True):
                score = (
                    evidence.score * (presences[query.phrase or ""] or 1.0)
                    if calibration is None
                    else calibration.probability(evidence)
                )
                regions.append((score, right, query.image))
    scores, right, owners = np.array(regions, np.float64).T
    return Answers(
        images=np.array(images, np.float64),
        hits=np.array(hits, np.float64),
        scores=scores,
        right=right,
        owners=owners,
    )


def without_family(sources: Sequence[Source], family: str) -> list[Source]:
    """Return the sources that share no trunk with a family."""
    return [source for source in sources if not source.maps.source.startswith(family)]
