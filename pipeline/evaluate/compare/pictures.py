"""Which images, phrases and places explainers are compared on: a sample, the same for all of them."""

from __future__ import annotations

import heapq
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from rich.console import Console

from pipeline.config import RunConfig
from pipeline.evaluate.matching import ImageMatches, Query, match_images, queries_of
from pipeline.terminal import progress_bar
from stages.contract.errors import InputError
from stages.contract.records import Phrase, Record, Sample, stable_id
from stages.explain.config import ExplainerConfig
from stages.phrases.stage import PhrasesStage
from stages.prepare import PrepareConfig, PrepareStage
from stages.read import Reader, make_reader, plan_shards
from stages.regions.groups import linked
from stages.shared.model.config import InputSpec
from stages.shared.truth import read_truth
from stages.shared.truth.ground_truth import GroundTruth

AT_ONCE = 32
"""Images that are read together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A phrase that is asked of an image.

    Attributes:
        phrase: As the captions have it.
        thing: Phrases of an image with the same thing name the same; "" where nobody knows.
        query: The phrase with its place, without a heat map; None without truth.
    """

    phrase: Phrase
    thing: str
    query: Query | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedImage:
    """An image with its questions.

    Attributes:
        number: In the sample, from 0.
        source: The record as it was read, with the phrases of the questions.
        record: The same with the pixels of the model's own input.
        questions: At least one, in random order.
    """

    number: int
    source: Record
    record: Record
    questions: tuple[Question, ...]

    @property
    def size_hw(self) -> tuple[int, int]:
        """Pixels of the image."""
        return self.record.height_px, self.record.width_px


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the sample is drawn. most: images; phrases: questions of each; seed: another one draws another sample."""

    most: int
    phrases: int
    seed: int


def compared_images(
    config: RunConfig, spec: InputSpec, truth_path: Path | None, sampling: Sampling, console: Console, *, resized: bool
) -> list[ComparedImage]:
    """Read the sample, with phrases, places and pixels.

    With truth, questions are phrases of the captions whose place is known; without it, any phrases.

    Args:
        config: The run whose input and settings of phrases and images are used.
        spec: What the model's images look like.
        truth_path: A file or folder that `pipeline.evaluate.read_truth` reads, or None.
        sampling: How many.
        console: Shows the progress.
        resized: Whether the images were resized after the truth was drawn.

    Raises:
        InputError: The input or the truth cannot be read, they do not fit together, or there is nothing to ask.
    """
    truth = None if truth_path is None else read_truth(truth_path)
    reader = make_reader(config.input)
    matched = None if truth is None else match_images([each.image.file_name for each in _samples(reader)], truth)
    chosen = _chosen(reader, matched, sampling)
    stages = (PhrasesStage(config.phrases), prepare_stage(config, ExplainerConfig(kind=""), spec))
    for stage in stages:
        stage.setup()
    found: list[ComparedImage] = []
    failed = 0
    with progress_bar(console, "images", len(chosen)) as advance:
        for start in range(0, len(chosen), AT_ONCE):
            sources = stages[0].process([Record.start(sample) for sample in chosen[start : start + AT_ONCE]])
            for source, record in zip(sources, stages[1].process(sources), strict=True):
                failed += record.error is not None
                if record.error is None:
                    questions = _questions(len(found), record, truth, matched, sampling, resized=resized)
                    if questions:
                        asked = tuple(question.phrase for question in questions)
                        found.append(
                            ComparedImage(
                                number=len(found),
                                source=replace(source, phrases=asked),
                                record=replace(record, phrases=asked),
                                questions=questions,
                            )
                        )
            advance(start + len(sources))
    for stage in stages:
        stage.teardown()
    if not found:
        what = "a phrase with a known place" if truth is not None else "a phrase"
        raise InputError(f"none of the {len(chosen)} images can be opened and has {what}")
    if len(found) < len(chosen):
        console.print(
            f"{len(chosen) - len(found):,} of {len(chosen):,} images are left out: {failed:,} cannot be opened, the "
            "others name nothing that can be asked for",
            soft_wrap=True,
        )
    return found


def prepare_stage(config: RunConfig, explainer: ExplainerConfig, spec: InputSpec) -> PrepareStage:
    """What resizes the images for an explainer."""
    return PrepareStage(PrepareConfig(**config.images.model_dump(), **explainer.canvas(spec)))


def _chosen(reader: Reader, matched: ImageMatches | None, sampling: Sampling) -> list[Sample]:
    """The sample in the order of the input: it does not depend on where the input was cut."""
    candidates = (
        (stable_id(f"{sampling.seed}:{sample.sample_id}"), place, sample)
        for place, sample in enumerate(reader.samples(plan_shards(reader)))
        if sample.error is None and (matched is None or sample.image.file_name in matched.images)
    )
    drawn = heapq.nsmallest(sampling.most, candidates, key=lambda each: each[:2])
    return [sample for _, _, sample in sorted(drawn, key=lambda each: each[1])]


def _questions(
    number: int,
    record: Record,
    truth: GroundTruth | None,
    matched: ImageMatches | None,
    sampling: Sampling,
    *,
    resized: bool,
) -> tuple[Question, ...]:
    """Up to `sampling.phrases` phrases of a record, each text once."""
    groups = linked(record.sample.captions, record.phrases)
    first: dict[str, tuple[Phrase, int]] = {}
    for phrase, group in zip(record.phrases, groups, strict=True):
        first.setdefault(phrase.text, (phrase, group))
    if truth is None or matched is None:
        known = [Question(phrase=phrase, thing=str(group), query=None) for phrase, group in first.values()]
    else:
        queries = _queries(number, record, truth, matched, resized=resized)
        known = [
            Question(phrase=first[text][0], thing=repr(query.target and query.target.boxes_xywh_px), query=query)
            for text, query in queries.items()
        ]
    order = random.Random(stable_id(f"{sampling.seed}:{record.sample.sample_id}"))  # noqa: S311  a sample is no secret
    order.shuffle(known)
    return tuple(islice(known, sampling.phrases))


def _queries(
    number: int, record: Record, truth: GroundTruth, matched: ImageMatches, *, resized: bool
) -> Mapping[str, Query]:
    """Text -> the first place that the truth knows of it."""
    name = record.sample.image.file_name
    row = {
        "error": None,
        "file_name": name,
        "height": record.height_px,
        "width": record.width_px,
        "captions": record.sample.captions,
        "annotations": (),
    }
    image = matched.images[name]
    if resized:
        image = image.scaled((record.height_px, record.width_px))
    found: dict[str, Query] = {}
    queries: Sequence[Query] = queries_of(number, row, image, truth.categories, record.phrases)
    for query in queries:
        if query.target is not None and query.phrase is not None:
            found.setdefault(query.phrase, query)
    return found
