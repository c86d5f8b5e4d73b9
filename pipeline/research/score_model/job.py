"""`phrasebox score-model`: how well a model names regions, finds the regions of phrases and retrieves."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.console import Console

from pipeline.config import RunConfig
from pipeline.config import differences as setting_differences
from pipeline.evaluate.evaluation_set import draw_places, pixels_of, prepare_stage
from pipeline.evaluate.matching import ImageMatches, match_images
from pipeline.graph import fetch_weights
from pipeline.research.score_model.answers import (
    Answers,
    Classification,
    count_by_class,
    differences_of,
    dump_answers,
    figures_of,
    find_phrases,
    parse_answers,
    retrieve,
)
from pipeline.research.score_model.probe import (
    NO_QUESTIONS,
    Embedder,
    Embeddings,
    ImageEmbeddings,
    Picture,
    ProbeConfig,
    Questions,
    questions_of,
)
from pipeline.terminal import counted, progress_bar
from stages.contract.errors import InputError, RowError, RowFault
from stages.contract.records import Record
from stages.read import Reader, Shard, make_reader, plan_shards
from stages.shared.images.decode import decode_rgb
from stages.shared.images.faults import DecodeLimits
from stages.shared.model.load import load, usable_model
from stages.truth import read_truth
from stages.truth.ground_truth import GroundTruth

MAX_EXAMPLES: Final = 3  # images that cannot be opened and are named; the others are counted


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringJob:
    """The images and settings with which a model is measured.

    Attributes:
        config: Input, model and images.
        truth: Ground truth; None to measure retrieval alone.
        resized: Whether the images were resized after the ground truth was drawn.
        most: Size of the sample of images; None for all images.
        seed: Seed of the sample.
        probe: Questions and embeddings.
    """

    config: RunConfig
    truth: Path | None
    resized: bool
    most: int | None
    seed: int
    probe: ProbeConfig


def compute_scores(job: ScoringJob, console: Console, reference: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return all figures of a model as plain values; `reference`: figures of another model on the same images.

    Returns:
        `regions` and `described` (WAYS -> top1, top5, mean_per_class, n), `phrases`, `phrases_crop` and `phrases_pool`
        (recall_1, recall_5, chance_1, n), `retrieval` (t2i_r1 ... i2t_r10), each {value, low, high, n}; `classes`
        (name -> n, and top-1 by WAYS); the job and the model; and `answers`, one number for each question. With a
        reference also `differences` from it, its name in `compared_with`, and the settings that differ in
        `asked_differently`.

    Raises:
        ConfigError: The model cannot be used.
        InputError: The input or the ground truth cannot be read, they do not fit together, or there is nothing to ask.
        WeightsError: The model's files are missing or damaged.
    """
    start_s = time.perf_counter()
    config = job.config
    name = usable_model(config.model).name
    truth = None if job.truth is None else read_truth(job.truth)
    reader = make_reader(config.input)
    shards = plan_shards(reader)
    places, matches = _draw_sample(reader, shards, truth, job, reference)
    fetch_weights(config.model, lambda text: console.print(text, soft_wrap=True))
    model = load(config.model)
    sheet = AnswerSheet(job, Embedder(model, job.probe, config.model.batch_size), truth, matches)
    console.print(f"{name} on {counted(len(places), 'image')}, {model.device_name}", soft_wrap=True)
    samples = (sample for place, sample in enumerate(reader.samples(shards)) if place in places)
    _answer_questions(map(Record.start, samples), len(places), sheet, console)
    if not sheet.names:
        raise InputError(f"none of the {len(places):,} images can be opened: {sheet.examples[0]}")
    return {
        "model": name,
        "device": model.device_name,
        "input": config.input.model_dump(mode="json"),
        "truth": None if job.truth is None else str(job.truth),
        "matched": None if matches is None else matches.counts,
        "probe": _dump_probe(job.probe),
        "seed": job.seed,
        **_report(sheet, reference),
        "seconds": round(time.perf_counter() - start_s, 1),
    }


