"""`phrasebox score-model`: how well a model names regions, finds the regions of phrases and retrieves."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.console import Console

from pipeline.config import RunConfig
from pipeline.config import differences as setting_differences
from pipeline.evaluate.answers import (
    Answers,
    Classification,
    by_class,
    differences_of,
    figures_of,
    find_phrases,
    restored,
    retrieve,
    stored,
)
from pipeline.evaluate.judged import drawn_places, pixels_of, prepare_stage
from pipeline.evaluate.matching import ImageMatches, match_images
from pipeline.evaluate.probe import (
    NOTHING,
    Embedded,
    Embedder,
    Embeddings,
    Picture,
    ProbeConfig,
    Questions,
    questions_of,
)
from pipeline.graph import fetch_weights
from pipeline.terminal import counted, progress_bar
from stages.contract.errors import InputError, RowError, RowFault
from stages.contract.records import Record
from stages.read import Reader, Shard, make_reader, plan_shards
from stages.shared.images.decode import decode_rgb
from stages.shared.images.faults import DecodeLimits
from stages.shared.model.load import load, usable_model
from stages.truth import read_truth
from stages.truth.ground_truth import GroundTruth

SHOWN_FAULTS: Final = 3  # images that cannot be opened and are named; the others are counted


@dataclass(frozen=True, slots=True, kw_only=True)
class Exam:
    """The questions to a model, about a sample of at most `most` images; without ground truth it only retrieves.

    The configuration says input, model and images; `resized`: the images were resized after the ground truth was drawn.
    """

    config: RunConfig
    truth: Path | None
    resized: bool
    most: int | None
    seed: int
    probe: ProbeConfig


def scored(exam: Exam, console: Console, other: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return all figures of a model as plain values; `other`: the answer for another model on the same images.

    Returns:
        `regions` and `described` (WAYS -> top1, top5, mean_per_class, n), `phrases`, `phrases_crop` and `phrases_pool`
        (recall_1, recall_5, chance_1, n), `retrieval` (t2i_r1 ... i2t_r10), each {value, low, high, n}; `classes`
        (name -> n, and top-1 by WAYS); the exam and the model; and `answers`, one number for each question, from which
        `differences` from the other model are computed, with its name in `compared_with` and the settings that differ
        in `asked_differently`.

    Raises:
        ConfigError: The model cannot be used.
        InputError: The input or the ground truth cannot be read, they do not fit together, or there is nothing to ask.
        WeightsError: The model's files are missing or damaged.
    """
    started = time.perf_counter()
    config, name = exam.config, usable_model(exam.config.model).name
    truth = None if exam.truth is None else read_truth(exam.truth)
    reader = make_reader(config.input)
    shards = plan_shards(reader)
    places, matched = _sampled(reader, shards, truth, exam, other)
    fetch_weights(config.model, lambda text: console.print(text, soft_wrap=True))
    model = load(config.model)
    marks = Marks(exam, Embedder(model, exam.probe, config.model.batch_size), truth, matched)
    console.print(f"{name} on {counted(len(places), 'image')}, {model.device_name}", soft_wrap=True)
    samples = (sample for place, sample in enumerate(reader.samples(shards)) if place in places)
    _ask(map(Record.start, samples), len(places), marks, console)
    if not marks.names:
        raise InputError(f"none of the {len(places):,} images can be opened: {marks.examples[0]}")
    return {
        "model": name,
        "device": model.device_name,
        "input": config.input.model_dump(mode="json"),
        "truth": None if exam.truth is None else str(exam.truth),
        "matched": None if matched is None else matched.counts,
        "probe": _plain(exam.probe),
        "seed": exam.seed,
        **_report(marks, other),
        "seconds": round(time.perf_counter() - started, 1),
    }


def _sampled(
    reader: Reader, shards: Sequence[Shard], truth: GroundTruth | None, exam: Exam, other: Mapping[str, Any] | None
) -> tuple[frozenset[int], ImageMatches | None]:
    """The places of the sample's images in the input, and their ground truth. Raise InputError if there are none."""
    names = [sample.image.file_name for sample in reader.samples(shards)]
    if not names:
        raise InputError("the input has no images")
    matched = None if truth is None else match_images(names, truth)
    known = ((place, name) for place, name in enumerate(names) if matched is None or name in matched.images)
    chosen = drawn_places(known, exam.most, exam.seed)
    if other is not None:
        theirs = set(other["images"])
        if [names[place] for place in chosen if names[place] in theirs] != list(other["images"]):
            raise InputError("--compare: its figures are of other images; measure both models on the same sample")
    return frozenset(chosen), matched


