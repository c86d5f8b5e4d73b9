"""How well a model names regions, finds the regions of phrases and retrieves, on a user's images and truth."""

from __future__ import annotations

import heapq
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console

from pipeline.config import RunConfig
from pipeline.config import differences as setting_differences
from pipeline.evaluate.matching import ImageMatches, match_images
from pipeline.evaluate.probe.config import ProbeConfig
from pipeline.evaluate.probe.questions import NOTHING, Questions, asked_of
from pipeline.graph import fetch_weights
from pipeline.terminal import progress_bar
from stages.contract.errors import InputError, RowFault
from stages.contract.records import Record, Sample, stable_id
from stages.explain.config import ExplainerConfig
from stages.prepare import PrepareConfig, PrepareStage
from stages.read import Reader, Skipped, make_reader, plan_shards
from stages.shared.images.decode import decode_rgb
from stages.shared.images.faults import DecodeLimits
from stages.shared.truth import read_truth
from stages.shared.truth.ground_truth import GroundTruth

if TYPE_CHECKING:
    from pipeline.evaluate.probe.answers import Answers, Classification
    from pipeline.evaluate.probe.embed import Embedded, Embedder, Embeddings, Picture

SHOWN_FAULTS: Final = 3
"""Images that cannot be opened and are named; the others are counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exam:
    """What a model is asked.

    Attributes:
        config: Input and model, and the settings of images.
        truth: A file or folder that `pipeline.evaluate.read_truth` reads, or None: then it only retrieves.
        resized: Whether the images were resized after the truth was drawn.
        most: Images of the sample; None takes all.
        seed: Another one draws another sample.
        probe: How it is asked.
    """

    config: RunConfig
    truth: Path | None
    resized: bool
    most: int | None
    seed: int
    probe: ProbeConfig


@dataclass(slots=True, kw_only=True)
class Marks:
    """What the model has answered so far.

    Attributes:
        classed: Regions among the classes, by the names of the JSON.
        found: Phrases among regions.
        names, captions, embeddings: Of the images that could be opened.
        boxes: Regions.
        faults: Of images that could not be opened, by reason.
        examples: Some of these faults, in full.
    """

    classed: dict[str, Classification]
    found: dict[str, Answers]
    names: list[str] = field(default_factory=list)
    captions: list[tuple[str, ...]] = field(default_factory=list)
    embeddings: list[Embeddings] = field(default_factory=list)
    boxes: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)


def scored(exam: Exam, console: Console, other: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """All figures of a model as plain values.

    Args:
        exam: What it is asked.
        console: Shows the progress.
        other: What this function gave for another model on the same images; the differences from it are added.

    Returns:
        `regions` and `described` (WAYS -> top1, top5, mean_per_class, n), `phrases`, `phrases_crop` and `phrases_pool`
        (recall_1, recall_5, mrr, chance_1, n), `retrieval` (t2i_r1 ... i2t_r10), each {value, low, high, n}; `classes`
        (name -> n, and top-1 by WAYS); what was asked of whom; and `answers`, one number for each question, from which
        `differences` from another model are computed, with its name in `compared_with` and the settings that differ in
        `asked_differently`.

    Raises:
        ConfigError: The model cannot be used.
        InputError: The input or the truth cannot be read, they do not fit together, or there is nothing to ask.
        WeightsError: The model's files are missing or damaged.
    """
    # torch and open_clip take seconds to import.
    from pipeline.evaluate.probe.embed import Embedder  # noqa: PLC0415
    from stages.shared.model.load import load, usable_model  # noqa: PLC0415

    started = time.perf_counter()
    name = usable_model(exam.config.model).name
    truth = None if exam.truth is None else read_truth(exam.truth)
    reader = make_reader(exam.config.input)
    places, matched = _sampled(reader, truth, exam, other)
    fetch_weights(exam.config.model, lambda text: console.print(text, soft_wrap=True))
    model = load(exam.config.model)
    embedder = Embedder(model, exam.probe, exam.config.model.batch_size)
    marks = _marks(truth, embedder)
    console.print(f"{name} on {len(places):,} images, {model.device_name}", soft_wrap=True)
    _ask(exam, reader, places, matched, truth, embedder, marks, console)
    if not marks.names:
        raise InputError(f"none of the {len(places):,} images can be opened: {marks.examples[0]}")
    return {
        "model": name,
        "device": model.device_name,
        "input": exam.config.input.model_dump(mode="json"),
        "truth": None if exam.truth is None else str(exam.truth),
        "matched": None if matched is None else matched.counts,
        "probe": exam.probe.model_dump(mode="json"),
        "seed": exam.seed,
        **_report(marks, embedder, exam.probe, other),
        "seconds": round(time.perf_counter() - started, 1),
    }


def _samples(reader: Reader) -> Iterator[Sample]:
    for shard in plan_shards(reader):
        for item in reader.read(shard):
            if not isinstance(item, Skipped):
                yield item


def _sampled(
    reader: Reader, truth: GroundTruth | None, exam: Exam, other: Mapping[str, Any] | None
) -> tuple[frozenset[int], ImageMatches | None]:
    """The places of the sample's images in the input, and their truth.

    Which they are does not depend on the input's order. Raises InputError if there are none.
    """
    names = [sample.image.file_name for sample in _samples(reader)]
    if not names:
        raise InputError("the input has no images")
    matched = None if truth is None else match_images(names, truth)
    candidates = [
        (stable_id(f"{exam.seed}:{name}"), place)
        for place, name in enumerate(names)
        if matched is None or name in matched.images
    ]
    chosen = frozenset(place for _, place in heapq.nsmallest(exam.most or len(candidates), candidates))
    if other is not None:
        known = set(other["images"])
        ours = [names[place] for place in sorted(chosen)]
        if [each for each in ours if each in known] != list(other["images"]):
            raise InputError("--compare: its figures are of other images; measure both models on the same sample")
    return chosen, matched


def _marks(truth: GroundTruth | None, embedder: Embedder) -> Marks:
    from pipeline.evaluate.probe.answers import Answers, Classification  # noqa: PLC0415

    classed = {}
    if truth is not None:
        for key, names in (("regions", truth.names), ("described", truth.descriptions)):
            if names:
                classed[key] = Classification(sorted(names), embedder.classes(sorted(names)))
    return Marks(classed=classed, found={key: Answers() for key in ("phrases", "phrases_crop", "phrases_pool")})


def _ask(
    exam: Exam,
    reader: Reader,
    places: frozenset[int],
    matched: ImageMatches | None,
    truth: GroundTruth | None,
    embedder: Embedder,
    marks: Marks,
    console: Console,
) -> None:
    """Go through the images once, a batch at a time, and note what the model makes of them."""
    from pipeline.evaluate.probe.answers import find_phrases  # noqa: PLC0415

    prepare, limits = _prepare(exam, embedder)
    pools = -(-len(places) // exam.probe.pool_images)
    waiting: list[tuple[int, Questions, Embedded]] = []  # of the pool that is not full yet

    def search_pool() -> None:
        if waiting:
            numbers, asked, embedded = zip(*waiting, strict=True)
            texts = embedder.texts([text for each in asked for text, _ in each.phrases])
            find_phrases(marks.found["phrases_pool"], numbers, asked, [each.roi for each in embedded], texts)
            waiting.clear()

    records = (Record.start(sample) for place, sample in enumerate(_samples(reader)) if place in places)
    done = pool = 0
    with progress_bar(console, "images", len(places)) as advance:
        while batch := list(islice(records, embedder.batch_images)):
            pictures: list[tuple[int, Picture]] = []
            for place, record in enumerate(prepare.process(batch), start=done):
                picture = _opened(record, matched, truth, exam, limits, marks)
                if picture is not None:
                    pictures.append((place, picture))
            first = len(marks.embeddings)
            answers = embedder.pictures([picture for _, picture in pictures]) if pictures else []
            for number, ((place, picture), embedded) in enumerate(zip(pictures, answers, strict=True), start=first):
                _note(number, picture.asked, embedded, embedder, marks)
                if place * pools // len(places) != pool:
                    search_pool()
                    pool = place * pools // len(places)
                if len(picture.asked.candidates):
                    waiting.append((number, picture.asked, embedded))
            done += len(batch)
            advance(done)
    search_pool()
    prepare.teardown()


def _prepare(exam: Exam, embedder: Embedder) -> tuple[PrepareStage, DecodeLimits]:
    """What resizes the images as a run does."""
    images = exam.config.images
    canvas = ExplainerConfig(kind="").canvas(embedder.model.input)
    prepare = PrepareStage(PrepareConfig(**images.model_dump(), **canvas, keep_image_bytes=exam.probe.crops))
    prepare.setup()
    return prepare, DecodeLimits(max_pixels=images.max_pixels, max_bytes=images.max_bytes)


def _opened(
    record: Record,
    matched: ImageMatches | None,
    truth: GroundTruth | None,
    exam: Exam,
    limits: DecodeLimits,
    marks: Marks,
) -> Picture | None:
    """The image with its questions; None, and a note of the fault, if it cannot be opened."""
    from pipeline.evaluate.probe.embed import Picture  # noqa: PLC0415

    error = record.error
    asked, full = NOTHING, None
    if error is None:
        name = record.sample.image.file_name
        if matched is not None and truth is not None:
            image = matched.images[name]
            things = truth.things.get(image.file_name, ())
            asked = asked_of(image, things, (record.height_px, record.width_px), resized=exam.resized)
        content = record.sample.image.content
        if content is not None and len(asked.boxes_rel):
            try:
                full = decode_rgb(content, limits)
            except RowFault as fault:
                error = fault.error.at(record.sample.source)
    if error is not None or record.pixels is None:
        marks.faults[error.reason if error is not None else "bad_image"] += 1
        if len(marks.examples) < SHOWN_FAULTS:
            marks.examples.append(str(error))
        return None
    marks.names.append(record.sample.image.file_name)
    marks.captions.append(tuple(caption for caption in record.sample.captions if caption.strip()))
    marks.boxes += len(asked.boxes_rel)
    return Picture(rgb=record.pixels.rgb, full=full, asked=asked)


def _note(number: int, asked: Questions, embedded: Embedded, embedder: Embedder, marks: Marks) -> None:
    """Note the answers about one image."""
    from pipeline.evaluate.probe.answers import find_phrases  # noqa: PLC0415

    marks.embeddings.append(embedded.image)
    for key, classed in marks.classed.items():
        classed.add(number, asked.classes if key == "regions" else asked.described, embedded)
    if asked.phrases:
        texts = embedder.texts([text for text, _ in asked.phrases])
        find_phrases(marks.found["phrases"], [number], [asked], [embedded.roi], texts)
        if embedded.crop is not None:
            find_phrases(marks.found["phrases_crop"], [number], [asked], [embedded.crop], texts)


def _report(marks: Marks, embedder: Embedder, probe: ProbeConfig, other: Mapping[str, Any] | None) -> dict[str, Any]:
    import numpy as np  # noqa: PLC0415

    from pipeline.evaluate.probe.answers import retrieve  # noqa: PLC0415
    from pipeline.evaluate.probe.figures import by_class, differences_of, figures_of, restored, stored  # noqa: PLC0415

    texts = {text: row for row, text in enumerate(dict.fromkeys(text for each in marks.captions for text in each))}
    answers = {f"{key}.{way}": own for key, each in marks.classed.items() for way, own in each.answers.items()}
    answers |= marks.found
    if texts:
        numbers = range(len(marks.names))
        embedded = embedder.texts(list(texts))
        answers |= retrieve(numbers, np.stack(marks.embeddings), marks.captions, texts, embedded)
    answers = {name: own for name, own in answers.items() if own.images}
    figures = {name: figures_of(own, probe.min_boxes) for name, own in answers.items()}
    report: dict[str, Any] = {
        "counts": {
            "images": len(marks.names),
            "failed": sum(marks.faults.values()),
            "captions": sum(map(len, marks.captions)),
            "boxes": marks.boxes,
            "classes": {key: each.names for key, each in marks.classed.items()},
        },
        "faults": dict(marks.faults),
        "fault_examples": marks.examples,
        **arranged(figures),
        "classes": {
            way: {name: {"n": n, "top1": share} for name, (n, share) in by_class(own).items()}
            for way, own in (
                (name.partition(".")[2], own) for name, own in answers.items() if name.startswith("regions.")
            )
        },
    }
    if other is not None:
        pairs = {
            # Both as they are stored, so that rounding is no difference.
            name: (restored(stored(own)), restored(other["answers"][name]))
            for name, own in answers.items()
            if name in other["answers"]
        }
        try:
            differences = {name: differences_of(*pair, probe.min_boxes) for name, pair in pairs.items()}
        except ValueError as error:
            raise InputError("--compare: its figures are of other regions, phrases or captions") from error
        report |= {
            "compared_with": other["model"],
            "asked_differently": setting_differences(other.get("probe"), probe.model_dump(mode="json")),
            "differences": arranged(differences),
        }
    return report | {"images": marks.names, "answers": {name: stored(own) for name, own in answers.items()}}


def arranged(figures: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Figures of each kind of question, by the names of the JSON."""
    found: dict[str, Any] = {"regions": {}, "described": {}}
    retrieval: dict[str, Any] = {}
    for name, own in figures.items():
        key, _, way = name.partition(".")
        if way:
            found[key][way] = own
        elif name in ("t2i", "i2t"):
            retrieval |= {f"{name}_{figure}": value for figure, value in own.items()}
        else:
            found[name] = own
    return {**found, "retrieval": retrieval}


def read_scores(path: Path) -> dict[str, Any]:
    """What `phrasebox score-model --json` wrote. Raises InputError if it is something else."""
    import json  # noqa: PLC0415

    from pipeline.evaluate.probe.figures import restored  # noqa: PLC0415

    try:
        scores: dict[str, Any] = json.loads(path.read_bytes())
        for values in scores["answers"].values():
            restored(values)
        if not isinstance(scores["images"], Sequence) or not isinstance(scores["model"], str):
            raise TypeError
    except OSError as error:
        raise InputError(f"--compare: {path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"--compare: {path} is not what phrasebox score-model --json wrote") from error
    return scores