def _draw_sample(
    reader: Reader,
    shards: Sequence[Shard],
    truth: GroundTruth | None,
    job: ScoringJob,
    reference: Mapping[str, Any] | None,
) -> tuple[frozenset[int], ImageMatches | None]:
    """Return the places of a sample of images in the input, and their ground truth. Raise InputError without images."""
    names = [sample.image.file_name for sample in reader.samples(shards)]
    if not names:
        raise InputError("the input has no images")
    matches = None if truth is None else match_images(names, truth)
    candidates = ((place, name) for place, name in enumerate(names) if matches is None or name in matches.images)
    places = draw_places(candidates, job.most, job.seed)
    if reference is not None:
        reference_names = set(reference["images"])
        if [names[place] for place in places if names[place] in reference_names] != list(reference["images"]):
            raise InputError("--compare: its figures are of other images; measure both models on the same sample")
    return frozenset(places), matches


class AnswerSheet:
    """The answers of a model so far."""

    def __init__(
        self, job: ScoringJob, embedder: Embedder, truth: GroundTruth | None, matches: ImageMatches | None
    ) -> None:
        self.job = job
        self.embedder = embedder
        self._truth = truth
        self._matches = matches
        images = job.config.images
        self._limits = DecodeLimits(max_pixels=images.max_pixels, max_bytes=images.max_bytes)
        classes = {} if truth is None else {"regions": sorted(truth.names), "described": sorted(truth.descriptions)}
        # By the names of the JSON.
        self.classifications = {
            key: Classification(names, embedder.embed_classes(names)) for key, names in classes.items() if names
        }
        self.phrase_answers = {key: Answers() for key in ("phrases", "phrases_crop", "phrases_pool")}
        # Of each image that could be opened, in order.
        self.names: list[str] = []
        self.captions: list[tuple[str, ...]] = []
        self.embeddings: list[Embeddings] = []
        self.boxes = 0
        self.faults = Counter[str]()  # images that could not be opened, by reason
        self.examples: list[str] = []  # the first of these faults in full
        self._pool: list[tuple[int, Questions, ImageEmbeddings]] = []

    def open_picture(self, record: Record) -> Picture | None:
        """Return the image with its questions. If it cannot be opened, record the fault and return None."""
        if record.error is not None:
            self._fail(record.error)
            return None
        questions = self._questions(record)
        content = record.sample.image.content
        full = None
        if content is not None and len(questions.boxes_rel):
            try:
                full = decode_rgb(content, self._limits)
            except RowFault as fault:
                self._fail(fault.error.at(record.sample.source))
                return None
        self.names.append(record.sample.image.file_name)
        self.captions.append(tuple(caption for caption in record.sample.captions if caption.strip()))
        self.boxes += len(questions.boxes_rel)
        return Picture(rgb=pixels_of(record), full=full, questions=questions)

    def _questions(self, record: Record) -> Questions:
        if self._matches is None or self._truth is None:
            return NO_QUESTIONS
        image = self._matches.images[record.sample.image.file_name]
        things = self._truth.objects.get(image.file_name, ())
        return questions_of(image, things, (record.height_px, record.width_px), resized=self.job.resized)

    def _fail(self, error: RowError) -> None:
        self.faults[error.reason] += 1
        if len(self.examples) < MAX_EXAMPLES:
            self.examples.append(str(error))

    def add(self, questions: Questions, embeddings: ImageEmbeddings) -> None:
        """Add the answers about the next image."""
        number = len(self.embeddings)
        self.embeddings.append(embeddings.image)
        for key, classification in self.classifications.items():
            classes = [thing.category if key == "regions" else thing.description for thing in questions.things]
            classification.add(number, classes, embeddings)
        if questions.phrases:
            texts = self.embedder.embed_texts([text for text, _ in questions.phrases])
            find_phrases(self.phrase_answers["phrases"], [number], [questions], [embeddings.roi], texts)
            if embeddings.crop is not None:
                find_phrases(self.phrase_answers["phrases_crop"], [number], [questions], [embeddings.crop], texts)
        if len(questions.candidates):
            self._pool.append((number, questions, embeddings))

    def search_pool(self) -> None:
        """Look for the phrases of all images added since the last call, in the regions of all these images."""
        if self._pool:
            numbers, questions, embeddings = zip(*self._pool, strict=True)
            texts = self.embedder.embed_texts([text for part in questions for text, _ in part.phrases])
            regions = [part.roi for part in embeddings]
            find_phrases(self.phrase_answers["phrases_pool"], numbers, questions, regions, texts)
            self._pool.clear()

    def answers(self) -> dict[str, Answers]:
        """Return all answers, with retrieval, by their names in the JSON; a region's name ends in a dot and the way."""
        answers = {
            f"{key}.{way}": part
            for key, classification in self.classifications.items()
            for way, part in classification.answers.items()
        }
        answers |= self.phrase_answers
        texts = {text: row for row, text in enumerate(dict.fromkeys(chain.from_iterable(self.captions)))}
        if texts:
            embeddings = self.embedder.embed_texts(list(texts))
            answers |= retrieve(range(len(self.names)), np.stack(self.embeddings), self.captions, texts, embeddings)
        return {name: part for name, part in answers.items() if part.images}


