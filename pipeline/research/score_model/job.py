"""`phrasebox score-model`: how well a model names regions, finds the regions of phrases and retrieves."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Final

import numpy as np
from pydantic import BaseModel, ValidationError
from rich.console import Console

from phrasebox.pipeline.config.run_config import RunConfig
from phrasebox.pipeline.evaluate.estimates import Estimates
from phrasebox.pipeline.evaluate.evaluation_set import pixels_of, prepare_stage
from phrasebox.pipeline.evaluate.matching import ImageMatches, match_images
from phrasebox.pipeline.research.frozen import names_in, store_outputs
from phrasebox.pipeline.research.score_model.answers import (
    Answers,
    Classification,
    differences_of,
    figures_of,
    find_phrases,
    retrieve,
)
from phrasebox.pipeline.research.score_model.probe import (
    NO_QUESTIONS,
    Embedder,
    Embeddings,
    ImageEmbeddings,
    Picture,
    Questions,
    questions_of,
)
from phrasebox.pipeline.terminal import counted, progress_bar, say
from phrasebox.stages.contract.errors import InputError
from phrasebox.stages.contract.records import Record
from phrasebox.stages.contract.values import Json
from phrasebox.stages.model.describe import describe
from phrasebox.stages.model.load import fetch, load
from phrasebox.stages.read import Piece, Reader, make_reader, plan_pieces
from phrasebox.stages.truth import read_truth
from phrasebox.stages.truth.ground_truth import GroundTruth

POOL_IMAGES: Final = 50  # at most, among whose regions phrases are looked for

MAX_EXAMPLES: Final = 3  # images that cannot be opened and are named; the others are counted


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringJob:
    """The images and settings with which a model is measured.

    Attributes:
        config: Input, model and images.
        truth: Ground truth; None to measure retrieval alone.
        resized: Whether the images were resized after the ground truth was drawn.
        prompts: Sentences for the name of a class, see `Embedder`.
        outputs: Folder of the outputs of frozen networks; None: all is computed.
    """

    config: RunConfig
    truth: Path | None
    resized: bool
    prompts: Sequence[str]
    outputs: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreCounts:
    """The numbers of images, of captions, of regions, and of classes by question."""

    images: int
    captions: int
    boxes: int
    classes: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelComparison:
    """The differences of the figures from those of another model, and its name."""

    compared_with: str
    differences: Mapping[str, Estimates]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """What `phrasebox score-model` says of a model.

    Attributes:
        model: Name of the model.
        device: Its device, for people.
        input: Section input of the configuration.
        truth: Path of the ground truth.
        prompts: Sentences for the name of a class.
        counts: What was asked.
        faults: Number of images that cannot be opened, by reason.
        fault_examples: The first of these faults in full.
        figures: Kind of question -> figures: `regions.roi` and `described.roi` (top1, top5,
            mean_per_class), `phrases` and `phrases_pool` (recall_1, recall_5, chance_1), `t2i`
            and `i2t` (r1, r5, r10).
        comparison: Differences from another model, if there is one.
        images: File names of the images, in order.
        answers: Kind of question -> answers, with six digits.
        seconds: Time of all this.
    """

    model: str
    device: str
    input: Json
    truth: str | None
    prompts: Sequence[str]
    counts: ScoreCounts
    faults: Mapping[str, int]
    fault_examples: list[str]
    figures: Mapping[str, Estimates]
    comparison: ModelComparison | None
    images: list[str]
    answers: Mapping[str, Answers]
    seconds: float


class StoredScores(BaseModel):
    """The parts of `Scores` that another model is compared with."""

    model: str
    prompts: tuple[str, ...]
    images: list[str]
    answers: dict[str, Answers]


def compute_scores(job: ScoringJob, console: Console, reference: StoredScores | None = None) -> Scores:
    """Return all figures of a model; `reference`: figures of another model on the same images.

    Raises:
        ConfigError: The model cannot be used.
        InputError: The input or the ground truth cannot be read, they do not fit together, or
            there is nothing to ask.
        WeightsError: The model's files are missing or damaged.
    """
    start_s = time.perf_counter()
    config = job.config
    description = describe(config.model)
    truth = None if job.truth is None else read_truth(job.truth)
    reader = make_reader(config.input)
    pieces = plan_pieces(reader)
    places, matches = _choose_images(reader, pieces, truth)
    if reference is not None:
        _check_reference(reference, job, list(places.values()))
    fetch(description, lambda text: say(console, text))
    compute = config.model
    model = load(description, device=compute.device, precision=compute.precision, threads=compute.threads)
    if job.outputs is not None:
        store_outputs(model.tower, names_in(job.outputs), job.outputs, model.tower.dtype)
    sheet = AnswerSheet(job, Embedder(model, job.prompts, config.model.batch_size), truth, matches)
    say(console, f"{description.name} on {counted(len(places), 'image')}, {model.device_name}")
    samples = (sample for place, sample in enumerate(reader.samples(pieces)) if place in places)
    _answer_questions(map(Record.start, samples), len(places), sheet, console)
    if not sheet.names:
        raise InputError(f"none of the {len(places):,} images can be opened: {sheet.examples[0]}")
    answers = sheet.answers()
    rounded_answers = {kind: part.rounded() for kind, part in answers.items()}
    return Scores(
        model=description.name,
        device=model.device_name,
        input=config.input.model_dump(mode="json"),
        truth=None if job.truth is None else str(job.truth),
        prompts=job.prompts,
        counts=ScoreCounts(
            images=len(sheet.names),
            captions=sum(map(len, sheet.captions)),
            boxes=sheet.boxes,
            classes={name: len(part.names) for name, part in sheet.classifications.items()},
        ),
        faults=dict(sheet.faults),
        fault_examples=sheet.examples,
        figures={kind: figures_of(part) for kind, part in answers.items()},
        comparison=None if reference is None else _compare(rounded_answers, reference),
        images=sheet.names,
        answers=rounded_answers,
        seconds=round(time.perf_counter() - start_s, 1),
    )


def _check_reference(reference: StoredScores, job: ScoringJob, names: Sequence[str]) -> None:
    """Raise InputError if the other figures are of other prompts, or of images that are not among these."""
    if reference.prompts != tuple(job.prompts):
        raise InputError(f"its figures are of other prompts: {', '.join(reference.prompts)}", key="compare")
    if not set(reference.images) <= set(names):
        raise InputError(
            "its figures are of other images; measure both models on the same ones", key="compare"
        )


def _compare(answers: Mapping[str, Answers], reference: StoredScores) -> ModelComparison:
    try:
        # Both as they are stored, so that rounding is no difference.
        differences = {
            kind: differences_of(part, reference.answers[kind])
            for kind, part in answers.items()
            if kind in reference.answers
        }
    except ValueError as error:
        raise InputError("its figures are of other regions, phrases or captions", key="compare") from error
    return ModelComparison(compared_with=reference.model, differences=differences)


def _choose_images(
    reader: Reader, pieces: Sequence[Piece], truth: GroundTruth | None
) -> tuple[dict[int, str], ImageMatches | None]:
    """Return the images that ground truth has, by their place in the input, and it. Raise InputError without images."""
    names = [sample.image.file_name for sample in reader.samples(pieces)]
    if not names:
        raise InputError("the input has no images")
    if truth is None:
        return dict(enumerate(names)), None
    matches = match_images(names, truth)
    return {place: name for place, name in enumerate(names) if name in matches.images}, matches


class AnswerSheet:
    """The answers of a model so far."""

    def __init__(
        self, job: ScoringJob, embedder: Embedder, truth: GroundTruth | None, matches: ImageMatches | None
    ) -> None:
        self.job = job
        self.embedder = embedder
        self._truth = truth
        self._matches = matches
        # By the names of the JSON.
        self.classifications: dict[str, Classification] = {}
        if truth is not None:
            for key, names in (("regions", truth.names), ("described", truth.descriptions)):
                if names:
                    self.classifications[key] = Classification(
                        sorted(names), embedder.embed_classes(sorted(names))
                    )
        self.found_phrases = Answers()
        # Of each image that could be opened, in order.
        self.names: list[str] = []
        self.captions: list[tuple[str, ...]] = []
        self.embeddings: list[Embeddings] = []
        self.boxes = 0
        self.faults = Counter[str]()  # images that could not be opened, by reason
        self.examples: list[str] = []  # the first of these faults in full
        # Number of the pool and of the image.
        self._pooled: list[tuple[int, int, Questions, Embeddings]] = []

    def open_picture(self, record: Record) -> Picture | None:
        """Return the image with its questions. If it cannot be opened, record the fault and return None."""
        if record.error is not None:
            self.faults[record.error.reason] += 1
            if len(self.examples) < MAX_EXAMPLES:
                self.examples.append(str(record.error))
            return None
        questions = self._questions(record)
        self.names.append(record.sample.image.file_name)
        self.captions.append(tuple(caption for caption in record.sample.captions if caption.strip()))
        self.boxes += len(questions.boxes_rel)
        return Picture(pixels_of(record), questions)

    def _questions(self, record: Record) -> Questions:
        if self._matches is None or self._truth is None:
            return NO_QUESTIONS
        image = self._matches.images[record.sample.image.file_name]
        objects = self._truth.objects.get(image.file_name, ())
        return questions_of(image, objects, (record.height_px, record.width_px), resized=self.job.resized)

    def add(self, questions: Questions, embeddings: ImageEmbeddings, pool: int) -> None:
        """Add the answers about the next image, which belongs to a pool of images."""
        number = len(self.embeddings)
        self.embeddings.append(embeddings.image)
        for key, classification in self.classifications.items():
            classes = [
                object_.category if key == "regions" else object_.description
                for object_ in questions.objects
            ]
            classification.add(number, classes, embeddings.regions)
        if len(questions.candidates):
            self._pooled.append((pool, number, questions, embeddings.regions))
            self._find(self.found_phrases, self._pooled[-1:])

    def _find(self, answers: Answers, images: Sequence[tuple[int, int, Questions, Embeddings]]) -> None:
        """Look for the phrases of some images in the regions of all of them, and add the answers."""
        _, numbers, questions, regions = zip(*images, strict=True)
        texts = self.embedder.embed_texts([text for part in questions for text, _ in part.phrases])
        find_phrases(answers, numbers, questions, regions, texts)

    def answers(self) -> dict[str, Answers]:
        """Return all answers, with retrieval, by their names in the JSON."""
        found_in_pools = Answers()
        for _, images in groupby(self._pooled, itemgetter(0)):
            self._find(found_in_pools, list(images))
        answers = {f"{key}.roi": part.answers for key, part in self.classifications.items()}
        answers |= {"phrases": self.found_phrases, "phrases_pool": found_in_pools}
        texts = {text: row for row, text in enumerate(dict.fromkeys(chain.from_iterable(self.captions)))}
        if texts:
            embeddings = self.embedder.embed_texts(list(texts))
            answers |= retrieve(
                range(len(self.names)), np.stack(self.embeddings), self.captions, texts, embeddings
            )
        return {name: part for name, part in answers.items() if part.images}


def _answer_questions(records: Iterator[Record], total: int, sheet: AnswerSheet, console: Console) -> None:
    embedder = sheet.embedder
    prepare = prepare_stage(sheet.job.config.images, embedder.model.input)
    prepare.setup()
    pools = -(-total // POOL_IMAGES)
    count = 0
    with progress_bar(console, "images", total) as advance:
        while batch := list(islice(records, embedder.batch_images)):
            numbered_records = enumerate(prepare.process(batch), start=count)
            attempts = [(place, sheet.open_picture(record)) for place, record in numbered_records]
            pictures = {place: picture for place, picture in attempts if picture is not None}
            embeddings = embedder.embed_pictures(list(pictures.values())) if pictures else []
            for (place, picture), image_embeddings in zip(pictures.items(), embeddings, strict=True):
                sheet.add(picture.questions, image_embeddings, place * pools // total)
            count += len(batch)
            advance(count)
    prepare.teardown()


def read_scores(path: Path) -> StoredScores:
    """Return the output of `phrasebox score-model --json` in a file. Raise InputError if it is something else."""
    try:
        return StoredScores.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}", key="compare") from error
    except ValidationError as error:
        raise InputError(f"{path} is not what phrasebox score-model --json wrote", key="compare") from error
