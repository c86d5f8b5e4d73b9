"""Phrases of other images, asked of the images of a dataset: for `eval --absent` and `calibrate`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.console import Console

from pipeline.config import stored_config
from pipeline.dataset.folder import open_dataset
from pipeline.dataset.origin import check_named
from pipeline.domain import without_calibration
from pipeline.evaluate.absent import AskedImage, Pair, absent_figures, absent_phrases
from pipeline.evaluate.estimates import out_of_fold, presence_area, weighted_estimate
from pipeline.evaluate.judged import JudgedDataset, from_input, phrases_of
from pipeline.evaluate.matching import Answer, Query
from pipeline.graph import Graph, build_graph
from pipeline.logistic import fit_logistic
from pipeline.output.replaced import PRESENCE_FILE
from pipeline.paths import check_writable
from pipeline.presence_alone import FEWEST_PHRASES, PRESENCE, in_words, kept_presence, look_at_first, may_be, signals_of
from stages.contract.errors import ConfigError, InputError
from stages.contract.records import Record
from stages.explain.presence import FEATURES, ImageStatistics, Presence, Signals, features_of
from stages.regions.score import Calibration
from stages.regions.stage import RegionsStage
from stages.shared.storage import write_text

CAPTIONED: Final = 1000
"""The most images that presence is fitted to without annotations: more than by a run, which waits for the fit."""


def asked_of(judged: JudgedDataset) -> dict[int, AskedImage]:
    """Choose absent phrases for the rows without an error that have a phrase with a known place, by the row's id."""
    images = {}
    for row in judged.rows():
        if row["error"] is None:
            entries = row.get("phrases")  # not all of them where the dataset does not hold all
            phrases = phrases_of([*row["annotations"], *row["absent"]] if entries is None else entries)
            asked = AskedImage(
                number=row["id"],
                sample_id=row["sample_id"],
                captions=tuple(row["captions"]),
                phrases=tuple(phrases),
                queries=tuple(judged.queries(row, phrases)),
                present=judged.image_of(row).present,
            )
            if asked.there:
                images[row["id"]] = asked
    chosen = absent_phrases(list(images.values()))
    return {
        number: replace(image, easy=tuple(chosen[number][0]), hard=tuple(chosen[number][1]))
        for number, image in images.items()
    }


def model_graph(judged: JudgedDataset) -> Graph:
    """Return the dataset's own reader, model and regions, with its calibration if its scores have one.

    Raise as `JudgedDataset.graph`, and InputError where the model is not the dataset's.
    """
    dataset, graph = judged.dataset, judged.graph(pixels=True)
    if graph is None or graph.fingerprint != dataset.manifest["model_fingerprint"]:
        raise InputError(f"{dataset.path} was made with another model, so absent phrases cannot be asked for")
    if dataset.manifest.get("calibration") is not None or (graph.calibration is not None and not graph.calibrated):
        return graph
    return kept_presence(
        without_calibration(graph), dataset.path / PRESENCE_FILE, dataset.manifest["run"].get(PRESENCE)
    )


def absent_evaluation(judged: JudgedDataset, console: Console) -> dict[str, Any]:
    """Return the figures of `absent_figures`; computes heat maps of absent phrases. Raise as `model_graph`."""
    asked = asked_of(judged)
    graph = model_graph(judged)
    phrases = {number: [*image.phrases, *image.easy, *image.hard] for number, image in asked.items()}
    records = from_input(graph.reader, [graph.before[1], graph.model], asked, console, phrases)
    pairs = (_pairs(asked[record.sample.id], record, graph.cuts) for record in records if record.error is None)
    return absent_figures(list(chain.from_iterable(pairs)))