def _answer_questions(records: Iterator[Record], total: int, sheet: AnswerSheet, console: Console) -> None:
    probe = sheet.job.probe
    embedder = sheet.embedder
    prepare = prepare_stage(sheet.job.config, embedder.model.input, keep_image_bytes=probe.crops)
    prepare.setup()
    pools = -(-total // probe.pool_images)
    count = pool = 0
    with progress_bar(console, "images", total) as advance:
        while batch := list(islice(records, embedder.batch_images)):
            numbered_records = enumerate(prepare.process(batch), start=count)
            attempts = [(place, sheet.open_picture(record)) for place, record in numbered_records]
            pictures = {place: picture for place, picture in attempts if picture is not None}
            embeddings = embedder.embed_pictures(list(pictures.values())) if pictures else []
            for (place, picture), image_embeddings in zip(pictures.items(), embeddings, strict=True):
                if place * pools // total != pool:
                    sheet.search_pool()
                    pool = place * pools // total
                sheet.add(picture.questions, image_embeddings)
            count += len(batch)
            advance(count)
    sheet.search_pool()
    prepare.teardown()


def _report(sheet: AnswerSheet, reference: Mapping[str, Any] | None) -> dict[str, Any]:
    answers = sheet.answers()
    plain_answers = {name: dump_answers(part) for name, part in answers.items()}
    report: dict[str, Any] = {
        "counts": {
            "images": len(sheet.names),
            "failed": sheet.faults.total(),
            "captions": sum(map(len, sheet.captions)),
            "boxes": sheet.boxes,
            "classes": {key: len(classification.names) for key, classification in sheet.classifications.items()},
        },
        "faults": dict(sheet.faults),
        "fault_examples": sheet.examples,
        **arrange_figures({name: figures_of(part) for name, part in answers.items()}),
        "classes": {
            name.removeprefix("regions."): count_by_class(part)
            for name, part in answers.items()
            if name.startswith("regions.")
        },
    }
    if reference is not None:
        try:
            # Both as they are stored, so that rounding is no difference.
            differences = {
                name: differences_of(parse_answers(part), parse_answers(reference["answers"][name]))
                for name, part in plain_answers.items()
                if name in reference["answers"]
            }
        except ValueError as error:
            raise InputError("--compare: its figures are of other regions, phrases or captions") from error
        report |= {
            "compared_with": reference["model"],
            "asked_differently": setting_differences(reference.get("probe"), _dump_probe(sheet.job.probe)),
            "differences": arrange_figures(differences),
        }
    return report | {"images": sheet.names, "answers": plain_answers}


def _dump_probe(probe: ProbeConfig) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(probe)))  # type: ignore[no-any-return]


def arrange_figures(figures: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the figures of each kind of question, by the names of the JSON."""
    kinds: dict[str, Any] = {"regions": {}, "described": {}}
    retrieval: dict[str, Any] = {}
    for name, values in figures.items():
        key, _, way = name.partition(".")
        if way:
            kinds[key][way] = values
        elif name in ("t2i", "i2t"):
            retrieval |= {f"{name}_{figure}": value for figure, value in values.items()}
        else:
            kinds[name] = values
    return {**kinds, "retrieval": retrieval}


def read_scores(path: Path) -> dict[str, Any]:
    """Return the output of `phrasebox score-model --json` in a file. Raise InputError if it is something else."""
    try:
        scores: dict[str, Any] = json.loads(path.read_bytes())
        for values in scores["answers"].values():
            parse_answers(values)
        if not isinstance(scores["images"], Sequence) or not isinstance(scores["model"], str):
            raise TypeError
    except OSError as error:
        raise InputError(f"--compare: {path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"--compare: {path} is not what phrasebox score-model --json wrote") from error
    return scores
