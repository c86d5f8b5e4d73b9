"""`phrasebox models check`: does a CLIP model work on the bundled photographs?

Weights that do not fit their architecture, a wrong tokenizer or a wrong normalisation seldom
raise an error: the model computes, and knows nothing. Two questions show this:

retrieval  Is each photograph nearest to its own caption, and each caption to its own photograph? A model that knows
           nothing is right once in each direction.
heat       Does the heat map of a phrase lie on the object? It is compared with a spot in the middle of the image, and
           with the other phrases' maps: the rest is knowledge of the phrase. Peaks alone would
           be too coarse a test with so few phrases: a map of 14 x 14 cells may lie on a small object
           and have its peak beside it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from phrasebox.pipeline.demo.photographs import INPUT, TRUTH
from phrasebox.pipeline.evaluate.estimates import Estimate, mean_estimates
from phrasebox.pipeline.evaluate.matching import Query, queries_of
from phrasebox.pipeline.evaluate.metrics import value_of
from phrasebox.pipeline.run.stage_calls import run_stages, set_up
from phrasebox.pipeline.run.steps import HeatMapSteps
from phrasebox.stages.contract.records import Phrase, Record
from phrasebox.stages.contract.schema import records_to_rows
from phrasebox.stages.contract.values import Floats, Floats32
from phrasebox.stages.explain.stage import ExplainStage
from phrasebox.stages.read import READERS, make_reader, plan_pieces
from phrasebox.stages.scores.logistic import roc_area
from phrasebox.stages.truth import read_truth

MIN_RETRIEVED: Final = 0.75
"""Share of all photographs and captions for which a sane model finds the partner. Random
guessing never reaches it: 13 of 17 have a probability below 1e-9."""

GRID: Final = 48  # cells along each side of the common grid for maps and objects of different images

SAMPLE_IMAGES: Final = 100  # images of the user to look at if there are cautions


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckFigures:
    """What a model knows of the photographs.

    Attributes:
        has_finite_cosines: Whether all cosines of photographs and captions are finite numbers.
        photographs: Number of photographs.
        phrases: Number of phrases with a known object.
        image_to_caption: Photographs that are nearest to their own caption.
        caption_to_image: Captions that are nearest to their own photograph.
        heat_auc: Mean area under the ROC curve of a map's heat as a detector of its object; 0.5
            by chance, 1 at best.
        centre_auc: The same for a map that falls off from the middle of the image.
        others_gain: How far `heat_auc` is above the same for the maps of other phrases; the
            interval is over images.
        peaks: Phrases with the map's peak on the object.
        centre_hits: Phrases with an object on the image's centre.
        box_recall: Share of phrases with a right box.
        centred_box_recall: The same for one box in the middle.
    """

    has_finite_cosines: bool
    photographs: int
    phrases: int
    image_to_caption: int
    caption_to_image: int
    heat_auc: float
    centre_auc: float
    others_gain: Estimate
    peaks: int
    centre_hits: int
    box_recall: float
    centred_box_recall: float

    @property
    def cautions(self) -> list[str]:
        """Sentences about a model even if it is sane: that its peaks or its boxes miss."""
        cautions = []
        if self.peaks <= self.centre_hits:
            cautions.append(
                f"The peaks of its heat maps lie on the object no more often than the image's centre ({self.peaks} "
                f"of {self.phrases}, the centre {self.centre_hits}): its maps are coarse, and its regions often miss."
            )
        if self.box_recall <= self.centred_box_recall:
            cautions.append(
                "Its boxes with these settings are no better than one box in the middle of every photograph (recall "
                f"{self.box_recall:.3f}, the middle {self.centred_box_recall:.3f}). Look at the boxes of "
                f"{SAMPLE_IMAGES} of your images (phrasebox inspect) before you run it over all."
            )
        return cautions

    @property
    def faults(self) -> list[str]:
        """Why the model is not sane, a sentence each."""
        faults = []
        if not self.has_finite_cosines:
            faults.append(
                "Some of the cosines are no finite numbers: the weights or the precision are broken."
            )
        hits = self.image_to_caption + self.caption_to_image
        least = MIN_RETRIEVED * 2 * self.photographs
        if hits < least:
            faults.append(
                f"It does not know which caption belongs to which photograph: {hits} of {2 * self.photographs} are "
                f"right in both directions together, 2 would be by chance, at least {least:.0f} are expected."
            )
        if self.heat_auc <= self.centre_auc:
            faults.append(
                "Its heat lies no better on the objects than a spot in the middle of the image: area under the ROC "
                f"curve {self.heat_auc:.3f} against {self.centre_auc:.3f}."
            )
        if self.others_gain.low <= 0:
            faults.append(
                f"The heat maps of other phrases lie as well on the objects: the area under the ROC curve differs by "
                f"{self.others_gain.value:+.3f}."
            )
        return faults


@dataclass(frozen=True, kw_only=True)
class ModelCheck:
    """The answers of a model about n photographs.

    Attributes:
        device: Device of the model, for people.
        cosines: Cosine of each photograph (row) and caption (column), (n, n).
        queries: Phrases with known boxes, in order; `image` counts the photographs from 0.
        images_per_s: Speed from file to regions, with the phrases of the captions, without
            start-up.
    """

    device: str
    cosines: Floats32
    queries: tuple[Query, ...]
    images_per_s: float

    def measure(self) -> CheckFigures:
        """Return the figures of the answers."""
        maps = [
            np.zeros((1, 1), np.float32) if query.heat is None else query.heat.px for query in self.queries
        ]
        areas = _areas([shrink_map(values) for values in maps], self.queries)
        count = len(self.queries)
        map_areas = np.diagonal(areas)
        other_areas = (areas.sum(axis=0) - map_areas) / (count - 1)
        images = np.array([query.image for query in self.queries], np.int64)
        y, x = np.mgrid[:GRID, :GRID] - (GRID - 1) / 2
        return CheckFigures(
            has_finite_cosines=bool(np.isfinite(self.cosines).all()),
            photographs=len(self.cosines),
            phrases=count,
            image_to_caption=_count_nearest(self.cosines),
            caption_to_image=_count_nearest(self.cosines.T),
            heat_auc=float(map_areas.mean()),
            centre_auc=float(_areas([-np.hypot(y, x)], self.queries).mean()),
            others_gain=mean_estimates([map_areas - other_areas], images)[0],
            peaks=round(count * self._mean("pointing")),
            centre_hits=round(count * self._mean("centre")),
            box_recall=self._mean("box_recall"),
            centred_box_recall=self._mean("centred_box"),
        )

    def _mean(self, metric: str) -> float:
        return float(np.mean([value_of(metric, query) for query in self.queries]))


def check_model(steps: HeatMapSteps) -> ModelCheck:
    """Process the photographs by the stages of a run over them (see `photographs.INPUT`), in this process.

    Raise PhraseboxError if the model cannot be loaded, or if its memory does not suffice.
    """
    phrases_stage, prepare = steps.before
    with set_up(steps.stages):
        reader = make_reader(READERS.config(INPUT))
        samples = [Record.start(sample) for sample in reader.samples(plan_pieces(reader))]
        records = phrases_stage.process(samples)
        cosines = _cosines(steps.model_stage, prepare.process(records))
        start = time.perf_counter()
        mapped_records = run_stages((prepare, steps.model_stage), records)
        answers = run_stages([steps.regions_stage], mapped_records)
        seconds = time.perf_counter() - start
        forwards = steps.model_stage.take_forwards()
    rows = records_to_rows(answers).to_pylist()
    truth = read_truth(TRUTH)
    queries: list[Query] = []
    for number, (row, record) in enumerate(zip(rows, mapped_records, strict=True)):
        image = truth.images[row["file_name"]]
        maps = steps.regions_stage.maker.surfaces_of(record)
        all_queries = queries_of(number, row, image, truth.categories, record.phrases, maps)
        queries += (query for query in all_queries if query.target is not None)
    return ModelCheck(
        device=forwards.device,
        cosines=cosines,
        queries=tuple(queries),
        images_per_s=len(samples) / seconds,
    )


def _cosines(model: ExplainStage, records: Sequence[Record]) -> Floats32:
    """Return the cosine of every photograph and caption, (n, n); captions are embedded as phrases are."""
    captions = [record.sample.captions[0] for record in records]
    phrases = tuple(
        Phrase(text=text, caption_index=0, start=0, end=len(text), head=text) for text in captions
    )
    answers = model.process([replace(record, phrases=phrases) for record in records])
    similarities = [
        {heat_map.text: heat_map.similarity for heat_map in answer.heat_maps} for answer in answers
    ]
    return np.array([[row[text] for text in captions] for row in similarities], np.float32)


def _count_nearest(cosines: Floats32) -> int:
    """Count the rows with their highest cosine, higher than all others, on the diagonal of (n, n)."""
    is_highest = cosines == cosines.max(axis=1, keepdims=True)
    return int((is_highest.diagonal() & (is_highest.sum(axis=1) == 1)).sum())


def shrink_map(values: Floats32) -> Floats32:
    """Return a map of any shape as a square of `GRID` cells a side, each the mean of its part of the map."""
    square: Floats32 = cv2.resize(values, (GRID, GRID), interpolation=cv2.INTER_AREA)
    return square


def _areas(maps: Sequence[NDArray[Any]], queries: Sequence[Query]) -> Floats:
    """Return the area under the ROC curve of map i as a detector of the object of phrase j, (maps, phrases).

    Maps are on the common grid. A cell that is partly on the object counts by that part.
    """
    shares = [shrink_map(query.area.astype(np.float32)).astype(np.float64).ravel() for query in queries]
    detectors = [roc_area(values.ravel()) for values in maps]
    return np.array([[area(share, 1 - share) for share in shares] for area in detectors])
