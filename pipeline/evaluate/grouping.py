"""Are phrases linked as the truth links them? Pairs of phrases, and B-cubed.

A row's phrase is known to the truth if the caption has it there, too, as often and in the same order, if perhaps with
another spelling (`stages.shared.truth.mentions`). Two known phrases of one image are a pair, right if the dataset
and the truth link both or neither. Phrases without a region have no group in the dataset, and phrases that the truth
does not mark, or marks as nothing visible, have none in the truth: both are left out.

B-cubed (Bagga & Baldwin, LREC Workshop on Linguistic Coreference 1998) asks of each phrase how much of its group is of
its thing, and how much of its thing is in its group. Unlike pairs, it does not let one large group outweigh many small
ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from stages.shared.truth.ground_truth import ChainedPhrase, TruthImage
from stages.shared.truth.mentions import bare, spelled

COLUMNS: Final = ("linked_both", "linked", "linked_truly", "precision", "recall", "phrases")


@dataclass(frozen=True, slots=True, kw_only=True)
class Grouping:
    """The phrases of one image that the dataset and the truth both know.

    Attributes:
        image: Number of the image.
        links: Of each phrase, its group in the dataset and its chain in the truth.
    """

    image: int
    links: tuple[tuple[int, str], ...]

    def counts(self) -> tuple[float, ...]:
        """The numbers that the figures are made of, in the order of `COLUMNS`.

        Pairs that both link, that the dataset links, and that the truth links; the sums of B-cubed precision and recall
        over phrases, and how many phrases there are.
        """
        both = Counter(self.links)
        groups = Counter(group for group, _ in self.links)
        chains = Counter(chain for _, chain in self.links)
        precision = sum(count * count / groups[group] for (group, _), count in both.items())
        recall = sum(count * count / chains[chain] for (_, chain), count in both.items())
        return _pairs(both), _pairs(groups), _pairs(chains), precision, recall, float(len(self.links))


def _pairs(sizes: Mapping[Any, int]) -> float:
    return float(sum(size * (size - 1) // 2 for size in sizes.values()))


def grouping_of(number: int, row: Mapping[str, Any], image: TruthImage) -> Grouping:
    """The phrases of a row that the truth knows, with their groups; none where the row's phrases are not linked.

    Args:
        number: Number of the image.
        row: Of the dataset, with `captions` and `annotations`.
        image: The same image in the truth.
    """
    captions = tuple(row["captions"])
    bared = [bare(caption) for caption in captions]
    ours = {
        (region["caption_index"], tuple(region["span"])): (region["phrase"], region["group"])
        for region in row["annotations"]
        if region["group"] is not None
    }
    found = _by_place(((bared[caption], phrase), group) for (caption, _), (phrase, group) in sorted(ours.items()))
    true = _by_place((_place(each, captions, bared), each.chain) for each in image.chained)
    links = [
        link
        for place, groups in found.items()
        if len(groups) == len(true.get(place, ()))
        for link in zip(groups, true[place], strict=True)
    ]
    return Grouping(image=number, links=tuple((group, chain) for group, chain in links if chain))


def _place(each: ChainedPhrase, captions: tuple[str, ...], bared: Sequence[str]) -> tuple[str, str]:
    """A phrase of the truth, and the letters and digits of its caption, as the row spells both."""
    own = spelled(each.caption, captions)
    return next((bared[number] for number in own.numbers), ""), own.phrase(each.phrase)


def _by_place(entries: Iterable[tuple[Hashable, Any]]) -> dict[Hashable, list[Any]]:
    found: dict[Hashable, list[Any]] = {}
    for place, value in entries:
        found.setdefault(place, []).append(value)
    return found


def counts_of(groupings: Sequence[Grouping]) -> NDArray[np.float64]:
    """`Grouping.counts` of each image, (images, len(COLUMNS))."""
    return np.array([each.counts() for each in groupings], np.float64).reshape(-1, len(COLUMNS))


def pair_f1(totals: NDArray[np.float64]) -> float:
    """F1 of pairs from the sums of `counts_of` over images: 0 .. 1, NaN where nobody links anything."""
    both, linked, truly = totals[:3]
    return float(2 * both / (linked + truly)) if linked + truly else float("nan")


def b_cubed(totals: NDArray[np.float64]) -> float:
    """F1 of the mean B-cubed precision and recall: 0 .. 1, NaN without phrases."""
    precision, recall = totals[3:5]
    return float(2 * precision * recall / (precision + recall) / totals[5]) if totals[5] else float("nan")
