"""Which photographs are trained on, how they are read and varied, and the texts and vocabulary made of captions."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest
from open_clip.tokenizer import SimpleTokenizer

from pipeline.training.batches import load_vocabulary, write_vocabulary
from pipeline.training.photo_data import (
    Photograph,
    bare,
    cache_front,
    collect,
    read_lists,
    read_pixels,
    variant_of,
    vocabulary_words,
)
from stages.contract.errors import InputError
from stages.shared.model.towers.photo_trunk import PhotoTrunk
from tests.pipeline.training.conftest import COLOURS


def test_the_last_of_the_first_list_are_held_out(photos: Path) -> None:
    assert [photograph.member for photograph in read_lists(photos, held_out=2)] == [
        f"{number}.png" for number in (0, 1, 2, 3, 6, 7, 8)
    ]


def test_captions_are_bare_and_pixels_are_rgb_and_squashed(photos: Path) -> None:
    photographs = read_lists(photos, held_out=0)
    assert photographs[0].captions == ("a red dog on the beach", "a red dog near a man")
    images = list(read_pixels(photographs, 32))
    assert [image.shape for image in images] == [(32, 32, 3)] * 9
    blue, green, red = COLOURS["red"]
    assert np.array_equal(images[0][5, 5], [red, green, blue])


def test_a_missing_list_and_a_damaged_photograph_are_named(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"trained on flickr8k/train\.jsonl and flickr8k/train\.images\.tar"):
        read_lists(tmp_path, held_out=0)
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("0.png"))
    with pytest.raises(InputError, match=r"0\.png in .*x\.tar cannot be decoded"):
        list(read_pixels([Photograph(tmp_path / "x.tar", "0.png", ("a dog",))], 32))


def test_features_are_computed_once(photos: Path, tmp_path: Path) -> None:
    features = PhotoTrunk().features.eval()
    photographs = read_lists(photos, held_out=4)[:2]
    once = cache_front(features, photographs, tmp_path / "a.npy", variant=0, seed=0)
    assert once.shape == (2, 14, 14, 120)
    before = (tmp_path / "a.npy").stat().st_mtime_ns
    again = cache_front(features, photographs, tmp_path / "a.npy", variant=0, seed=0)
    assert np.array_equal(again, once)
    assert (tmp_path / "a.npy").stat().st_mtime_ns == before
    fewer = cache_front(features, photographs[:1], tmp_path / "a.npy", variant=0, seed=0)
    assert np.array_equal(fewer, once[:1])


@pytest.fixture
def rgb() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)


def test_the_first_two_are_exact_and_others_are_functions_of_the_draw(rgb: np.ndarray) -> None:
    first, second, third = (
        [variant_of(rgb, number, np.random.default_rng(seed)) for seed in (3, 3, 4)] for number in range(3)
    )
    assert all(np.array_equal(each, rgb) for each in first)
    assert all(np.array_equal(each, rgb[:, ::-1]) for each in second)
    assert (third[0].shape, third[0].dtype) == (rgb.shape, np.uint8)
    assert np.array_equal(third[0], third[1])
    assert not np.array_equal(third[0], third[2])


def test_a_varied_one_shows_at_least_half_of_the_photograph() -> None:
    """Of a photograph whose brightness says the column, the brightest and darkest columns tell what is shown."""
    columns = np.broadcast_to(np.linspace(80, 160, 64), (64, 64))
    rgb = np.repeat(columns[:, :, None], 3, axis=2).astype(np.uint8)
    for seed in range(20):
        shown = variant_of(rgb, 2, np.random.default_rng(seed)).astype(float)
        assert np.ptp(shown) >= 80 * 0.75 * 0.4


@pytest.mark.parametrize(
    ("phrase", "expected"),
    [("a red dog", "red dog"), ("the", "the"), ("two dogs", "two dogs"), ("her hat", "hat"), ("anteater", "anteater")],
)
def test_a_phrase_loses_its_determiner_and_nothing_else(phrase: str, expected: str) -> None:
    assert bare(phrase) == expected


def test_every_text_is_there_once_and_belongs_to_its_photographs() -> None:
    captions = (("a red dog runs on the grass", "a man sits"), ("a red dog runs on the grass",))
    texts = collect([Photograph(Path("x.tar"), f"{place}", each) for place, each in enumerate(captions)])
    assert len(set(texts.texts)) == len(texts.texts)
    named = [[texts.texts[place] for place in places] for places in texts.captions_of]
    assert named == [list(each) for each in captions]
    assert [sorted(texts.texts[place] for place in places) for places in texts.phrases_of] == [
        ["grass", "man", "red dog"],
        ["grass", "red dog"],
    ]
    assert all(place >= texts.captions for places in texts.phrases_of for place in places)


def test_words_used_twice_keep_clips_pieces_and_others_become_smaller_ones(tmp_path: Path) -> None:
    captions = ["a skateboarder jumps", "a skateboarder falls", "a xylophone falls"]
    words = vocabulary_words(captions)
    assert {"skateboarder", "falls", "photo"} <= set(words)
    assert "xylophone" not in words
    write_vocabulary(tmp_path, words)
    tokenizer, clips = load_vocabulary(tmp_path), SimpleTokenizer()
    assert len(tokenizer.encode("skateboarder")) == len(clips.encode("skateboarder"))
    assert len(tokenizer.encode("xylophone")) > len(clips.encode("xylophone"))
    assert tokenizer.decode(tokenizer.encode("xylophone")).strip() == "xylophone"
