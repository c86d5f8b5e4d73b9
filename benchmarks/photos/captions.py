"""Captions that lie: how many are noticed, and how well scores tell them from true ones.

    python -m benchmarks.photos.captions /path/to/flickr8k [--photographs 300]

The folder holds dev.images.tar and dev.jsonl, also of photographs that are not Flickr8k's. `photo` sees
each with its own captions, with those of another one, and with its own with one noun exchanged.
docs/how-to/filter-captions.md has the figures.
"""

from __future__ import annotations

import argparse
import math
import random
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from phrasebox.pipeline.config.run_config import RunConfig
from phrasebox.pipeline.run.stage_calls import run_stages, set_up
from phrasebox.pipeline.run.steps import build_steps
from phrasebox.stages.contract.records import Phrase, Record
from phrasebox.stages.phrases.foreign import words_of
from phrasebox.stages.read import make_reader
from phrasebox.stages.regions.maker import RegionMaker
from phrasebox.stages.scores.foreign_captions import caption_log_ratios, estimate_absent_share
from phrasebox.stages.scores.logistic import roc_area

DRAWS = 20
DRAWN = 100  # photographs from which a run estimates the share
SHARES = (0.0, 0.2, 0.5, 1.0)
BATCH = 8

Triple = tuple[Record, Record, Record]
"""A photograph with its own captions, those of another one, and its own with one noun exchanged."""


def exchange_noun(record: Record, pool: Sequence[Phrase], rng: random.Random) -> tuple[str, ...]:
    """The captions of a record with the last word of one phrase of each replaced by a noun that none of them has."""
    words = {word for caption in record.sample.captions for word in words_of(caption)}
    captions = []
    for index, caption in enumerate(record.sample.captions):
        phrases = [phrase for phrase in record.phrases if phrase.caption_index == index]
        if phrases:
            phrase = rng.choice(phrases)
            nouns = [
                other.head for other in pool if other.plural == phrase.plural and other.head not in words
            ]
            start = caption.rfind(" ", phrase.start, phrase.end) + 1 or phrase.start
            captions.append(caption[:start] + rng.choice(nouns) + caption[phrase.end :])
    return tuple(captions)


def explained(source: Path, most: int) -> tuple[list[Triple], RegionMaker]:
    """The photographs after the model, and the maker of their regions."""
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(source / "dev.images.tar") as members:
            members.extractall(folder, filter="data")
        place = {"kind": "jsonl", "path": str(source / "dev.jsonl"), "image_root": folder, "limit": most}
        config = RunConfig.model_validate(
            {"input": place, "model": {"name": "photo"}, "output": {"path": folder}}
        )
        steps = build_steps(config)
        reader = make_reader(config.input)
        parser, prepare = steps.before
        rng = random.Random(0)
        with set_up((parser, prepare, steps.model_stage)):
            true = parser.process([Record.start(sample) for sample in reader.samples(reader.pieces())])
            pool = [phrase for record in true for phrase in record.phrases]
            foreign_records = [
                true[(place + rng.randrange(1, len(true))) % len(true)] for place in range(len(true))
            ]
            captions = [
                *(record.sample.captions for record in true),
                *(other.sample.captions for other in foreign_records),
                *(exchange_noun(record, pool, rng) for record in true),
            ]
            samples = [
                replace(true[place % len(true)].sample, captions=own) for place, own in enumerate(captions)
            ]
            records: list[Record] = []
            for start in range(0, len(samples), BATCH):
                batch = [Record.start(sample) for sample in samples[start : start + BATCH]]
                records += run_stages((parser, prepare, steps.model_stage), batch)
        count = len(true)
        return list(zip(records[:count], records[count : 2 * count], records[2 * count :], strict=True)), (
            steps.regions_stage.maker
        )


