"""Which phrases stay where an image has too many."""

from dataclasses import replace

import pytest

from stages.contract.records import Record
from stages.regions.limit import limit_phrases
from tests.stages.regions.test_stage import heat_map, phrase, record, spots

CAPTION = "a dog and a cat. the brown dog sees a bird."


def crowded(limit: int, *, has_presence: bool = True) -> Record:
    """A dog that two texts name, a cat and a bird; the brown dog is the likeliest, and the bird the least likely."""
    values = {"dog": 0.8, "brown dog": 0.9, "cat": 0.5, "bird": 0.1}
    maps = [
        replace(
            heat_map(spots((4, 4), r1c2=1.0), text, 1 - value if has_presence else value),
            presence=value if has_presence else None,
        )
        for text, value in values.items()
    ]
    phrases = [
        phrase("dog", start=2),
        phrase("cat", start=12),
        replace(phrase("brown dog", start=17), head="dog"),
        phrase("bird", start=36),
    ]
    whole = record(*maps, phrases=tuple(phrases))
    return replace(whole, sample=replace(whole.sample, captions=(CAPTION,)), phrase_limit=limit)


@pytest.mark.parametrize("has_presence", [True, False])
@pytest.mark.parametrize(
    ("limit", "texts"),
    [
        (0, ["dog", "cat", "brown dog", "bird"]),
        (4, ["dog", "cat", "brown dog", "bird"]),
        (3, ["cat", "brown dog", "bird"]),
        (2, ["cat", "brown dog"]),
        (1, ["brown dog"]),
    ],
)
def test_the_likeliest_text_of_every_thing_stays_first(limit: int, texts: list[str], has_presence: bool) -> None:
    limited = limit_phrases(crowded(limit, has_presence=has_presence))
    assert [phrase.text for phrase in limited.phrases] == texts
    assert {heat_map.text for heat_map in limited.heat_maps} == set(texts)
    assert limited.dropped_phrases == 4 - len(texts)