def _pairs(image: AskedImage, record: Record, own: RegionsStage) -> Iterator[Pair]:
    """The pairs of one image; the record has the maps of all phrases, and `own` is the dataset's stage."""
    # Half of the phrases that are asked for are absent, and a phrase of another image names none of this one's things.
    asking = RegionsStage(own.config.model_copy(update={"absent_share": 0.5}), own.calibration)
    apart = RegionsStage(asking.config.model_copy(update={"group": "none"}), own.calibration)
    similarity = {heat_map.text: heat_map.similarity for heat_map in record.heat_maps}
    named_here = replace(record, phrases=image.phrases)
    before, now = _likeliest(own, named_here), _likeliest(asking, named_here)
    known: dict[str, list[Query]] = {}
    for query in image.queries:
        if query.phrase in similarity:
            known.setdefault(query.phrase, []).append(query)
    heads = {phrase.text: phrase.head for phrase in record.phrases}
    named = {phrase.head for phrase in image.phrases}

    def may_be_there(text: str) -> bool:
        return any(may_be(heads[text], head) for head in named)

    for text, queries in known.items():
        there = queries[0].target is not None
        boxes = [box for query in queries if query.target is not None for box in query.target.boxes_xywh_px]
        yield Pair(
            image=image.number,
            there=there,
            hard=False,
            similarity=similarity[text],
            presence=now[text],
            answers=() if asking.is_absent(now[text]) else _asked_again(queries[0].answers, before[text], now[text]),
            boxes_xywh_px=tuple(dict.fromkeys(boxes)),
            doubtful=not there and may_be_there(text),
        )
    presence = _likeliest(apart, record)
    cut: dict[str, dict[Answer, None]] = {}
    for region in apart.process([record])[0].regions:
        answer = Answer(
            box_xywh_px=region.box_xywh_px, mask=region.mask, score=region.score, similarity=region.similarity
        )
        cut.setdefault(record.phrases[region.phrase_index].text, {})[answer] = None
    for phrase in (*image.easy, *image.hard):
        yield Pair(
            image=image.number,
            there=False,
            hard=phrase in image.hard,
            similarity=similarity[phrase.text],
            presence=presence[phrase.text],
            answers=tuple(cut.get(phrase.text, ())),
            doubtful=may_be_there(phrase.text),
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


def write_presence(dataset: Path, out: Path, console: Console, settings: Sequence[str] = ()) -> Calibration:
    """Fit presence to the captions of a dataset's images, without annotations, and write the calibration to `out`.

    Raise InputError if there are too few, or if they fit their images no better than others do; ConfigError if `out`
    cannot be written or a setting cannot be used; and as `JudgedDataset.graph`.
    """
    check_writable("--out", out)
    opened = open_dataset(dataset)
    check_named(opened, settings=settings)
    graph = build_graph(stored_config(opened.manifest["config"], settings))
    with console.status(f"fitting presence to at most {CAPTIONED:,} images"):
        found = look_at_first(graph, graph.reader.shards(), CAPTIONED)
    if isinstance(found, str):
        raise InputError(f"{dataset}: {in_words(found)}")
    store(found, out)
    return found


def store(calibration: Calibration, out: Path) -> None:
    """Write a calibration to a file. Raise ConfigError if that fails."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, calibration.to_json())
    except OSError as error:
        raise ConfigError(f"--out: cannot write {out}: {error.strerror}") from error


def fit_presence(judged: JudgedDataset, console: Console) -> tuple[Presence, dict[str, Any]]:
    """Fit presence to phrases that are there, to those of other images, and to those that are known to be absent.

    The figures are `presence_auc` and `similarity_auc` on images that the regression was not fitted to; the statistics
    of the images are those of all. Raise InputError if there are too few phrases, and as `model_graph`.
    """
    asked = asked_of(judged)
    phrases = {}
    for number, image in asked.items():
        known = {query.phrase for query in image.queries}
        phrases[number] = [*(phrase for phrase in image.phrases if phrase.text in known), *image.easy]
    if sum(map(len, phrases.values())) < FEWEST_PHRASES:
        raise InputError(f"presence cannot be fitted: fewer than {FEWEST_PHRASES} phrases with a known place")
    signals: list[Signals] = []
    there: list[bool] = []
    owners: list[int] = []
    graph = model_graph(judged)
    prepared = from_input(graph.reader, [graph.before[1]], phrases, console, phrases)
    for record, found in signals_of(graph.explains, prepared):
        signals.append(found)
        texts, placed = dict.fromkeys(phrase.text for phrase in record.phrases), asked[record.sample.id].there
        there += [text in placed for text in texts]
        owners += [record.sample.id] * len(texts)
    images = ImageStatistics.of(np.stack([each.embedding for each in signals]))
    features, labels, numbers = features_of(images, signals), np.array(there, np.bool_), np.array(owners, np.int64)
    fit = fit_logistic(features, labels)
    weight, mean, scale = fit.by_name(FEATURES).values()
    absent_share = 1.0 - float(labels.mean())
    presence = Presence(images=images, bias=fit.bias, weight=weight, mean=mean, scale=scale, absent_share=absent_share)
    scores = {"presence_auc": out_of_fold(features, labels, numbers), "similarity_auc": features[:, 0]}
    return presence, {
        "phrases": len(labels),
        "there": int(labels.sum()),
        **{
            name: weighted_estimate(partial(presence_area, each, labels), numbers).plain()
            for name, each in scores.items()
        },
    }
