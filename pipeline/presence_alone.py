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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from hashlib import sha256
from itertools import islice
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.config import RunConfig
from pipeline.domain import first_samples, with_presence
from pipeline.engines.inline import samples_in, set_up
from pipeline.graph import Graph, presence_basis
from pipeline.logistic import Floats, LogisticFit, fit_logistic, roc_area
from stages.contract.errors import ResumeError
from stages.contract.records import Phrase, Record, stable_id
from stages.explain.presence import FEATURES, ImageStatistics, Presence, Signals, features_of
from stages.explain.stage import ExplainStage
from stages.read import Reader, Shard
from stages.regions.groups import relation
from stages.regions.score import Calibration, calibration_of
from stages.shared.storage import AnyPath

PRESENCE: Final = "presence"
"""The key of run.json, and of `run` in dataset.json, for the calibration of presence that the run has fitted to its
first images: its SHA-256, null if it has fitted none. A resumed run keeps it."""

PRESENCE_IMAGES: Final = "presence_images"  # Their key for how many images the fit has looked at

MOST_IMAGES: Final = 300  # that are computed for a fit

SAMPLES_AN_IMAGE: Final = 10
"""Samples of the input for each image of a fit. One process computes these images while all others wait."""

LEAST_LOOK: Final = 60  # images that a fit looks at; some may be unreadable, or have no phrases

FEWEST_IMAGES: Final = 50
"""The fewest images of a fit. On 500 photographs of train the ROC area is 0.917 to 0.920 with 50 images and 0.922 with
300, and the estimated share of absent phrases is twice as uncertain with 50."""

FEWEST_PHRASES: Final = 100  # of captions; a fit to fewer says more about chance than about the model

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


def may_be(head: str, named: str) -> bool:
    """Return whether a thing that one head noun names may be called by another."""
    return relation(head, named) in ("same", "equal", "above")


def in_words(found: Calibration | str) -> str:
    """Return a sentence for the log about the answer of `fit_alone`."""
    if isinstance(found, str):
        return f"presence is not known: {found}"
    share = found.made_from["absent_share"]
    return f"presence was fitted to {found.fitted_to}, of whose phrases {share:.1%} seem to be absent"


def is_wanted(graph: Graph, config: RunConfig) -> bool:
    """Return whether a run fits presence to its first images: no calibration fits, and the settings leave that open."""
    known = isinstance(graph.model, ExplainStage) and graph.described is not None
    return known and config.regions.calibration == "auto" and graph.cuts.calibration is None


def most_to_fit(samples: int | None) -> int:
    """Return the most images that a fit looks at, given the number of samples of the input; None if not known."""
    return MOST_IMAGES if samples is None else max(LEAST_LOOK, min(MOST_IMAGES, samples // SAMPLES_AN_IMAGE))


def images_to_fit(reader: Reader, shards: Sequence[Shard]) -> int:
    """Return how many images a fit looks at: all of a small input."""
    return sum(1 for _ in first_samples(reader, shards, most_to_fit(samples_in(shards))))


def grown_in_words(graph: Graph, shards: Sequence[Shard], stored: Mapping[str, Any]) -> str | None:
    """Return a sentence for the log where a fit would look at twice as many images now as the stored one did."""
    looked = stored[PRESENCE_IMAGES]
    if 2 * looked > MOST_IMAGES or (images := images_to_fit(graph.reader, shards)) < 2 * looked:
        return None
    how = "unknown, as it was after a look at" if stored[PRESENCE] is None else "as it was fitted to"
    return f"presence stays {how} the first {looked} images: --fresh looks at {images}, and makes all rows again"


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


def too_few_in_words(images: int, phrases: int) -> str | None:
    """Return why presence cannot be fitted to so many images, whose captions have so many phrases; None if it can."""
    if images >= FEWEST_IMAGES and phrases >= FEWEST_PHRASES:
        return None
    return (
        f"{images} images with {phrases} phrases are too few to fit it to, {FEWEST_IMAGES} with {FEWEST_PHRASES} are "
        "needed"
    )


def fit_presence_alone(graph: Graph, signals: Sequence[Signals], said: Sequence[Sequence[bool]]) -> Calibration | str:
    """Fit presence to the signals of images; return why there is none otherwise.

    said: For each text of each image's signals, whether a caption of the image says it.
    """
    usable = [
        (each, labels)
        for each, labels in zip(signals, said, strict=True)
        if all(np.isfinite(part).all() for part in (each.embedding, each.cosines, each.local))
    ]
    if len(usable) < FEWEST_IMAGES:
        return f"{len(usable)} of {len(signals)} images have finite cosines, {FEWEST_IMAGES} are needed"
    signals, said = zip(*usable, strict=True)
    labels, images = np.concatenate(said), ImageStatistics.of(np.stack([each.embedding for each in signals]))
    features = features_of(images, signals)
    area = roc_area(features[:, FEATURES.index("deviation")])(labels.astype(float), (~labels).astype(float))
    if not area >= LEAST_AREA:
        return f"captions fit their images hardly better than those of others (ROC area {area:.2f})"
    fit, there = fit_noisy(features, labels)
    weight, mean, scale = fit.by_name(FEATURES).values()
    share, absent_share = 1.0 - float(there.mean()), 1.0 - float(there[labels].mean())
    presence = Presence(images=images, bias=fit.bias, weight=weight, mean=mean, scale=scale, absent_share=share)
    made_from = {"annotations": "none", "images": len(signals), "absent_share": round(absent_share, 3)}
    return Calibration(
        bias=0.0,
        mean={},
        scale={},
        weight={},
        made_with=presence_basis(graph.explain, graph.fingerprint),
        made_from={**made_from, "precisions": [graph.explains.precision]},
        presence=presence,
    )


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
    """Yield prepared records that have phrases with their heat maps and signals, by a stage that is not set up."""
    asked = (record for record in records if record.error is None and record.pixels is not None and record.phrases)
    with set_up([model]), collecting(model) as signals:
        while batch := list(islice(asked, model.forward_batch_size())):
            yield from zip(model.process(batch), signals, strict=True)
            signals.clear()


@contextmanager
def collecting(model: ExplainStage, foreign: Mapping[int, Sequence[str]] | None = None) -> Iterator[list[Signals]]:
    """Yield the list in which a stage collects signals within the block; see `ExplainStage`."""
    signals: list[Signals] = []
    model.signals = signals
    model.foreign = foreign or {}
    try:
        yield signals
    finally:
        model.signals = None
        model.foreign = {}


def others_for(record: Record, pool: Sequence[tuple[int, Phrase]], most: int) -> list[Phrase]:
    """Draw phrases of other images for a record, which is the same for the same record and pool of ids and phrases."""
    rng = random.Random(stable_id(record.sample.sample_id))  # noqa: S311  which phrases are drawn is no secret
    heads = list(dict.fromkeys(phrase.head for phrase in record.phrases))
    known = {word for caption in record.sample.captions for word in words_of(caption)} | set(heads)
    draw = partial(drawn, rng, pool, own=record.sample.id, known=known, taken=set(), named=heads)
    return [phrase for phrase in (draw() for _ in range(most)) if phrase is not None]
