"""Phrases of other images, asked of the images of a dataset: for `eval --absent` and `calibrate`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from rich.console import Console
from rich.table import Table

from pipeline.commands.evaluate import from_input, graph_for, interval, number, phrases_of
from stages.contract.errors import InputError
from stages.contract.records import Phrase, Record
from stages.contract.stage import Stage

if TYPE_CHECKING:
    from pipeline.dataset.folder import Dataset
    from pipeline.evaluate.absent import AskedImage, Pair
    from pipeline.evaluate.matching import Answer, ImageMatches, Query
    from pipeline.evaluate.scores import Floats
    from pipeline.graph import Graph
    from stages.explain.presence import Presence, Signals
    from stages.regions.stage import RegionsStage
    from stages.shared.truth.ground_truth import GroundTruth

FEWEST_PHRASES = 100
"""A fit of presence from fewer phrases says more about chance than about the model."""


class AskStage(Stage):
    """Takes the place of the phrases stage: each record gets the phrases that it is asked for, by its sample's id."""

    name: ClassVar[str] = "phrases"

    def __init__(self, phrases: Mapping[int, Sequence[Phrase]]) -> None:
        self.phrases = phrases

    def process(self, batch: Sequence[Record]) -> list[Record]:
        """See `Stage.process`."""
        return [
            record if record.error is not None else replace(record, phrases=tuple(self.phrases[record.sample.id]))
            for record in batch
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the images of a dataset are asked for, all by the row's id.

    Attributes:
        images: Each image with its own phrases.
        queries: Its phrases that the truth knows, there or absent.
        easy: Absent phrases of other images.
        hard: Those of the same type as a phrase of the image.
    """

    images: Mapping[int, AskedImage]
    queries: Mapping[int, Sequence[Query]]
    easy: Mapping[int, Sequence[Phrase]]
    hard: Mapping[int, Sequence[Phrase]]

    def phrases(self, *, hard: bool) -> dict[int, list[Phrase]]:
        """Own and absent phrases of each image."""
        return {
            row_id: [*image.phrases, *self.easy[row_id], *(self.hard[row_id] if hard else ())]
            for row_id, image in self.images.items()
        }


def asked_of(rows: Mapping[int, dict[str, Any]], matched: ImageMatches, truth: GroundTruth) -> Asked:
    """Choose the absent phrases for the rows without an error that have a phrase with a known place."""
    from pipeline.evaluate.absent import absent_phrases, asked_image
    from pipeline.evaluate.matching import queries_of

    images, queries = {}, {}
    for row_id, row in rows.items():
        if row["error"] is None:
            phrases = _phrases_in(row)
            image = matched.images[row["file_name"]]
            found = queries_of(row_id, row, image, truth.categories, phrases)
            asked = asked_image(row, phrases, found, image.present)
            if asked.there:
                images[row_id], queries[row_id] = asked, found
    chosen = absent_phrases(list(images.values()))
    return Asked(
        images=images,
        queries=queries,
        easy={row_id: easy for row_id, (easy, _) in chosen.items()},
        hard={row_id: hard for row_id, (_, hard) in chosen.items()},
    )


def _phrases_in(row: Mapping[str, Any]) -> list[Phrase]:
    """The phrases of a row; those with a region and the absent ones where the dataset does not hold all."""
    entries = row.get("phrases")
    return phrases_of([*row["annotations"], *row["absent"]] if entries is None else entries)


def model_graph(dataset: Dataset, settings: Sequence[str]) -> Graph:
    """The dataset's own reader, model and regions, with its calibration if its scores have one.

    Raises as `pipeline.commands.evaluate.graph_for`, and InputError where the model is not the dataset's.
    """
    from pipeline.domain import without_calibration

    graph = graph_for(dataset, settings, pixels=True)
    if graph is None:
        raise InputError(f"{dataset.path}: no model")
    if graph.fingerprint != dataset.manifest["model_fingerprint"]:
        raise InputError(f"{dataset.path} was made with another model, so absent phrases cannot be asked for")
    graph = replace(graph, model=graph.explains.without_importance())
    return graph if dataset.manifest.get("calibration") is not None else without_calibration(graph)


def absent_evaluation(
    dataset: Dataset,
    truth: GroundTruth,
    rows: Mapping[int, dict[str, Any]],
    matched: ImageMatches,
    settings: Sequence[str],
    console: Console,
) -> dict[str, Any]:
    """The figures of `pipeline.evaluate.absent.absent_figures`; computes heat maps of absent phrases.

    Raises:
        InputError: The input cannot be read, or the model is not the dataset's.
    """
    from pipeline.evaluate.absent import absent_figures

    asked = asked_of(rows, matched, truth)
    graph = model_graph(dataset, settings)
    pairs: list[Pair] = []
    stages = [AskStage(asked.phrases(hard=True)), graph.before[1], graph.model]
    wanted = {row_id: rows[row_id] for row_id in asked.images}
    for row, record in from_input(graph.reader, stages, wanted, console):
        if record.error is None:
            pairs += _pairs(asked, row["id"], record, graph)
    return absent_figures(pairs)


def _pairs(asked: Asked, row_id: int, record: Record, graph: Graph) -> Iterator[Pair]:
    from pipeline.evaluate.absent import Pair
    from pipeline.evaluate.matching import Answer
    from stages.regions.groups import relation
    from stages.regions.stage import RegionsStage

    own = graph.cuts
    # Half of what is asked for is absent, and a phrase of another image names none of this one's things.
    asking = RegionsStage(own.config.model_copy(update={"absent_share": 0.5}), own.calibration)
    apart = RegionsStage(asking.config.model_copy(update={"group": "none"}), own.calibration)
    maps = {heat_map.text: heat_map for heat_map in record.heat_maps}
    presence = _likeliest(apart, record)
    cut: dict[str, dict[Answer, None]] = {}
    for region in apart.process([record])[0].regions:
        answer = Answer(
            box_xywh_px=region.box_xywh_px, mask=region.mask, score=region.score, similarity=region.similarity
        )
        cut.setdefault(record.phrases[region.phrase_index].text, {})[answer] = None
    named_here = replace(record, phrases=asked.images[row_id].phrases)
    before, now = _likeliest(own, named_here), _likeliest(asking, named_here)
    known: dict[str, list[Query]] = {}
    for query in asked.queries[row_id]:
        if query.phrase is not None and query.phrase in maps:
            known.setdefault(query.phrase, []).append(query)
    heads = {phrase.text: phrase.head for phrase in record.phrases}
    named = {phrase.head for phrase in asked.images[row_id].phrases}
    told = []
    for text, queries in known.items():
        answers = _asked_again(queries[0].answers, before[text], now[text])
        if asking.is_absent(now[text]):
            answers = ()
        told.append((text, queries[0].target is not None, False, answers, queries))
    for hard, phrases in ((False, asked.easy[row_id]), (True, asked.hard[row_id])):
        told += [(phrase.text, False, hard, tuple(cut.get(phrase.text, ())), []) for phrase in phrases]
    for text, there, hard, answers, queries in told:
        boxes = (box for query in queries if query.target is not None for box in query.target.boxes_xywh_px)
        yield Pair(
            image=row_id,
            there=there,
            hard=hard,
            similarity=maps[text].similarity,
            presence=now[text] if text in known else presence[text],
            answers=answers,
            boxes_xywh_px=tuple(dict.fromkeys(boxes)),
            doubtful=not there and any(relation(heads[text], head) in ("same", "equal", "above") for head in named),
        )


def _likeliest(stage: RegionsStage, record: Record) -> dict[str, float | None]:
    """The presence of each text of a record; where it names several things, that of the likeliest."""
    found: dict[str, float | None] = {}
    for phrase, presence in zip(record.phrases, stage.presences_of(record, stage.groups_of(record)), strict=True):
        if presence is None or presence >= (found.get(phrase.text) or 0.0):
            found[phrase.text] = presence
    return found


def _asked_again(answers: Sequence[Answer], before: float | None, now: float | None) -> tuple[Answer, ...]:
    """The answers of a dataset, scored with another presence than `before`."""
    if before is None or now is None:
        return tuple(answers)
    return tuple(replace(answer, score=answer.score * now / before if before else 0.0) for answer in answers)


def fit_presence(
    graph: Graph, rows: Mapping[int, dict[str, Any]], asked: Asked, console: Console
) -> tuple[Presence, dict[str, Any]]:
    """Fit presence to phrases that are there, to those of other images, and to those that the truth knows to be absent.

    Returns:
        What was fitted, and `presence_auc` and `similarity_auc` on images that the regression was not fitted to, for
        people; the statistics of the images are those of all.

    Raises:
        InputError: There are too few phrases, or the input cannot be read.
    """
    from dataclasses import asdict

    from pipeline.evaluate.absent import RocArea
    from pipeline.evaluate.report import weighted_estimate
    from pipeline.evaluate.scores import fit_logistic, out_of_fold
    from stages.explain.presence import FEATURES, ImageStatistics, Presence, features_of

    known = {row_id: {query.phrase for query in asked.queries[row_id]} for row_id in asked.images}
    phrases = {
        row_id: [
            *(phrase for phrase in image.phrases if phrase.text in known[row_id]),
            *asked.easy[row_id],
        ]
        for row_id, image in asked.images.items()
    }
    there_of = {row_id: set(image.there) for row_id, image in asked.images.items()}
    if sum(map(len, phrases.values())) < FEWEST_PHRASES:
        raise InputError(f"presence cannot be fitted: fewer than {FEWEST_PHRASES} phrases with a known place")
    signals: list[Signals] = []
    there: list[bool] = []
    owners: list[int] = []
    batch: list[Record] = []
    model = graph.explains
    model.setup()

    def look() -> None:
        signals.extend(model.signals(batch))
        for record in batch:
            texts = dict.fromkeys(phrase.text for phrase in record.phrases)
            there.extend(text in there_of[record.sample.id] for text in texts)
            owners.extend(record.sample.id for _ in texts)
        batch.clear()

    wanted = {row_id: rows[row_id] for row_id in asked.images}
    for _, record in from_input(graph.reader, [AskStage(phrases), graph.before[1]], wanted, console):
        if record.error is None and record.pixels is not None and record.phrases:
            batch.append(record)
        if len(batch) == model.batch_rows():
            look()
    if batch:
        look()
    model.teardown()
    images = ImageStatistics.of(np.stack([each.embedding for each in signals]))
    features, labels, numbers = features_of(images, signals), np.array(there, np.bool_), np.array(owners, np.int64)
    fit = fit_logistic(features, labels)

    def by_name(values: Floats) -> dict[str, float]:
        return dict(zip(FEATURES, values.tolist(), strict=True))

    fitted = Presence(
        images=images,
        bias=fit.bias,
        weight=by_name(fit.weight),
        mean=by_name(fit.mean),
        scale=by_name(fit.scale),
        absent_share=1.0 - float(labels.mean()),
    )
    unseen = out_of_fold(features, labels, numbers)
    judged = {"presence_auc": unseen, "similarity_auc": features[:, 0]}
    return fitted, {
        "phrases": len(labels),
        "there": int(labels.sum()),
        **{name: asdict(weighted_estimate(RocArea(each, labels), numbers)) for name, each in judged.items()},
    }


def print_absent(figures: Mapping[str, Any], console: Console) -> None:
    """The table for people."""
    pairs = figures["pairs"]
    title = f"{pairs['there']:,} phrases that are there and {pairs['absent']:,} of other images"
    table = Table("absent phrases", "value", "95 % interval", "by similarity", title=title, title_justify="left")
    cosine = {"presence_auc": figures["similarity_auc"], **figures["by_similarity"]}
    for name, words in (
        ("presence_auc", "presence_auc: area under the ROC curve"),
        ("il_mcc", "il_mcc: is it there, Matthews' correlation"),
        ("positive_f1", "positive_f1: boxes where it is there"),
        ("cgf1", "cgf1: their product"),
        ("ece", "ece: calibration error of the score"),
        ("lost", "lost: there, but without a region"),
    ):
        table.add_row(words, number(figures[name]), interval(figures[name]), number(cosine.get(name)))
    if figures["hard"] is not None:
        hard = figures["hard"]
        words = f"presence_auc of {pairs['hard']:,} hard ones"
        table.add_row(
            words, number(hard["presence_auc"]), interval(hard["presence_auc"]), number(hard["similarity_auc"])
        )
    certain = figures["without_synonyms"]
    words = f"presence_auc of {pairs['without_synonyms']:,} that name no thing of the captions"
    table.add_row(
        words, number(certain["presence_auc"]), interval(certain["presence_auc"]), number(certain["similarity_auc"])
    )
    console.print(table)
    if figures["kept"] is not None:
        table = Table("presence at least", "kept of those that are there", "of absent ones")
        for line in figures["kept"]:
            table.add_row(f"{line['presence']:g}", f"{line['there']:.1%}", f"{line['absent']:.1%}")
        console.print(table)
