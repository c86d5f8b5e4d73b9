"""Which phrases of an image a target of the ground truth names."""

from __future__ import annotations

from collections.abc import Sequence

from stages.contract.records import Phrase
from stages.shared.truth.ground_truth import TruthTarget
from stages.shared.truth.spelling import Spelled, spelled


def mentions_of(target: TruthTarget, captions: Sequence[str], phrases: Sequence[Phrase]) -> list[int]:
    """Numbers of the phrases of an image that answer a target.

    Args:
        target: What is looked for.
        captions: Of the image.
        phrases: Of its captions, also what no caption says.
    """
    if target.match == "category":
        return [n for n, phrase in enumerate(phrases) if target.phrase in (phrase.text, phrase.head)]
    if target.caption is None:
        own = Spelled(numbers=frozenset(range(len(captions))))
    else:
        own = spelled(target.caption, tuple(captions))
    near = [n for n, phrase in enumerate(phrases) if phrase.is_said and phrase.caption_index in own.numbers]
    wanted = own.phrase(target.phrase)
    named = [n for n in near if phrases[n].text == wanted]
    if not named and target.match == "expression" and near:
        return [min(near, key=lambda n: phrases[n].start)]
    return named
