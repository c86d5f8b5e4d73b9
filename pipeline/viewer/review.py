"""Review: people say of one region after another whether it is right, and delete regions or correct their boxes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, NamedTuple

from pydantic import Field

from pipeline.dataset.folder import Dataset, NumberedRows
from pipeline.dataset.reviews import RegionKey, Review, ReviewLog, Reviews, Said, append_review
from pipeline.dataset.selection import REGION
from pipeline.evaluate.review_sample import sample_for_review
from pipeline.evaluate.reviewed import review_figures, reviewed_regions
from pipeline.viewer.sample_view import outline_path
from stages.contract.errors import InputError

REGIONS: Final = 200  # to review
PAUSE: Final = 5.0  # between two computations of the figures, as a multiple of the time that they take


class SaidOf(Said):
    """A request: what somebody says of a region of a row."""

    row: int = Field(ge=0, lt=10**15)
    annotation_id: int


class Stored(NamedTuple):
    """The numbers of regions that somebody has corrected, and of those that are drawn as one with them and stay."""

    regions: int
    stay: int


@dataclass(kw_only=True)
class Reviewing:
    """A sample of a dataset's regions, the same for everybody, and what people say of them. Threads may share it."""

    dataset: Dataset
    rows: NumberedRows
    log: ReviewLog
    count: int = REGIONS
    seed: int = 0
    _told: tuple[Reviews | None, dict[str, Any], float] = (None, {}, 0.0)  # figures, of what, good until when

    @cached_property
    def sample(self) -> list[tuple[int, RegionKey]]:
        """The rows and keys of the regions to review, in their order. Raise InputError for a damaged shard."""
        drawn = sample_for_review(self.dataset, self.count, self.seed)
        rows = self.rows.rows_at([row for row, _ in drawn], [REGION + name for name in ("id", "phrase", "bbox")])
        return [(row, RegionKey.of(_annotation(one, id_))) for (row, id_), one in zip(drawn, rows, strict=True)]

    def state(self, reviewer: str) -> dict[str, Any]:
        """Return the sample, who has answered, the reviewer's own answers, and the `review_figures` of all answers.

        Raise InputError if the run has not finished, or for a damaged file.
        """
        if not self.dataset.finished:
            raise InputError("the run has not finished; its regions can be reviewed once it has")
        reviews = self.log.current()
        regions = []
        for row, key in self.sample:
            said = reviews.answers.get(key, {})
            own = said.get(reviewer)
            mine = own and own.model_dump(mode="json", include={"answer", "seconds", "time"})
            regions.append({"row": row, "id": key.annotation_id, "answered": list(said), "own": mine})
        calibrated = bool(self.dataset.manifest.get("calibration"))
        return {"regions": regions, "calibrated": calibrated, "figures": self._figures(reviews)}

    def _figures(self, reviews: Reviews) -> dict[str, Any]:
        known, figures, until = self._told
        if reviews is not known and (start := time.monotonic()) >= until:
            try:
                figures = review_figures(reviewed_regions(self.dataset))
            except InputError as error:  # no answer counts yet
                figures = {"note": str(error).partition(";")[0]} if reviews.answers or reviews.skipped else {}
            now = time.monotonic()
            self._told = reviews, figures, now + PAUSE * (now - start)
        return figures

    def region(self, row: int, annotation_id: int) -> dict[str, Any] | None:
        """Return what the page shows of a region; None if there is no such region."""
        rows = self.rows.rows_at([row], ("width", "height", "captions", "annotations"))
        one = _annotation(rows[0], annotation_id) if rows else None
        if one is None:
            return None
        caption = rows[0]["captions"][one["caption_index"]]
        start, end = one["span"]
        correction = self.log.current().corrections.get(RegionKey.of(one))
        return {
            **{name: rows[0][name] for name in ("width", "height")},
            "phrase": caption[start:end] or one["phrase"],  # a concept of a pool stands in no caption
            "caption": [caption[:start], caption[start:end], caption[end:]],
            "bbox": one["bbox"],
            "path": outline_path(one["segmentation"]),
            "deleted": correction is not None and correction.action == "delete",
            "corrected": correction and correction.box_xywh_px,
        }

    def record(self, said: SaidOf) -> Stored | None:
        """Store what somebody says of a region; None if there is none. Raise OSError if it cannot be stored.

        A correction is one of all that is drawn as one: the same phrase in other captions, and for a box also the other
        phrases of the thing that share it.
        """
        rows = self.rows.rows_at([said.row], ["annotations"])
        one = _annotation(rows[0], said.annotation_id) if rows else None
        if one is None:
            return None
        now = self.log.current().corrections.get(RegionKey.of(one))
        action = now.action if now and said.action == "undone" else said.action
        stored = 0
        stay = 0
        for other in rows[0]["annotations"] if action else (one,):
            is_drawn_here = (other["bbox"], other["segmentation"]) == (one["bbox"], one["segmentation"])
            in_thing = action == "box" and one["group"] is not None and other["group"] == one["group"]
            if other is one or (is_drawn_here and (in_thing or other["phrase"] == one["phrase"])):
                values = said.model_dump(exclude={"row", "annotation_id"}, exclude_none=True)
                append_review(self.dataset.path, Review(**RegionKey.of(other)._asdict(), **values))
                stored += 1
            else:
                stay += is_drawn_here and one["group"] is not None and other["group"] == one["group"]
        return Stored(stored, stay)


def _annotation(row: Mapping[str, Any], annotation_id: int) -> Any:
    return next((one for one in row["annotations"] or () if one["id"] == annotation_id), None)
