"""Review: people say of one region after another whether it is right, and delete regions or correct their boxes."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline.dataset.folder import Dataset, NumberedRows
from pipeline.dataset.reviews import RegionKey, Review, ReviewLog, Said, find_regions, merged_answer
from pipeline.dataset.selection import REGION
from pipeline.evaluate.estimates import Estimate, wilson
from pipeline.evaluate.review_sample import Population, population_of
from pipeline.viewer.sample_view import outline_path
from stages.contract.errors import InputError

REGIONS: Final = 200  # to review
BINS: Final = 5  # of the calibration curve, with as many answers each
LEAST_IN_BIN: Final = 5
LEAST_SCORES: Final = (0.0, 0.5)  # for which precision is given


class SaidOf(Said):
    """A request: what somebody says of a region of a row."""

    row: int = Field(ge=0, lt=10**15)
    annotation_id: int


@dataclass(kw_only=True)
class Reviewing:
    """A sample of a dataset's regions, the same for everybody, and what people say of them. Threads may share it."""

    dataset: Dataset
    rows: NumberedRows
    log: ReviewLog
    count: int = REGIONS
    seed: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _foreign: dict[RegionKey, bool] = field(default_factory=dict)  # of the answers: whether it is not in the dataset

    @cached_property
    def _population(self) -> Population:
        return population_of(self.dataset)

    @cached_property
    def _places(self) -> NDArray[np.int64]:
        return self._population.drawn(self.count, self.seed)

    @cached_property
    def _keys(self) -> list[RegionKey]:
        rows = self._population.rows[self._places].tolist()
        found = self.rows.rows_at(rows, [REGION + name for name in ("id", "phrase", "bbox")])
        ids = self._population.ids[self._places].tolist()
        return [RegionKey.of(_annotation(row, name)) for row, name in zip(found, ids, strict=True)]

    def state(self, reviewer: str) -> dict[str, Any]:
        """Return the sample in its order, who has answered, the reviewer's own answers, and what all of them say.

        Raise InputError if the run has not finished, or for a damaged file.
        """
        if not self.dataset.finished:
            raise InputError("the run has not finished; its regions can be reviewed once it has")
        reviews = self.log.current()
        with self._lock:
            rows, ids = (each[self._places].tolist() for each in (self._population.rows, self._population.ids))
            if unknown := reviews.answers.keys() - self._foreign.keys() - set(self._keys):
                found = find_regions(self.dataset, unknown)
                self._foreign |= {key: key not in found for key in unknown}
        answers = [reviews.answers.get(key, {}) for key in self._keys]
        return {
            "regions": [
                {
                    "row": row,
                    "id": name,
                    "answered": list(said),
                    "own": said[reviewer].model_dump(mode="json", include={"answer", "seconds", "time"})
                    if reviewer in said
                    else None,
                }
                for row, name, said in zip(rows, ids, answers, strict=True)
            ],
            "calibrated": bool(self.dataset.manifest.get("calibration")),
            "skipped": reviews.skipped,
            "foreign": sum(self._foreign.get(key, False) for key in reviews.answers),
            **self._figures(answers),
        }

    def _figures(self, answers: Sequence[Mapping[str, Review]]) -> dict[str, Any]:
        """The calibration curve of the answers, and the precision of the dataset's regions from some scores on."""
        said = [merged_answer(one.values()) for one in answers]
        known = [place for place, one in enumerate(said) if one != "unsure"]
        right = np.array([said[place] == "right" for place in known], np.bool_)
        places = self._places[known]
        scores, weights = self._population.scores[places], self._population.weights(places)

        def share(part: NDArray[Any]) -> Estimate:
            counted = weights[part]
            return wilson(float(counted @ right[part] / counted.sum()), float(counted.sum() ** 2 / (counted @ counted)))

        bins = np.array_split(np.argsort(scores, kind="stable"), max(1, min(BINS, len(known) // LEAST_IN_BIN)))
        return {
            "curve": [
                {"score": float(scores[part].mean()), **share(part).plain(), "n": len(part)}
                for part in bins
                if part.size
            ],
            "precision": [
                {"least": least, **share(part).plain(), "n": len(part)}
                for least in LEAST_SCORES
                if (part := np.flatnonzero(scores >= least)).size
            ],
        }

    def region(self, row: int, annotation_id: int) -> dict[str, Any] | None:
        """Return what a page shows of a region; None if there is no such region."""
        columns = ("file_name", "width", "height", "captions", "annotations")
        for values in self.rows.rows_at([row], columns):
            if (one := _annotation(values, annotation_id)) is not None:
                caption, (start, end) = values["captions"][one["caption_index"]], one["span"]
                correction = self.log.current().corrections.get(RegionKey.of(one))
                return {
                    **{name: values[name] for name in ("file_name", "width", "height")},
                    "phrase": caption[start:end] or one["phrase"],  # a concept of a pool stands in no caption
                    "caption": [caption[:start], caption[start:end], caption[end:]],
                    "bbox": one["bbox"],
                    "path": outline_path(one["segmentation"]),
                    "deleted": correction is not None and correction.action == "delete",
                    "corrected": correction and correction.box_xywh_px,
                }
        return None

    def record(self, said: SaidOf) -> bool:
        """Store what somebody says of a region; return whether there is one. Raise OSError if it cannot be stored.

        A correction is one of all that is drawn as one: the same phrase in other captions, and for a box also the other
        phrases of the thing that share it.
        """
        rows = self.rows.rows_at([said.row], ["annotations"])
        one = _annotation(rows[0], said.annotation_id) if rows else None
        if one is None:
            return False
        corrections = self.log.current().corrections
        now = corrections.get(RegionKey.of(one))
        what = now.action if said.action == "undone" and now else said.action
        what_is_said = said.model_dump(exclude={"row", "annotation_id"}, exclude_none=True)
        for other in rows[0]["annotations"] if what else (one,):
            is_drawn_here = (other["bbox"], other["segmentation"]) == (one["bbox"], one["segmentation"])
            in_thing = what == "box" and one["group"] is not None and other["group"] == one["group"]
            if other is one or (is_drawn_here and (in_thing or other["phrase"] == one["phrase"])):
                key = RegionKey.of(other)
                self.log.append(Review(**key._asdict(), **what_is_said))
        return True


def _annotation(row: Mapping[str, Any], annotation_id: int) -> Any:
    return next((one for one in row["annotations"] or () if one["id"] == annotation_id), None)