def mixed(triple: Triple, parts: Sequence[tuple[int, bool]]) -> tuple[Record, list[bool]]:
    """A record with some captions of a photograph, each by its index and whether it is foreign; of each phrase that."""
    true, foreign, _ = triple
    phrases: list[Phrase] = []
    labels: list[bool] = []
    sources = [(foreign if is_foreign else true, index, is_foreign) for index, is_foreign in parts]
    for number, (record, index, is_foreign) in enumerate(sources):
        caption_phrases = [phrase for phrase in record.phrases if phrase.caption_index == index]
        phrases += [replace(phrase, caption_index=number) for phrase in caption_phrases]
        labels += [is_foreign] * len(caption_phrases)
    maps = {heat_map.text: heat_map for record in triple[:2] for heat_map in record.heat_maps}
    return replace(
        true,
        sample=replace(
            true.sample, captions=tuple(record.sample.captions[index] for record, index, _ in sources)
        ),
        phrases=tuple(phrases),
        heat_maps=tuple(maps[text] for text in dict.fromkeys(phrase.text for phrase in phrases)),
        caption_presences=tuple(record.caption_presences[index] for record, index, _ in sources),
    ), labels


def records_of(images: Sequence[tuple[Record, list[bool]]]) -> list[Record]:
    """The records of labelled images."""
    return [record for record, _ in images]


def labels_of(images: Sequence[tuple[Record, list[bool]]]) -> NDArray[np.bool_]:
    """Whether each phrase of labelled images is foreign."""
    return np.array(list(chain.from_iterable(labels for _, labels in images)), np.bool_)


def share_of(records: Sequence[Record], fitted_share: float) -> float:
    """The share of absent phrases that a run would estimate."""
    return estimate_absent_share(
        [value for record in records for value in caption_log_ratios(record, fitted_share).values()]
    )


def foreign_figures(triples: Sequence[Triple], maker: RegionMaker, captions: int) -> Iterator[str]:
    """The estimates of the share, and what is listed as absent, with so many captions for each photograph."""
    for share in SHARES:
        draws = np.array(
            [foreign_draw(triples, maker, captions, share, random.Random(draw)) for draw in range(DRAWS)]
        )
        share_foreign, estimate, error, of_foreign, of_true = draws.T
        yield (
            f"{captions} caption(s), means of {DRAWS} draws: foreign {share_foreign.mean():.2f}, estimate "
            f"{estimate.mean():.2f}, largest error {np.abs(error).max():.2f}, absent of foreign "
            f"{of_foreign.mean():.3f} ({of_foreign.min():.3f} to {of_foreign.max():.3f}), of true {of_true.mean():.3f}"
        )


def foreign_draw(
    triples: Sequence[Triple], maker: RegionMaker, captions: int, share: float, rng: random.Random
) -> tuple[float, ...]:
    """The share of foreign phrases, its estimate and error, and what is absent of the foreign and of the true ones."""
    fitted_share = maker.calibration.absent_share if maker.calibration is not None else 0.5
    plans = [[(index, rng.random() < share) for index in rng.sample(range(5), captions)] for _ in triples]
    images = [mixed(triple, plan) for triple, plan in zip(triples, plans, strict=True)]
    first = rng.sample(images, min(DRAWN, len(images)))
    estimate = share_of(records_of(first), fitted_share)
    config = maker.config.model_copy(update={"absent_share": estimate})
    judge = RegionMaker(config, maker.calibration, maker.cutter.fitted_cut)
    presences = [
        presence
        for record in records_of(images)
        for presence in judge.presences_of(record, judge.groups_of(record))
    ]
    absent = np.array([config.is_absent(presence) for presence in presences])
    labels = labels_of(images)
    of_foreign, of_true = (absent[mask].mean() if mask.any() else math.nan for mask in (labels, ~labels))
    return labels.mean(), estimate, estimate - labels_of(first).mean(), of_foreign, of_true


def score_figures(triples: Sequence[Triple]) -> Iterator[str]:
    """ROC AUC of the caption's score, own captions against changed ones."""
    for number, name in ((1, "captions of other photographs"), (2, "one noun exchanged")):
        parts = [
            (score, place == 0)
            for t in triples
            for place in (0, number)
            for score in t[place].caption_scores
        ]
        scores, labels = (np.array(column, np.float64) for column in zip(*parts, strict=True))
        yield f"{name}: ROC AUC of caption_score {roc_area(scores)(labels, 1 - labels):.3f}"


def main() -> None:
    """Parse the command line, and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("flickr8k", type=Path)
    parser.add_argument("--photographs", type=int, default=300)
    arguments = parser.parse_args()
    triples, maker = explained(arguments.flickr8k, arguments.photographs)
    for line in (
        *foreign_figures(triples, maker, 1),
        *foreign_figures(triples, maker, 5),
        *score_figures(triples),
    ):
        print(line)


if __name__ == "__main__":
    main()
