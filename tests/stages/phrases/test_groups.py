"""Which phrases name the same thing."""

from importlib.resources import files

import pytest

from phrasebox.stages.contract.records import Phrase
from phrasebox.stages.phrases.groups import MOST_LINKED, link_phrases, pair_features
from phrasebox.stages.phrases.wording import wordings
from tests.build.files import read_json

PLURAL = {
    "dogs": "dog",
    "men": "man",
    "boys": "boy",
    "children": "child",
    "people": "people",
    "girls": "girl",
}


def phrases_of(*captions: str) -> tuple[list[str], list[Phrase]]:
    """Captions with [phrases] in brackets: the captions without them, and the phrases; the head is the last word."""
    texts = []
    phrases = []
    for index, marked in enumerate(captions):
        text = ""
        for part in marked.split("["):
            words, bracket, rest = part.partition("]")
            if bracket:
                phrase = words.removeprefix("a ").removeprefix("another ").removeprefix("the ")
                last = phrase.split()[-1]
                place = {"start": len(text), "end": len(text) + len(words)}
                head = PLURAL.get(last, last)
                phrases.append(
                    Phrase(text=phrase, caption_index=index, head=head, plural=last in PLURAL, **place)
                )
            text += words + rest
        texts.append(text)
    return texts, phrases


@pytest.mark.parametrize(
    ("captions", "expected"),
    [
        (["[a boy] runs", "[a young child] is running", "[a kid] in [a blue top] runs"], [0, 0, 0, 1]),
        (["[a boy] and [a girl] play", "[a girl] plays with [a boy]"], [0, 1, 1, 0]),
        (["[a man] and [a woman] sit", "[a lady] sits by [a guy]"], [0, 1, 1, 0]),
        (["[a red shirt] on [a man]", "[a man] in [a blue shirt]"], [0, 1, 1, 2]),
        (["[two dogs] run", "[a dog] runs after [another dog]", "[dogs] in [the grass]"], [0, 1, 2, 0, 3]),
        (["[a poodle] on [a lawn]", "[a dog] in [the grass]"], [0, 1, 0, 1]),
        (["[a cat] sleeps", "[a dog] sleeps"], [0, 1]),
        (["[a boy] and [another boy] play"], [0, 1]),
        (
            ["[a man] in [a red coat] sits. [the man] waves. [a red coat] lies by [another man]"],
            [0, 1, 0, 2, 3],
        ),
        (["[a dog] and [a cat] play. [the animal] barks at [the cat]"], [0, 1, 1, 1]),
        (["[a boy] sees [two men]. [the men] wave to [the boy]. [a girl] smiles"], [0, 1, 1, 0, 2]),
        (["[the nurse], [a young woman], smiles"], [0, 0]),
        (["[a lake] and [a river] by [the water]. [the lake] is blue"], [0, 1, 2, 0]),
        (["[a white horse] and [a brown horse] run. [the brown horse] wins"], [0, 1, 1]),
        (["[a man] on [a horse]. [a man] rides [a horse]. [a guy] on [a brown horse]"], [0, 1, 0, 1, 0, 1]),
        (["[a boy] and [a dog]. [the dog] barks", "[a dog] by [a kid]"], [0, 1, 1, 1, 0]),
        ([], []),
    ],
)
def test_things_of_captions(captions: list[str], expected: list[int]) -> None:
    assert list(link_phrases(*phrases_of(*captions))) == expected


def test_a_phrase_inside_another_of_its_head_names_its_thing() -> None:
    caption = "a dog in a field of flowers"
    phrases = [
        Phrase(text="dog", caption_index=0, start=0, end=5, head="dog"),
        Phrase(text=caption[2:], caption_index=0, start=0, end=len(caption), head="dog"),
        Phrase(text="field of flowers", caption_index=0, start=9, end=len(caption), head="field"),
    ]
    assert link_phrases([caption], phrases) == (0, 0, 1)
    puppy = Phrase(text="puppy", caption_index=1, start=0, end=5, head="puppy")
    assert link_phrases([caption, "puppy!"], [puppy, *phrases]) == (0, 0, 0, 1)


def test_beyond_many_phrases_each_names_a_thing_of_its_own() -> None:
    texts, phrases = phrases_of(*["[a boy] runs"] * (MOST_LINKED + 2))
    assert link_phrases(texts, phrases) == (*[0] * MOST_LINKED, 1, 2)


def test_every_feature_has_a_weight_and_every_weight_a_feature() -> None:
    """A weight that no feature asks for, or a feature without one, is a name that was changed on one side only."""
    weights = read_json(files("phrasebox.stages.phrases").joinpath("groups.json"))["weights"]
    texts, phrases = phrases_of(
        "[a small red boy] by [two old men] and [a dog] in [white water] near [xyzzy] with [a red hat] and [a cat]",
        "[a green girl] and [the old woman] and [a blue dog] in [a blue hat] near [three dogs] by [the red water wall]",
        "[the old woman] and [two boys] and [two boys] by [another dog] in [the green water] by [a blue animal]",
        "[the old man] and [another dog] by [a pond] on [a lawn] in [a red water] by [a red hat shop]",
        "[a white dog] sleeps by [a boy]",
    )
    all_wordings = wordings(texts, phrases)
    pairs = [(a, b) for a in all_wordings for b in all_wordings if a.caption != b.caption]
    assert {name for pair in pairs for name in pair_features(*pair)} == set(weights)
