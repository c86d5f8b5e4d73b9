"""Review: people judge one region after another, and delete regions or correct their boxes."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

from pydantic import Field

from phrasebox.pipeline.dataset.folder import Dataset, NumberedRows
from phrasebox.pipeline.dataset.reviews import (
    Judgement,
    RegionKey,
    Review,
    ReviewLog,
    Reviews,
    append_review,
)
from phrasebox.pipeline.dataset.rows import Annotation, Row
from phrasebox.pipeline.dataset.selection import REGION
from phrasebox.pipeline.evaluate.estimates import plain_values
from phrasebox.pipeline.evaluate.reviews import (
    LocatedRegions,
    measure_reviews,
    read_reviewed_regions,
    sample_for_review,
)
from phrasebox.pipeline.viewer.sample_view import outline_path
from phrasebox.stages.contract.errors import InputError
from phrasebox.stages.contract.values import Json

REGIONS: Final = 200  # to review


class ReviewRequest(Judgement):
    """A request: a judgement of the region with an annotation id in a row."""

    row: int = Field(ge=0, lt=10**15)
    annotation_id: int


@dataclass(kw_only=True)
class ReviewSession:
    """A sample of a dataset's regions, the same for all reviewers, and their judgements.

    Threads may share it.
    """

    dataset: Dataset
    rows: NumberedRows
    log: ReviewLog
    count: int = REGIONS
    seed: int = 0
    _cache: tuple[Reviews | None, Json] = (None, {})  # reviews and their figures
    _lock: threading.Lock = field(default_factory=threading.Lock)  # for the cache

    @cached_property
    def _located(self) -> LocatedRegions:
        return LocatedRegions(self.dataset)

    @cached_property
    def sample(self) -> list[tuple[int, RegionKey]]:
        """The rows and keys of the regions to review, in their order.

        Raise InputError for a damaged shard.
        """
        places = sample_for_review(self._located.population, self.count, self.seed)
        rows = self.rows.rows_at(
            [row for row, _ in places], [REGION + name for name in ("id", "phrase", "bbox")]
        )
        return [
            (number, RegionKey.of(_annotation(row, annotation_id)))
            for (number, annotation_id), row in zip(places, rows, strict=True)
        ]

    def state(self, reviewer: str) -> Json:
        """Return the sample, who has answered, the reviewer's own answers, and the figures of all answers.

        `pending` says whether figures lack the latest answers: they follow within seconds. Raise
        InputError if the run has not finished, or for a damaged file.
        """
        if not self.dataset.is_finished:
            raise InputError("the run has not finished; its regions can be reviewed once it has")
        reviews = self.log.current()
        regions = []
        for row, key in self.sample:
            answers = reviews.answers.get(key, {})
            answer = answers.get(reviewer)
            fields = answer and answer.model_dump(mode="json", include={"answer", "seconds", "time"})
            regions.append({"row": row, "id": key.annotation_id, "answered": list(answers), "own": fields})
        calibrated = bool(self.dataset.manifest.get("calibration"))
        figures, pending = self._figures(reviews)
        return {
            "regions": regions,
            "calibrated": calibrated,
            "margin": self.dataset.score_margin,
            "figures": figures,
            "pending": pending,
        }

    def _figures(self, reviews: Reviews) -> tuple[Json, bool]:
        """Return the figures of all answers, and whether these are of earlier reviews: one request computes."""
        if self._cache[0] != reviews and self._lock.acquire(blocking=False):
            try:
                self._measure(reviews)
            finally:
                self._lock.release()
        measured, figures = self._cache
        return figures, measured != reviews

    def _measure(self, reviews: Reviews) -> None:
        try:
            if reviews.answers:  # the sample at once: each search reads the shards
                self._located.find({key for _, key in self.sample})
            figures = plain_values(
                measure_reviews(read_reviewed_regions(self.dataset, located=self._located))
            )
        except InputError as error:  # no answer counts yet
            figures = (
                {"note": str(error).partition(";")[0]}
                if reviews.answers or reviews.unreadable_lines
                else {}
            )
        self._cache = reviews, figures

    def region(self, row: int, annotation_id: int) -> Json | None:
        """Return what the page shows of a region; None if there is no such region."""
        values, region = self._find(row, annotation_id)
        if region is None:
            return None
        caption = values["captions"][region["caption_index"]]
        start, end = region["span"]
        corrections = self.log.current().corrections
        correction = corrections.get(RegionKey.of(region))
        names = {
            twin["phrase"]: {
                "id": twin["id"],
                "phrase": twin["phrase"],
                "deleted": _is_deleted(twin, corrections),
            }
            for twin in values["annotations"]
            if _is_twin(twin, region, "box") and twin["phrase"] != region["phrase"]
        }
        return {
            "width": values["width"],
            "height": values["height"],
            "phrase": caption[start:end] or region["phrase"],  # a concept of a pool stands in no caption
            "caption": [caption[:start], caption[start:end], caption[end:]],
            "bbox": region["bbox"],
            "path": outline_path(region),
            "names": list(names.values()),  # what else the captions call this very box
            "deleted": _is_deleted(region, corrections),
            "corrected": correction and correction.box_xywh_px,
        }

    def store(self, request: ReviewRequest) -> int:
        """Store a judgement of a region, and return the number of regions that it is for; 0 if there is none.

        A correction also applies to equal regions of the same phrase in other captions, and a
        corrected box to those of other phrases of the same object. That of an answer goes with
        it. Raise OSError if it cannot be stored.
        """
        row, region = self._find(request.row, request.annotation_id)
        if region is None:
            return 0
        key = RegionKey.of(region)
        reviews = self.log.current()
        correction = reviews.corrections.get(key)
        values = request.model_dump(exclude={"row", "annotation_id"}, exclude_none=True)
        append_review(self.dataset.path, Review(**key._asdict(), **values))
        action = request.action
        if (
            action is None
            and correction is not None
            and correction is reviews.answers.get(key, {}).get(request.reviewer)
        ):
            action = "undone"
        kind = correction.action if correction and action == "undone" else action
        twins = [other for other in row["annotations"] if _is_twin(other, region, kind)] if kind else []
        for twin in twins:
            change = {"reviewer": request.reviewer, "action": action, "box_xywh_px": request.box_xywh_px}
            append_review(self.dataset.path, Review(**RegionKey.of(twin)._asdict(), **change))
        return 1 + len(twins)

    def _find(self, number: int, annotation_id: int) -> tuple[Row, Annotation | None]:
        """Return the row with a number, and its region with an id; None if there is none."""
        rows = self.rows.rows_at([number], ("width", "height", "captions", "annotations"))
        row = rows[0] if rows else {}
        return row, _annotation(row, annotation_id)


def _is_twin(other: Annotation, region: Annotation, kind: str) -> bool:
    """Return whether a correction of a kind also applies to another region of the row."""
    is_equal = (other["bbox"], other["segmentation"]) == (region["bbox"], region["segmentation"])
    shares_box = kind == "box" and region["group"] is not None and other["group"] == region["group"]
    return other["id"] != region["id"] and is_equal and (shares_box or other["phrase"] == region["phrase"])


def _is_deleted(region: Annotation, corrections: Mapping[RegionKey, Review]) -> bool:
    correction = corrections.get(RegionKey.of(region))
    return correction is not None and correction.action == "delete"


def _annotation(row: Row, annotation_id: int) -> Any:
    annotations = row.get("annotations") or ()
    return next((annotation for annotation in annotations if annotation["id"] == annotation_id), None)
