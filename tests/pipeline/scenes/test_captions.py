"""Captions: spans are the words, and a caption is unambiguous and true."""

from itertools import pairwise

import numpy as np
import pytest

from pipeline.scenes.captions import NUMBER_WORDS, PLURALS, CaptionObject, Mention, write_caption
from pipeline.scenes.scene import Scene, SceneObject, make_scene


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [make_scene(11, k, side_px=64, max_objects=6) for k in range(400)]


def is_named(thing: SceneObject, mention: Mention) -> bool:
    return thing.kind == mention.kind and mention.colour in (None, thing.colour)


def test_spans_are_the_words_of_the_mention(scenes: list[Scene]) -> None:
    for caption in (scene.caption for scene in scenes):
        assert "{" not in caption.text
        end = 0
        for mention in caption.mentions:
            assert end <= mention.start < mention.end <= len(caption.text)
            end = mention.end
            words = caption.text[mention.start : mention.end].lower().split()
            assert words[-1] in {mention.kind, PLURALS[mention.kind]}
            assert mention.colour is None or mention.colour in words


def test_a_caption_denotes_exactly_what_it_names(scenes: list[Scene]) -> None:
    for scene in scenes:
        caption = scene.caption
        named = [k for mention in caption.mentions for k in mention.objects]
        assert len(named) == len(set(named)) > 0
        for mention in caption.mentions:
            fitting = [k for k, thing in enumerate(scene.objects) if is_named(thing, mention)]
            assert sorted(mention.objects) == fitting
            words = caption.text[mention.start : mention.end].lower().split()
            numbers = [number for number, word in NUMBER_WORDS.items() if word in words]
            assert numbers in ([], [len(fitting)])


def test_left_and_above_are_seen_in_the_picture() -> None:
    things = [_thing("car", "red", x=0.2, y=0.5), _thing("fish", "blue", x=0.8, y=0.5)]
    texts = [write_caption(np.random.default_rng(k), things) for k in range(400)]
    related = [caption for caption in texts if "left of" in caption.text or "right of" in caption.text]
    assert len(related) > 20
    for caption in related:
        first_is_left = caption.mentions[0].objects == (0,)
        assert ("left of" in caption.text) == first_is_left
    assert not any("above" in caption.text or "below" in caption.text for caption in texts)


def test_articles_fit_their_word(scenes: list[Scene]) -> None:
    for caption in (scene.caption for scene in scenes):
        words = caption.text.lower().replace(",", "").replace(".", "").split()
        for article, word in pairwise(words):
            if article in {"a", "an"}:
                assert (article == "an") == (word[0] in "aeiou"), caption.text


def _thing(kind: str, colour: str, *, x: float = 0.5, y: float = 0.5) -> CaptionObject:
    return CaptionObject(kind, colour, 0.3, (x, y))
