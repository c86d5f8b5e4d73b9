"""The images, phrases and places that explainers are compared on: a sample, the same for all of them."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from rich.console import Console

from pipeline.config import RunConfig
from pipeline.engines.inline import set_up
from pipeline.evaluate.evaluation_set import draw_places, prepare_stage
from pipeline.evaluate.matching import Query, match_images, queries_of
from pipeline.terminal import progress_bar
from stages.contract.errors import InputError
from stages.contract.records import Phrase, Record, stable_id
from stages.phrases.stage import PhrasesStage
from stages.read import make_reader, plan_shards
from stages.regions.groups import linked
from stages.shared.model.config import InputSpec
from stages.truth import read_truth
from stages.truth.ground_truth import TruthImage

AT_ONCE = 32  # images that are read together


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A phrase of the captions that is asked of an image, and its place without a heat map, if there is ground truth.

    Phrases of an image with the same `thing` name the same.
    """

    phrase: Phrase
    thing: str
    query: Query | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedImage:
    """An image with its questions, at least one, in random order, and its number in the sample, from 0.

    `source` is the record as it was read, with the phrases of the questions; `record` has the pixels of the model's
    own input, too.
    """

    number: int
    source: Record
    record: Record
    questions: tuple[Question, ...]

    @property
    def size_hw(self) -> tuple[int, int]:
        """Pixels of the image."""
        return self.record.height_px, self.record.width_px

    def asking(self, *phrases: Phrase) -> ComparedImage:
        """Return the same image, asked for other phrases."""
        return replace(self, source=replace(self.source, phrases=phrases), record=replace(self.record, phrases=phrases))


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """The size of a comparison: images, phrases of each, images of insertion and deletion; seed of all chance."""

    most: int
    phrases: int
    faithful: int
    seed: int


def compared_images(
    config: RunConfig, spec: InputSpec, truth_path: Path | None, effort: Effort, console: Console, *, resized: bool
) -> list[ComparedImage]:
    """Read the sample, with phrases, places and pixels of the form of the model's images.

    With ground truth, questions are phrases of the captions whose place is known; otherwise any phrases.

    Raise InputError if the input or the ground truth cannot be read, if they do not fit together, or if there is
    nothing to ask.
    """
    truth = None if truth_path is None else read_truth(truth_path)
    reader = make_reader(config.input)
    shards = plan_shards(reader)
    named = [(sample.sample_id, sample.image.file_name, sample.error is None) for sample in reader.samples(shards)]
    matched = None if truth is None else match_images([name for _, name, is_read in named if is_read], truth)
    candidates = (
        (place, sample_id)
        for place, (sample_id, name, is_read) in enumerate(named)
        if is_read and (matched is None or name in matched.images)
    )
    places = set(draw_places(candidates, effort.most, effort.seed))
    records = (Record.start(sample) for place, sample in enumerate(reader.samples(shards)) if place in places)

    def questions_of(record: Record) -> list[Question]:
        if record.error is not None:
            return []
        if truth is None or matched is None:
            return _any_questions(record)
        image = matched.images[record.sample.image.file_name]
        image = image.resize((record.height_px, record.width_px)) if resized else image
        return _placed_questions(len(found), record, image, truth.categories)

    found: list[ComparedImage] = []
    failed = done = 0
    stages = PhrasesStage(config.phrases), prepare_stage(config, spec)
    with set_up(stages), progress_bar(console, "images", len(places)) as advance:
        while batch := list(islice(records, AT_ONCE)):
            sources = stages[0].process(batch)
            for source, record in zip(sources, stages[1].process(sources), strict=True):
                failed += record.error is not None
                questions = questions_of(record)
                if questions:
                    order = random.Random(stable_id(f"{effort.seed}:{record.sample.sample_id}"))  # noqa: S311  no secret
                    order.shuffle(questions)
                    own = tuple(questions[: effort.phrases])
                    image = ComparedImage(number=len(found), source=source, record=record, questions=own)
                    found.append(image.asking(*(question.phrase for question in own)))
            done += len(batch)
            advance(done)
    if not found:
        kind = "a phrase with a known place" if truth is not None else "a phrase"
        raise InputError(f"none of the {len(places)} images can be opened and has {kind}")
    if len(found) < len(places):
        console.print(
            f"{len(places) - len(found):,} of {len(places):,} images are left out: {failed:,} cannot be opened, the "
            "others name nothing that can be asked for",
            soft_wrap=True,
        )
    return found


def _any_questions(record: Record) -> list[Question]:
    first: dict[str, Question] = {}
    for phrase, group in zip(record.phrases, linked(record.sample.captions, record.phrases), strict=True):
        first.setdefault(phrase.text, Question(phrase=phrase, thing=str(group), query=None))
    return list(first.values())


def _placed_questions(number: int, record: Record, image: TruthImage, categories: frozenset[str]) -> list[Question]:
    """Each text of a record whose place the ground truth knows, once, with the first of its places."""
    size = {"height": record.height_px, "width": record.width_px, "captions": record.sample.captions}
    row = {"error": None, "file_name": record.sample.image.file_name, "annotations": (), **size}
    phrases = {phrase.text: phrase for phrase in reversed(record.phrases)}
    found: dict[str, Question] = {}
    for query in queries_of(number, row, image, categories, record.phrases):
        if query.target is not None and query.phrase is not None:
            thing = repr(query.target.boxes_xywh_px)
            found.setdefault(query.phrase, Question(phrase=phrases[query.phrase], thing=thing, query=query))
    return list(found.values())
