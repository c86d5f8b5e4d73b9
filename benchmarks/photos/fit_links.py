"""Fit the weights that link phrases to the chains of Flickr30k Entities, and write stages/phrases/groups.json.

    python -m benchmarks.photos.fit_links TRAIN            # fit, tell the F1 on images left out, write
    python -m benchmarks.photos.fit_links DEV --measure    # only tell the F1 of the present weights

Each folder holds Sentences/*.txt and Annotations/*.xml, as train.entities.tar.gz and dev.entities.tar.gz do. Both work
on the phrases that a run finds in the captions, where the truth has them, too.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.photos.links import (
    Grouping,
    b_cubed,
    grouping_of,
    link_counts,
    pair_f1,
    read_chained_phrases,
)
from phrasebox.stages.contract.records import Phrase, Record, Sample
from phrasebox.stages.phrases import groups, wording
from phrasebox.stages.phrases.config import PhrasesConfig
from phrasebox.stages.phrases.stage import PhrasesStage
from phrasebox.stages.truth import read_truth

WEIGHTS = Path(groups.__file__).with_name("groups.json")
LEFT_OUT = 10
"""Every tenth image is not fitted to."""

RIDGE = 1.0
STEPS = 30

Image = tuple[tuple[str, ...], list[Phrase], list[str]]
"""Captions; the phrases that a run finds in them and the truth knows; the chain of each."""


def images_of(path: Path) -> list[Image]:
    """The captions of a truth and their known phrases."""
    truth = read_truth(path)
    stage = PhrasesStage(PhrasesConfig())
    stage.setup()
    wordings = []
    for name in truth.images:
        chained_phrases = read_chained_phrases(path, name)
        captions = tuple(dict.fromkeys(each.caption for each in chained_phrases))
        (record,) = stage.process([Record.start(Sample(sample_id=name, source="", captions=captions))])
        regions = [
            {
                "caption_index": each.caption_index,
                "span": (each.start, each.end),
                "phrase": each.text,
                "group": index,
            }
            for index, each in enumerate(record.phrases)
        ]
        links = grouping_of(0, {"captions": captions, "annotations": regions}, chained_phrases).links
        wordings.append(
            (captions, [record.phrases[index] for index, _ in links], [chain for _, chain in links])
        )
    return wordings


def fitted(images: Iterable[Image]) -> tuple[dict[str, float], int, int]:
    """The weights, the number of pairs, and how many of them name one thing: logistic regression by Newton's method."""
    features, same = [], []
    for captions, phrases, chains in images:
        wordings = wording.wordings(captions, phrases)
        for i, j in itertools.combinations(range(len(phrases)), 2):
            first, second = wordings[i], wordings[j]
            if first.caption != second.caption and not wording.contradict(first, second):
                features.append(groups.pair_features(first, second))
                same.append(chains[i] == chains[j])
    names = sorted({name for pair in features for name in pair})
    place = {name: column for column, name in enumerate(names)}
    table, truth = np.zeros((len(features), len(names))), np.array(same, np.float64)
    for row, pair in enumerate(features):
        for name, value in pair.items():
            table[row, place[name]] = value
    penalty = np.array([0.0 if name == "bias" else RIDGE for name in names])
    weights = np.zeros(len(names))
    for _ in range(STEPS):
        likely = 1 / (1 + np.exp(-table @ weights))
        slope = table.T @ (likely - truth) + penalty * weights
        bend = (table * (likely * (1 - likely))[:, None]).T @ table + np.diag(penalty)
        weights -= np.linalg.solve(bend, slope)
    return {name: round(float(weights[place[name]]), 3) for name in names}, len(same), sum(same)


def told(images: Sequence[Image]) -> str:
    """The figures of the weights in the package, for people."""
    made = [
        Grouping(
            image=number, links=tuple(zip(groups.link_phrases(captions, phrases), chains, strict=True))
        )
        for number, (captions, phrases, chains) in enumerate(images)
    ]
    totals = link_counts(made).sum(axis=0)
    both, linked, truly = totals[:3]
    return (
        f"{len(images):,} images: F1 of pairs {pair_f1(totals):.4f} (precision {both / linked:.3f}, recall "
        f"{both / truly:.3f}), B-cubed {b_cubed(totals):.4f}"
    )


def main() -> None:
    """Parse the command line, and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("entities", type=Path)
    parser.add_argument("--measure", action="store_true")
    arguments = parser.parse_args()
    images = images_of(arguments.entities)
    if arguments.measure:
        print(told(images))
        return
    fitted_images = [image for number, image in enumerate(images) if number % LEFT_OUT]
    weights, pairs, same = fitted(fitted_images)
    content = {
        "made_from": f"{arguments.entities.name}: {len(fitted_images):,} images of Flickr30k Entities, {pairs:,} pairs "
        f"of phrases of different captions that do not contradict each other, {same:,} of one thing",
        "made_by": f"python -m benchmarks.photos.fit_links: logistic regression, ridge penalty {RIDGE:g}, bias free",
        "weights": weights,
    }
    WEIGHTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(told([image for number, image in enumerate(images) if not number % LEFT_OUT]))


if __name__ == "__main__":
    main()
