"""Captions of a truth that spell a word otherwise than the dataset's."""

import pytest

from phrasebox.stages.truth.ground_truth import find_spelling

OTHER_CAPTIONS = ("Two dogs play .", "A man with a hat looks at the sea .")


@pytest.mark.parametrize(
    ("truth", "caption", "phrase", "expected"),
    [
        ("A gray dog runs at the beach .", "A grey dog runs at the beach.", "gray dog", "grey dog"),
        (
            "A blond-haired girl sits on the swing .",
            "a blonde haired girl sits on the swing",
            "blond-haired girl",
            "blonde haired girl",
        ),
        (
            "The dog and the cat play together on a large bed .",
            "The dog and the cat play togehter on a large bed .",
            "dog",
            "dog",
        ),
    ],
)
def test_a_word_that_is_spelled_otherwise_makes_no_other_caption(truth, caption, phrase, expected) -> None:
    spelling = find_spelling(truth, (*OTHER_CAPTIONS, caption))
    assert spelling.numbers == {2}
    assert spelling.phrase(phrase) == expected


def test_letters_and_digits_decide_first_and_every_equal_caption_is_it() -> None:
    """The second resembles the caption, and is another one."""
    spelling = find_spelling(
        "A grey dog runs at the beach .", ("a grey dog runs at the beach", "a gray dog runs at the beach")
    )
    assert spelling.numbers == {0}
    assert spelling.phrase("grey dog") == "grey dog"
    assert find_spelling("A dog .", ("a dog", "two dogs", "A dog")).numbers == {0, 2}


@pytest.mark.parametrize("captions", [(), OTHER_CAPTIONS, ("A red dog runs at the shore .",)])
def test_a_caption_that_says_something_else_is_none_of_them(captions: tuple[str, ...]) -> None:
    assert find_spelling("A black dog runs at the beach .", captions).numbers == frozenset()


def test_another_word_makes_another_caption_however_long_the_rest_is() -> None:
    rest = "dog runs along the beach beside a large group of children who play in the water with a yellow ball ."
    assert find_spelling(f"A red {rest}", (f"A blue {rest}",)).numbers == frozenset()
    assert find_spelling(f"A gray {rest}", (f"A grey {rest}",)).numbers == {0}
