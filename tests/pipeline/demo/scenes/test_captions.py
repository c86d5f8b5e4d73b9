"""Captions: spans are the words, and a caption is unambiguous and true."""

from itertools import pairwise

import numpy as np

from phrasebox.pipeline.demo.scenes.captions import (
    COLOURS,
    KINDS,
    NUMBER_WORDS,
    PLURALS,
    CaptionObject,
    write_caption,
)
from phrasebox.pipeline.demo.scenes.scene import make_scene

KIND_OF = {PLURALS[kind]: kind for kind in KINDS} | {kind: kind for kind in KINDS}


def test_a_caption_denotes_exactly_what_its_words_name() -> None:
    for scene in (make_scene(11, k, side_px=64) for k in range(400)):
        caption = scene.caption
        assert "{" not in caption.text
        named = [k for mention in caption.mentions for k in mention.objects]
        assert len(named) == len(set(named)) > 0
        end = 0
        for mention in caption.mentions:
            assert end <= mention.start < mention.end <= len(caption.text)
            end = mention.end
            words = caption.text[mention.start : mention.end].lower().split()
            colours = COLOURS.keys() & words or COLOURS.keys()
            fitting = [
                k
                for k, item in enumerate(scene.objects)
                if item.kind == KIND_OF[words[-1]] and item.colour in colours
            ]
            assert sorted(mention.objects) == fitting
            numbers = [number for number, word in NUMBER_WORDS.items() if word in words]
            assert numbers in ([], [len(fitting)])
        words = caption.text.lower().replace(",", "").replace(".", "").split()
        for article, word in pairwise(words):
            assert article not in {"a", "an"} or (article == "an") == (word[0] in "aeiou"), caption.text


def test_left_and_above_are_seen_in_the_picture() -> None:
    objects = [CaptionObject("car", "red", 0.3, (0.2, 0.5)), CaptionObject("fish", "blue", 0.3, (0.8, 0.5))]
    captions = [write_caption(np.random.default_rng(k), objects) for k in range(400)]
    related = [caption for caption in captions if "left of" in caption.text or "right of" in caption.text]
    assert len(related) > 20
    for caption in related:
        assert ("left of" in caption.text) == (caption.mentions[0].objects == (0,))
    assert not any("above" in caption.text or "below" in caption.text for caption in captions)
