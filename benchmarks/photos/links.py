"""Are phrases linked as the ground truth links them?

A row's phrase is known to the ground truth if both have it in the same caption (see `find_spelling`), as often and in
the same order. Two known phrases of one image are a pair, right if the dataset and the ground truth link both or
neither. Left out are phrases without a region, which have no group in the dataset, and phrases that the ground truth
does not mark or marks as nothing visible. B-cubed (Bagga & Baldwin, LREC Workshop on Linguistic Coreference 1998) has
two shares for each phrase: the part of its group that is of its thing, and the part of its thing that is in its group.
Unlike with pairs, one large group does not outweigh many small ones.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from phrasebox.pipeline.dataset.rows import Row
from phrasebox.pipeline.evaluate.estimates import Estimate, sum_estimate
from phrasebox.pipeline.evaluate.evaluation_set import EvaluationSet
from phrasebox.stages.contract.values import Floats
from phrasebox.stages.phrases.filters import normalise
from phrasebox.stages.truth.flickr30k import MARKED_PHRASE, NOT_VISUAL, SENTENCES, read_captions
from phrasebox.stages.truth.ground_truth import bare, find_spelling

COUNTS: Final = (
    "linked_both",
    "linked",
    "linked_truly",
    "precision",
    "recall",
    "phrases",
)  # columns of `link_counts`


class ChainedPhrase(NamedTuple):
    """A normalised phrase of a caption, with or without a box.

    Phrases of an image with the same `chain` name the same objects; "" is the chain of phrases for nothing visible.
    """

    caption: str
    phrase: str
    chain: str


def read_chained_phrases(truth: Path, file_name: str) -> list[ChainedPhrase]:
    """Return all phrases of an image in Flickr30k Entities, in the order of its captions."""
    return [
        ChainedPhrase(caption, phrase, "" if match["chain"] == NOT_VISUAL else match["chain"])
        for caption, line in read_captions(truth / SENTENCES / f"{Path(file_name).stem}.txt")
        for match in MARKED_PHRASE.finditer(line)
        if (phrase := normalise(match["words"]))
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grouping:
    """The phrases of an image that the dataset and the ground truth share: (group, chain) of each phrase."""

    image: int
    links: tuple[tuple[int, str], ...]


def grouping_of(number: int, row: Row, chained_phrases: Sequence[ChainedPhrase]) -> Grouping:
    """Return the phrases of a row (`captions`, `annotations`) that the ground truth knows; none if it links none."""
    captions = tuple(row["captions"])
    bare_captions = [bare(caption) for caption in captions]
    groups_by_phrase: dict[tuple[str, str], dict[tuple[int, ...], int]] = defaultdict(dict)
    for region in sorted(row["annotations"], key=lambda region: (region["caption_index"], *region["span"])):
        if region["group"] is not None:
            place = (region["caption_index"], *region["span"])
            groups_by_phrase[bare_captions[region["caption_index"]], region["phrase"]][place] = region[
                "group"
            ]
    chains_by_phrase: dict[tuple[str, str], list[str]] = defaultdict(list)
    for mark in chained_phrases:
        spelling = find_spelling(mark.caption, captions)
        caption = next((bare_captions[number] for number in spelling.numbers), "")
        chains_by_phrase[caption, spelling.phrase(mark.phrase)].append(mark.chain)
    links = [
        link
        for key, groups in groups_by_phrase.items()
        if len(groups) == len(chains_by_phrase[key])
        for link in zip(groups.values(), chains_by_phrase[key], strict=True)
    ]
    return Grouping(image=number, links=tuple((group, chain) for group, chain in links if chain))


def link_counts(groupings: Sequence[Grouping]) -> Floats:
    """Return the numbers of `COUNTS` for each image, (images, len(COUNTS)).

    Pairs that both link, that the dataset links, and that the ground truth links; the sums of
    B-cubed precision and recall over phrases, and the number of phrases.
    """
    rows = []
    for grouping in groupings:
        links = Counter(grouping.links)
        groups = Counter(group for group, _ in grouping.links)
        chains = Counter(chain for _, chain in grouping.links)
        precision = sum(count * count / groups[group] for (group, _), count in links.items())
        recall = sum(count * count / chains[chain] for (_, chain), count in links.items())
        pairs = [
            sum(size * (size - 1) // 2 for size in sizes.values()) for sizes in (links, groups, chains)
        ]
        rows.append([*pairs, precision, recall, len(grouping.links)])
    return np.array(rows, np.float64).reshape(-1, len(COUNTS))


def pair_f1(totals: Floats) -> float:
    """Return the F1 of pairs from the sums of `link_counts` over images: 0 .. 1, NaN without any link."""
    shared_pairs, pairs, true_pairs = totals[:3]
    return float(2 * shared_pairs / (pairs + true_pairs)) if pairs + true_pairs else float("nan")


def b_cubed(totals: Floats) -> float:
    """Return the F1 of the mean B-cubed precision and recall: 0 .. 1, NaN without phrases."""
    precision, recall = totals[3:5]
    return float(2 * precision * recall / (precision + recall) / totals[5]) if totals[5] else float("nan")


def link_estimates(evaluation_set: EvaluationSet, truth: Path) -> list[Estimate]:
    """Return F1 of pairs and of B-cubed of a dataset, with intervals over images; `truth` is Flickr30k Entities."""
    groupings = [
        grouping_of(row["id"], row, read_chained_phrases(truth, evaluation_set.image_of(row).file_name))
        for row in evaluation_set.rows()
    ]
    counts = link_counts(groupings)
    images = np.array([grouping.image for grouping in groupings], np.int64)
    return [sum_estimate(figure, counts, images) for figure in (pair_f1, b_cubed)]
