"""`phrasebox models check`: does a CLIP model work on the eight bundled photographs?

Weights that do not fit their architecture, a wrong tokenizer or a wrong normalisation seldom raise an error: the model
computes, and knows nothing. Two questions show this, each beside the answer that chance would give:

retrieval  Is each photograph nearest to its own caption, and each caption to its own photograph? A model that knows
           nothing is right once in eight in each direction.
heat       Does the heat map of a phrase lie on the thing? It is compared with a spot in the middle of the image, and
           with the other phrases' maps: the rest is knowledge of the phrase. Peaks alone would be too coarse a test
           with 31 phrases: a map of 14 x 14 cells may lie on a small thing and have its peak beside it.

Chance is computed from the model's own answers, which are paired at random with photographs and phrases, many times.
The pairings keep the model's preferences (one caption, the middle of the image, the brightest spot) and remove only its
knowledge.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.engines.inline import run_stages, set_up
from pipeline.evaluate.matching import Query, queries_of
from pipeline.evaluate.metrics import METRICS
from pipeline.graph import Graph
from pipeline.logistic import roc_area
from pipeline.photographs import TRUTH
from pipeline.pictures import shrink_map
from stages.contract.records import Phrase, Record
from stages.contract.schema import records_to_rows
from stages.explain.stage import ExplainStage
from stages.read import plan_shards
from stages.truth import read_truth

MIN_RETRIEVED: Final = 0.75
"""Share of all photographs and captions for which a sane model finds the partner. Random guessing reaches it with a
probability of at most 0.0007: 6 of 8 in a random order, counted twice where both directions agree."""

MAX_CHANCE: Final = 0.01  # heat on the things counts if chance is as good with at most this probability
GRID: Final = 48  # cells along each side of the common grid for maps and things of different images
PAIRINGS: Final = 20_000  # random pairings, the same in every process

SAMPLE_IMAGES: Final = 100  # images of the user to look at if there are cautions

_LEAST_SECONDS: Final = 1.0
_MOST_REPEATS: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class PairingTest:
    """The number of pairs that agree, and the same by chance.

    Attributes:
        hits: Pairs that agree; the sum if they agree by degrees.
        of: All pairs.
        by_chance: Mean hits of random pairings of the same answers.
        p: Probability that a random pairing agrees as well.
    """

    hits: float
    of: int
    by_chance: float
    p: float

    def plain(self) -> dict[str, Any]:
        """Return plain values of counted hits."""
        return {"hits": round(self.hits), "of": self.of, "by_chance": round(self.by_chance, 2), "p": self.p}


@dataclass(frozen=True, kw_only=True)
class ModelCheck:
    """The answers of a model about n photographs.

    Attributes:
        device: Device of the model, for people.
        names: Names of the photographs.
        cosines: Cosine of each photograph (row) and caption (column), (n, n).
        queries: Phrases with known boxes, in order; `image` counts the photographs from 0.
        rows: Rows as a run would write them.
        images_per_s: Speed from file to regions, with the phrases of the captions, without start-up.
    """

    device: str
    names: tuple[str, ...]
    cosines: NDArray[np.float32]
    queries: tuple[Query, ...]
    rows: tuple[dict[str, Any], ...]
    images_per_s: float

    @cached_property
    def figures(self) -> dict[str, Any]:
        """All figures as plain values.

        retrieval   photographs nearest to their own caption, captions nearest to their own photograph, and both
                    together: 2n pairs
        heat        area under the ROC curve of each map's heat as a detector of its thing: 0.5 by chance, 1 at best;
                    the same for a map that falls off from the middle of the image, and for the maps of other phrases
        pointing    phrases with the map's peak on the thing, and phrases with a thing on the image's centre
        off_centre  the same for phrases with things beside the image's centre
        boxes       recall at IoU 0.5 and mean IoU of the best regions' boxes, and the recall of one box in the middle
        empty_maps  phrases with a map without heat, or with the same heat everywhere
        faults      why the model is not sane, a sentence each
        cautions    sentences about a model even if it is sane: that its peaks or its boxes miss
        """
        captions = _is_nearest(self.cosines)
        images = _is_nearest(self.cosines.T)
        retrieval = replace(compare_pairings(captions.astype(np.int64) + images.T), of=2 * len(self.names))
        maps = [np.zeros((1, 1)) if query.heat is None else query.heat.px for query in self.queries]
        heat = compare_pairings(_areas([shrink_map(values.astype(np.float32), GRID) for values in maps], self.queries))
        y, x = np.mgrid[:GRID, :GRID] - (GRID - 1) / 2
        centre_auc = float(_areas([-np.hypot(y, x)], self.queries).mean())
        peaks = _peaks_on_things(self.queries)
        on_centre = [METRICS["centre"].value(query) for query in self.queries]
        off_centre = compare_pairings(peaks, [index for index, is_covered in enumerate(on_centre) if not is_covered])
        pointing = compare_pairings(peaks)
        recall = self._mean("box_recall")
        centre_recall = self._mean("centred_box")
        centre_hits = round(len(self.queries) * self._mean("centre"))
        faults = self._faults(retrieval, heat, centre_auc)
        return {
            "device": self.device,
            "images_per_s": self.images_per_s,
            "photographs": list(self.names),
            "cosines": self.cosines.astype(float).round(4).tolist(),
            "retrieval": {
                "image_to_caption": int(np.trace(captions)),
                "caption_to_image": int(np.trace(images)),
                **retrieval.plain(),
            },
            "heat": {
                "mean_auc": heat.hits / heat.of,
                "centre_mean_auc": centre_auc,
                "by_chance": heat.by_chance / heat.of,
                "p": heat.p,
            },
            "pointing": {**pointing.plain(), "centre_hits": centre_hits},
            "off_centre": off_centre.plain(),
            "boxes": {"recall": recall, "mean_iou": self._mean("box_iou"), "centred_box_recall": centre_recall},
            "empty_maps": sum(query.heat is None for query in self.queries),
            "sane": not faults,
            "faults": faults,
            "cautions": _cautions(pointing, centre_hits, recall, centre_recall),
        }

    def _mean(self, name: str) -> float:
        return float(np.mean([METRICS[name].value(query) or 0.0 for query in self.queries]))

    def _faults(self, retrieval: PairingTest, heat: PairingTest, centre_auc: float) -> list[str]:
        least = MIN_RETRIEVED * retrieval.of
        mean = heat.hits / heat.of
        by_chance = heat.by_chance / heat.of
        faults = []
        if not np.isfinite(self.cosines).all():
            faults.append("Some of the cosines are no finite numbers: the weights or the precision are broken.")
        if retrieval.hits < least:
            faults.append(
                f"It does not know which caption belongs to which photograph: {retrieval.hits:.0f} of {retrieval.of} "
                f"are right in both directions together, {retrieval.by_chance:.1f} would be by chance, at least "
                f"{least:.0f} are expected."
            )
        if mean <= centre_auc:
            faults.append(
                f"Its heat lies no better on the things than a spot in the middle of the image: area under the ROC "
                f"curve {mean:.3f} against {centre_auc:.3f}."
            )
        if heat.p > MAX_CHANCE:
            faults.append(
                f"The heat maps of other phrases lie as well on the things: {by_chance:.3f} against {mean:.3f} "
                f"(p = {heat.p:.2g})."
            )
        return faults


def _cautions(pointing: PairingTest, centre_hits: int, recall: float, centre_recall: float) -> list[str]:
    cautions = []
    if pointing.hits <= centre_hits:
        cautions.append(
            f"The peaks of its heat maps lie on the thing no more often than the image's centre does "
            f"({pointing.hits:.0f} of {pointing.of}, the centre {centre_hits}): its maps are coarse, and its regions "
            "often miss."
        )
    if recall <= centre_recall:
        cautions.append(
            f"Its boxes with these settings are no better than one box in the middle of every photograph (recall "
            f"{recall:.3f}, the middle {centre_recall:.3f}). Look at the boxes of {SAMPLE_IMAGES} of your images "
            "(phrasebox inspect) before you run it over all."
        )
    return cautions


def check_model(graph: Graph) -> ModelCheck:
    """Process the photographs by the stages of a run over them (see `photographs.INPUT`), in this process.

    Raise PhraseboxError if the model cannot be loaded, or if its memory does not suffice.
    """
    phrases_stage, prepare = graph.before
    times_s: list[float] = []
    with set_up(graph.stages):
        samples = [Record.start(sample) for sample in graph.reader.samples(plan_shards(graph.reader))]
        records = phrases_stage.process(samples)
        cosines = _cosines(graph.explains, prepare.process(records))
        while not times_s or (sum(times_s) < _LEAST_SECONDS and len(times_s) < _MOST_REPEATS):
            start = time.perf_counter()
            mapped_records = run_stages((prepare, graph.model), records, lambda *_: None)
            answers = run_stages(graph.after, mapped_records, lambda *_: None)
            times_s.append(time.perf_counter() - start)
        forwards = graph.explains.take_forwards()
    rows = records_to_rows(answers, embed_images=False).to_pylist()
    truth = read_truth(TRUTH)
    queries: list[Query] = []
    for number, (row, record) in enumerate(zip(rows, mapped_records, strict=True)):
        image = truth.images[row["file_name"]]
        maps = graph.cuts.maker.surfaces_of(record)
        queries += queries_of(number, row, image, truth.categories, record.phrases, maps)
    return ModelCheck(
        device=forwards.device,
        names=tuple(record.sample.sample_id for record in samples),
        cosines=cosines,
        queries=tuple(queries),
        rows=tuple(rows),
        images_per_s=len(samples) / min(times_s),
    )


def compare_pairings(agreement: NDArray[Any], questions: Sequence[int] | None = None) -> PairingTest:
    """Count the pairs that agree on the diagonal, and compare them with random pairings.

    Args:
        agreement: (n, n), whether or how well answer i (row) fits question j (column); numbers >= 0.
        questions: The questions that count; None for all.
    """
    columns = np.arange(len(agreement)) if questions is None else np.array(questions, np.int64)
    orders = np.random.default_rng(0).permuted(np.tile(np.arange(len(agreement)), (PAIRINGS, 1)), axis=1)
    random = agreement[orders[:, columns], columns].sum(axis=1, dtype=np.float64)
    hits = float(agreement[columns, columns].sum(dtype=np.float64))
    p = float((1 + np.count_nonzero(random >= hits - 1e-9)) / (1 + PAIRINGS))
    return PairingTest(hits=hits, of=columns.size, by_chance=float(random.mean()), p=p)


def _cosines(model: ExplainStage, records: Sequence[Record]) -> NDArray[np.float32]:
    """Return the cosine of every photograph and caption, (n, n); captions are embedded as phrases are."""
    captions = [record.sample.captions[0] for record in records]
    phrases = tuple(Phrase(text=text, caption_index=0, start=0, end=len(text), head=text) for text in captions)
    answers = model.process([replace(record, phrases=phrases) for record in records])
    similarities = [{heat_map.text: heat_map.similarity for heat_map in answer.heat_maps} for answer in answers]
    return np.array([[row[text] for text in captions] for row in similarities], np.float32)


def _is_nearest(cosines: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return whether column j is the nearest of row i, (n, n). A row with tied highest cosines has no nearest."""
    nearest: NDArray[np.bool_] = cosines == cosines.max(axis=1, keepdims=True)
    nearest[nearest.sum(axis=1) > 1] = False
    return nearest


def _areas(maps: Sequence[NDArray[Any]], queries: Sequence[Query]) -> NDArray[np.float64]:
    """Return the area under the ROC curve of map i as a detector of the thing of phrase j, (maps, phrases).

    Maps are on the common grid. A cell that is partly on the thing counts by that part.
    """
    areas = np.empty((len(maps), len(queries)))
    for j, query in enumerate(queries):
        share = shrink_map(query.area.astype(np.float32), GRID).astype(np.float64).ravel()
        areas[:, j] = [roc_area(values.ravel(), share, 1 - share) for values in maps]
    return areas


def _peaks_on_things(queries: Sequence[Query]) -> NDArray[np.bool_]:
    hits = np.zeros((len(queries), len(queries)), np.bool_)
    for i, query in enumerate(queries):
        if query.heat is not None:
            y, x = ((position + 0.5) / side for position, side in zip(query.heat.peak, query.size_hw, strict=True))
            hits[i] = [bool(other.area[int(y * other.size_hw[0]), int(x * other.size_hw[1])]) for other in queries]
    return hits
