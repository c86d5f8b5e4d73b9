"""Presence without annotations, fitted to captioned images alone: to those of a dataset, or to the first of a run.

A phrase of an image's captions is taken as there, and a phrase of another image as absent. Both are wrong at times:
captions lie, and a phrase of another image may fit. So the fit is not of these labels but of what they are noisy copies
of. With y whether a phrase is there, and s whether the captions say it,

    P(y | features)   a logistic regression
    P(s | y)          two rates, the same for all phrases

and expectation maximisation finds the most likely weights and rates together (learning from noisy labels with unknown
rates: Lawrence & Schoelkopf, ICML 2001; Natarajan and others, NIPS 2013, whose forward correction has the same
likelihood with known rates). A phrase of another image is left out if it shares a word or its head noun with the
captions, or if its head may name one of their things ("person", where they say "man").
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from itertools import islice
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.config import RunConfig
from pipeline.domain import first_samples, with_presence
from pipeline.engines.inline import run_stages, set_up
from pipeline.graph import Graph, presence_basis
from pipeline.logistic import Floats, LogisticFit, fit_logistic, roc_area
from stages.contract.errors import ResumeError
from stages.contract.records import Phrase, Record, stable_id
from stages.explain.presence import FEATURES, ImageStatistics, Presence, Signals, features_of
from stages.explain.stage import ExplainStage
from stages.read import Shard
from stages.regions.groups import relation
from stages.regions.score import Calibration, calibration_of
from stages.shared.storage import AnyPath

PRESENCE: Final = "presence"
"""The key of run.json, and of `run` in dataset.json, for the calibration of presence that the run has fitted to its
first images: its SHA-256, null if it has fitted none. A resumed run keeps it."""

MOST_IMAGES: Final = 300  # that are computed for a fit

FEWEST_IMAGES: Final = 50
"""The fewest images of a fit. On 500 photographs of train the ROC area is 0.917 to 0.920 with 50 images and 0.922 with
300, and the estimated share of absent phrases is twice as uncertain with 50."""

FEWEST_PHRASES: Final = 100  # of captions; a fit to fewer says more about chance than about the model

MOST_PHRASES: Final = 16  # of an image that count, beside as many of others: captions may have a hundred

LEAST_AREA: Final = 0.6
"""The least ROC area with which `deviation` has to separate phrases of captions from those of other images. A model
whose weights were not trained has 0.5. It is that of one feature, because the others know texts that are said often."""

STEPS: Final = 300  # most steps of the expectation maximisation

TOLERANCE: Final = 1e-5  # change of the rates below which it ends

_TRIES: Final = 200  # draws for one phrase; an image that shares words with nearly all others gets fewer phrases

_WORD: Final = re.compile(r"\w+")


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case."""
    return _WORD.findall(text.casefold())


def drawn(
    rng: random.Random,
    pool: Sequence[tuple[int, Phrase]],
    *,
    own: int,
    known: set[str],
    taken: set[str],
    named: Sequence[str] = (),
) -> Phrase | None:
    """Draw a phrase from a pool of images and phrases, and add it to `taken`; None if none is found.

    It is of another image than `own`, was not taken yet, has no word of `known`, and its head may not name one of the
    things whose heads are `named`.
    """
    for _ in range(_TRIES):
        image, phrase = pool[rng.randrange(len(pool))]
        if image == own or phrase.text in taken or not known.isdisjoint({*words_of(phrase.text), phrase.head}):
            continue
        if not any(may_be(phrase.head, head) for head in named):
            taken.add(phrase.text)
            return phrase
    return None


def _unheard(*_: Any) -> None:
    """Hear of progress, and say nothing."""


def may_be(head: str, named: str) -> bool:
    """Return whether a thing that one head noun names may be called by another."""
    return relation(head, named) in ("same", "equal", "above")


@dataclass(frozen=True, slots=True, kw_only=True)
class Alone:
    """A fit of presence to captioned images, or why there is none."""

    why: str = ""  # there is none, in words that go on with "the first images"; empty if there is a fit
    calibration: Calibration | None = None
    absent_share: float = 0.0  # estimated share of phrases of the captions that are not in their images
    area: float = 0.0  # ROC area of the fit between phrases of captions and those of other images

    def in_words(self) -> str:
        """Return a sentence for the log."""
        if self.calibration is None:
            return f"presence is not known: {self.why} (phrasebox calibrate fits it to other images)"
        return (
            f"presence was fitted to {self.calibration.fitted_to}: {self.absent_share:.1%} of the phrases of these "
            f"captions seem to be absent (regions.absent_share)"
        )


def is_wanted(graph: Graph, config: RunConfig) -> bool:
    """Return whether a run fits presence to its first images: no calibration fits, and the settings leave that open."""
    known = isinstance(graph.model, ExplainStage) and graph.described is not None
    return known and config.regions.calibration == "auto" and graph.cuts.calibration is None


def kept_presence(graph: Graph, path: AnyPath, digest: str | None) -> Graph:
    """Return the graph with the presence that its run has fitted before; None for a run that has fitted none.

    Raise ResumeError if the file is missing or another, because rows that are there depend on it.
    """
    if digest is None:
        return graph
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        text = b""
    if sha256(text).hexdigest() != digest:
        raise ResumeError(f"{path} is not the file that its rows were made with: put it back, or run with --fresh")
    return with_presence(graph, calibration_of(text.decode(), path))


def look_at_first(graph: Graph, shards: Sequence[Shard]) -> Alone:
    """Fit presence to the first images of an input, see `first_samples`. Raise PhraseboxError as the stages do."""
    records = [Record.start(sample) for sample in first_samples(graph.reader, shards, MOST_IMAGES)]
    return fit_alone(graph, records)


