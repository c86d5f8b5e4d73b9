"""The sample of images, phrases and places, which is the same for all explainers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from rich.console import Console

from phrasebox.pipeline.config.run_config import RunConfig
from phrasebox.pipeline.evaluate.evaluation_set import prepare_stage
from phrasebox.pipeline.evaluate.matching import ImageMatches, Query, match_images, queries_of
from phrasebox.pipeline.run.stage_calls import set_up
from phrasebox.pipeline.terminal import progress_bar, say
from phrasebox.stages.contract.errors import InputError
from phrasebox.stages.contract.records import Phrase, Record, stable_id
from phrasebox.stages.model.config import InputSpec
from phrasebox.stages.phrases.groups import link_phrases
from phrasebox.stages.phrases.stage import PhrasesStage
from phrasebox.stages.read import make_reader, plan_pieces
from phrasebox.stages.truth import read_truth
from phrasebox.stages.truth.ground_truth import TruthImage

AT_ONCE = 32  # images that are read together

MOST_PHRASES = 8  # of an image

SEED = 0  # of all random choices


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A phrase of the captions that an image is asked for.

    Attributes:
        phrase: The phrase.
        object: The object that the phrase names: equal for phrases of an image that name the same.
        query: Its place, without a heat map; None without ground truth.
    """

    phrase: Phrase
    object_: str
    query: Query | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedImage:
    """An image of the sample.

    Attributes:
        number: Number in the sample, from 0.
        source: The record of the input, with the phrases of the questions.
        record: The same record with pixels at the model's own input size.
        questions: One or more questions in random order.
    """

    number: int
    source: Record
    record: Record
    questions: tuple[Question, ...]

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width of the image in pixels."""
        return self.record.height_px, self.record.width_px

    def with_phrases(self, *phrases: Phrase) -> ComparedImage:
        """Return the same image with other phrases."""
        return replace(
            self, source=replace(self.source, phrases=phrases), record=replace(self.record, phrases=phrases)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The images of a comparison.

    Attributes:
        name: Name for people.
        config: Input, model, phrases and images.
        truth: Ground truth; None without places.
        resized: Whether the images were resized after the ground truth was drawn.
        most: The most images.
    """

    name: str
    config: RunConfig
    truth: Path | None
    resized: bool = False
    most: int = 200


def read_images(source: Source, spec: InputSpec, console: Console) -> list[ComparedImage]:
    """Read a sample of images, with phrases, places and pixels at the model's input size.

    With ground truth, questions are phrases of the captions with a known place; otherwise any
    phrases.

    Raise InputError if the input or the ground truth cannot be read, if they do not fit
    together, or if there is nothing to ask.
    """
    ground_truth = None if source.truth is None else read_truth(source.truth)
    reader = make_reader(source.config.input)
    pieces = plan_pieces(reader)
    samples = [
        (sample.sample_id, sample.image.file_name, sample.error is None)
        for sample in reader.samples(pieces)
    ]
    names = (name for _, name, is_read in samples if is_read)
    matches = None if ground_truth is None else match_images(names, ground_truth)
    places = _draw_sample(samples, matches, source.most)
    records = (
        Record.start(sample) for place, sample in enumerate(reader.samples(pieces)) if place in places
    )

    def questions_of(record: Record) -> list[Question]:
        if record.error is not None:
            return []
        if ground_truth is None or matches is None:
            return _any_questions(record)
        true_image = matches.images[record.sample.image.file_name]
        if source.resized:
            true_image = true_image.resize((record.height_px, record.width_px))
        return _placed_questions(len(images), record, true_image, ground_truth.categories)

    images: list[ComparedImage] = []
    fault_count = count = 0
    stages = (PhrasesStage(source.config.phrases), prepare_stage(source.config.images, spec))
    with set_up(stages), progress_bar(console, "images", len(places)) as advance:
        while batch := list(islice(records, AT_ONCE)):
            phrased_records = stages[0].process(batch)
            records_with_pixels = stages[1].process(phrased_records)
            for phrased_record, record in zip(phrased_records, records_with_pixels, strict=True):
                fault_count += record.error is not None
                questions = questions_of(record)
                if questions:
                    image_questions = _draw_questions(questions, record.sample.sample_id)
                    image = ComparedImage(
                        number=len(images), source=phrased_record, record=record, questions=image_questions
                    )
                    images.append(image.with_phrases(*(question.phrase for question in image_questions)))
            count += len(batch)
            advance(count)
    if not images:
        kind = "a phrase" if ground_truth is None else "a phrase with a known place"
        raise InputError(f"none of the {len(places)} images can be opened and has {kind}")
    if missing := len(places) - len(images):
        reasons = f"{fault_count:,} cannot be opened, the others name nothing that can be asked for"
        say(console, f"{missing:,} of {len(places):,} images are left out: {reasons}")
    return images


def _draw_questions(questions: list[Question], sample_id: str) -> tuple[Question, ...]:
    """Shuffle the questions of an image and return the first ones."""
    rng = random.Random(stable_id(f"{SEED}:{sample_id}"))  # noqa: S311  no secret
    rng.shuffle(questions)
    return tuple(questions[:MOST_PHRASES])


def _draw_sample(
    samples: Sequence[tuple[str, str, bool]], matches: ImageMatches | None, most: int
) -> set[int]:
    """Return the places of drawn samples (id, file name, whether it is read), of those with ground truth if any has.

    The sample does not depend on the order of the input.
    """
    ranking = sorted(
        (stable_id(f"{SEED}:{sample_id}"), place)
        for place, (sample_id, name, is_read) in enumerate(samples)
        if is_read and (matches is None or name in matches.images)
    )
    return {place for _, place in ranking[:most]}


def _any_questions(record: Record) -> list[Question]:
    questions: dict[str, Question] = {}
    for phrase, group in zip(
        record.phrases, link_phrases(record.sample.captions, record.phrases), strict=True
    ):
        questions.setdefault(phrase.text, Question(phrase=phrase, object_=str(group), query=None))
    return list(questions.values())


def _placed_questions(
    number: int, record: Record, image: TruthImage, categories: frozenset[str]
) -> list[Question]:
    """Return a question for each text of a record that the ground truth has a place for, with its first place."""
    size = {"height": record.height_px, "width": record.width_px, "captions": record.sample.captions}
    row = {"error": None, "file_name": record.sample.image.file_name, "annotations": (), **size}
    phrases = {phrase.text: phrase for phrase in reversed(record.phrases)}
    questions: dict[str, Question] = {}
    for query in queries_of(number, row, image, categories, record.phrases):
        if query.target is not None and query.phrase is not None:
            object_ = repr(query.target.boxes_xywh_px)
            questions.setdefault(
                query.phrase, Question(phrase=phrases[query.phrase], object_=object_, query=query)
            )
    return list(questions.values())