class Marks:
    """The answers of a model so far."""

    def __init__(self, exam: Exam, embedder: Embedder, truth: GroundTruth | None, matched: ImageMatches | None) -> None:
        self.exam, self.embedder = exam, embedder
        self._truth, self._matched = truth, matched
        images = exam.config.images
        self._limits = DecodeLimits(max_pixels=images.max_pixels, max_bytes=images.max_bytes)
        named = {} if truth is None else {"regions": sorted(truth.names), "described": sorted(truth.descriptions)}
        # Regions among the classes, and phrases among regions, by the names of the JSON.
        self.classed = {key: Classification(own, embedder.classes(own)) for key, own in named.items() if own}
        self.found = {key: Answers() for key in ("phrases", "phrases_crop", "phrases_pool")}
        self.names: list[str] = []  # of each image that could be opened, in order; so are the next two
        self.captions: list[tuple[str, ...]] = []
        self.embeddings: list[Embeddings] = []
        self.boxes = 0
        self.faults = Counter[str]()  # images that could not be opened, by reason
        self.examples: list[str] = []  # some of these faults in full
        self._pool: list[tuple[int, Questions, Embedded]] = []

    def opened(self, record: Record) -> Picture | None:
        """Return the image with its questions; None, and a note of the fault, if it cannot be opened."""
        if record.error is not None:
            self._fail(record.error)
            return None
        asked, full, content = self._questions(record), None, record.sample.image.content
        if content is not None and len(asked.boxes_rel):
            try:
                full = decode_rgb(content, self._limits)
            except RowFault as fault:
                self._fail(fault.error.at(record.sample.source))
                return None
        self.names.append(record.sample.image.file_name)
        self.captions.append(tuple(caption for caption in record.sample.captions if caption.strip()))
        self.boxes += len(asked.boxes_rel)
        return Picture(rgb=pixels_of(record), full=full, asked=asked)

    def _questions(self, record: Record) -> Questions:
        if self._matched is None or self._truth is None:
            return NOTHING
        image = self._matched.images[record.sample.image.file_name]
        things = self._truth.objects.get(image.file_name, ())
        return questions_of(image, things, (record.height_px, record.width_px), resized=self.exam.resized)

    def _fail(self, error: RowError) -> None:
        self.faults[error.reason] += 1
        if len(self.examples) < SHOWN_FAULTS:
            self.examples.append(str(error))

    def add(self, asked: Questions, embedded: Embedded) -> None:
        """Note the answers about the next image."""
        number = len(self.embeddings)
        self.embeddings.append(embedded.image)
        for key, classed in self.classed.items():
            classes = [thing.category if key == "regions" else thing.description for thing in asked.things]
            classed.add(number, classes, embedded)
        if asked.phrases:
            texts = self.embedder.texts([text for text, _ in asked.phrases])
            find_phrases(self.found["phrases"], [number], [asked], [embedded.roi], texts)
            if embedded.crop is not None:
                find_phrases(self.found["phrases_crop"], [number], [asked], [embedded.crop], texts)
        if len(asked.candidates):
            self._pool.append((number, asked, embedded))

    def search_pool(self) -> None:
        """Search the phrases of the images since the last call in the regions of all of them."""
        if self._pool:
            numbers, asked, embedded = zip(*self._pool, strict=True)
            texts = self.embedder.texts([text for each in asked for text, _ in each.phrases])
            find_phrases(self.found["phrases_pool"], numbers, asked, [each.roi for each in embedded], texts)
            self._pool.clear()

    def answers(self) -> dict[str, Answers]:
        """All answers by their names in the JSON, those of regions with their way behind a dot; with retrieval."""
        answers = {f"{key}.{way}": own for key, each in self.classed.items() for way, own in each.answers.items()}
        answers |= self.found
        texts = {text: row for row, text in enumerate(dict.fromkeys(text for each in self.captions for text in each))}
        if texts:
            embedded = self.embedder.texts(list(texts))
            answers |= retrieve(range(len(self.names)), np.stack(self.embeddings), self.captions, texts, embedded)
        return {name: own for name, own in answers.items() if own.images}


def _ask(records: Iterator[Record], count: int, marks: Marks, console: Console) -> None:
    probe, embedder = marks.exam.probe, marks.embedder
    prepare = prepare_stage(marks.exam.config, embedder.model.input, keep_image_bytes=probe.crops)
    prepare.setup()
    pools = -(-count // probe.pool_images)
    done = pool = 0
    with progress_bar(console, "images", count) as advance:
        while batch := list(islice(records, embedder.batch_images)):
            opened = [(place, marks.opened(record)) for place, record in enumerate(prepare.process(batch), start=done)]
            pictures = [(place, picture) for place, picture in opened if picture is not None]
            answers = embedder.pictures([picture for _, picture in pictures]) if pictures else []
            for (place, picture), embedded in zip(pictures, answers, strict=True):
                if place * pools // count != pool:
                    marks.search_pool()
                    pool = place * pools // count
                marks.add(picture.asked, embedded)
            done += len(batch)
            advance(done)
    marks.search_pool()
    prepare.teardown()


def _report(marks: Marks, other: Mapping[str, Any] | None) -> dict[str, Any]:
    probe, answers = marks.exam.probe, marks.answers()
    kept = {name: stored(own) for name, own in answers.items()}
    report: dict[str, Any] = {
        "counts": {
            "images": len(marks.names),
            "failed": marks.faults.total(),
            "captions": sum(map(len, marks.captions)),
            "boxes": marks.boxes,
            "classes": {key: len(each.names) for key, each in marks.classed.items()},
        },
        "faults": dict(marks.faults),
        "fault_examples": marks.examples,
        **arranged({name: figures_of(own) for name, own in answers.items()}),
        "classes": {
            name.removeprefix("regions."): by_class(own) for name, own in answers.items() if name.startswith("regions.")
        },
    }
    if other is not None:
        # Both as they are stored, so that rounding is no difference.
        both = {name: (restored(kept[name]), restored(own)) for name, own in other["answers"].items() if name in kept}
        try:
            differences = {name: differences_of(*both[name]) for name in kept if name in both}
        except ValueError as error:
            raise InputError("--compare: its figures are of other regions, phrases or captions") from error
        report |= {
            "compared_with": other["model"],
            "asked_differently": setting_differences(other.get("probe"), _plain(probe)),
            "differences": arranged(differences),
        }
    return report | {"images": marks.names, "answers": kept}


def _plain(probe: ProbeConfig) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(probe)))  # type: ignore[no-any-return]


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
    """Return the output of `phrasebox score-model --json` in a file. Raise InputError if it is something else."""
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