def fit_alone(graph: Graph, records: Sequence[Record], advance: Callable[[int], None] = lambda _: None) -> Alone:
    """Fit presence to the captions of images: records of samples alone.

    The model is loaded in this process and let go. Raise PhraseboxError as the stages do.

    advance: Called with the number of images that have been computed.
    """
    model = graph.explains.judging(None).without_importance()
    with set_up(graph.before):
        parsed = run_stages(graph.before[:1], list(records), _unheard)
        captioned = [record for record in parsed if record.error is None and record.phrases]
        own = {record.sample.id: _some(record) for record in captioned}
        if why := _too_few(len(own), sum(map(len, own.values()))):
            return Alone(why=why)
        others = phrases_of_others(captioned, own)
        asked = (replace(one, phrases=(*own[one.sample.id], *others[one.sample.id])) for one in captioned)
        prepared = (run_stages(graph.before[1:], [one], _unheard)[0] for one in asked)
        signals: list[Signals] = []
        said: list[bool] = []
        for number, (record, found) in enumerate(signals_of(model, prepared), 1):
            if all(np.isfinite(part).all() for part in (found.embedding, found.cosines, found.local)):
                signals.append(found)
                said += [place < len(own[record.sample.id]) for place in range(len(found.cosines))]
            advance(number)
    labels = np.array(said, np.bool_)
    why = _too_few(len(signals), int(labels.sum()))
    if why or labels.all():
        return Alone(why=why or "no phrase of another image differs enough from their captions")
    images = ImageStatistics.of(np.stack([each.embedding for each in signals]))
    features = features_of(images, signals)
    area = roc_area(features[:, FEATURES.index("deviation")], labels.astype(float), (~labels).astype(float))
    if not area >= LEAST_AREA:
        return Alone(why=f"their captions fit them hardly better than those of others do (ROC area {area:.2f})")
    fit, there = fit_noisy(features, labels)
    weight, mean, scale = fit.by_name(FEATURES).values()
    presence = Presence(
        images=images, bias=fit.bias, weight=weight, mean=mean, scale=scale, absent_share=1.0 - float(there.mean())
    )
    calibration = Calibration(
        bias=0.0,
        mean={},
        scale={},
        weight={},
        made_with=presence_basis(graph.explain, graph.fingerprint),
        made_from={"annotations": "none", "images": len(signals), "phrases": len(labels)},
        presence=presence.plain(),
    )
    return Alone(calibration=calibration, absent_share=1.0 - float(there[labels].mean()), area=area)


def fit_noisy(features: Floats, said: NDArray[np.bool_]) -> tuple[LogisticFit, Floats]:
    """Fit to features (n, k) and whether captions say the phrase (n,), which are noisy signs of whether it is there.

    Returns:
        The regression of "it is there", and the probability of that for each (n,), given the captions, too.
    """
    there = said.astype(np.float64)
    said_if = np.array([0.05, 0.95])  # the rates of "said" among absent phrases and among those that are there
    fit = fit_logistic(features, there)
    for _ in range(STEPS):
        likely = fit.probability(features)
        rates = np.where(said[:, None], said_if, 1.0 - said_if) * np.column_stack([1.0 - likely, likely])
        there = rates[:, 1] / rates.sum(axis=1)
        before, weights = said_if, np.column_stack([1.0 - there, there])
        said_if = (weights * said[:, None]).sum(axis=0) / weights.sum(axis=0)
        fit = fit_logistic(features, there)
        if np.abs(said_if - before).max() < TOLERANCE:
            break
    return fit, there


def signals_of(model: ExplainStage, records: Iterable[Record]) -> Iterator[tuple[Record, Signals]]:
    """Yield prepared records that have phrases with the signals of these, by a stage that is not set up."""
    asked = (record for record in records if record.error is None and record.pixels is not None and record.phrases)
    with set_up([model]):
        while batch := list(islice(asked, model.batch_rows())):
            yield from zip(batch, model.signals(batch), strict=True)


def phrases_of_others(records: Sequence[Record], own: Mapping[int, Sequence[Phrase]]) -> dict[int, list[Phrase]]:
    """Return phrases of other images for each record, as many as its own of `own`, by the sample's id.

    The same records in the same order give the same phrases.
    """
    pool = [(number, phrase) for number, phrases in own.items() for phrase in phrases]
    found = {}
    for record in records:
        number = record.sample.id
        heads = list(dict.fromkeys(phrase.head for phrase in record.phrases))
        known = {word for caption in record.sample.captions for word in words_of(caption)} | set(heads)
        draw = partial(drawn, _random(record), pool, own=number, known=known, taken=set(), named=heads)
        found[number] = [phrase for phrase in (draw() for _ in own[number]) if phrase is not None]
    return found


def _some(record: Record) -> list[Phrase]:
    """The phrases of a record with different texts, at most `MOST_PHRASES` that are drawn from them."""
    own = list({phrase.text: phrase for phrase in reversed(record.phrases)}.values())[::-1]
    return own if len(own) <= MOST_PHRASES else _random(record).sample(own, MOST_PHRASES)


def _random(record: Record) -> random.Random:
    return random.Random(stable_id(record.sample.sample_id))  # noqa: S311  which phrases are drawn is no secret


def _too_few(images: int, phrases: int) -> str:
    if images < FEWEST_IMAGES:
        return f"{images} images with phrases are too few to fit it to, {FEWEST_IMAGES} are needed"
    return (
        f"{phrases} phrases are too few to fit it to, {FEWEST_PHRASES} are needed" if phrases < FEWEST_PHRASES else ""
    )
