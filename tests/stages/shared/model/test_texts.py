from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import open_clip
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import stages.shared.model.texts as texts_module
from stages.shared.model.clip import ClipModel
from stages.shared.model.config import ModelConfig
from stages.shared.model.load import from_open_clip, load, module_of
from stages.shared.model.recognise import recognise
from stages.shared.model.texts import TextCache, TextEncoder, width_of
from stages.shared.model.towers.text import TextTower
from tests.factories import SPEC, tiny_architecture, tiny_clip
from tests.stages.shared.model.saved import save_model

tokenizer = open_clip.get_tokenizer("ViT-B-32")

TEXTS = [
    "a car",
    "a red car",
    "a dog in a red car",
    "",
    "!",
    "! ! !",
    "wow! two dogs! really!",
    "!" * 40,
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen",
    "a fourteen word phrase " * 5,
    "far too long for the model's context of seventy-seven tokens " * 12,
    "<end_of_text> a red car",
    "Zwölf Boxkämpfer 拳击手 🚗",
]


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return tiny_clip()


def wanted(network: nn.Module, texts: list[str]) -> Tensor:
    with torch.no_grad():
        return network.encode_text(tokenizer(texts))


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_equals_encode_text(network: nn.Module, text: str) -> None:
    """Short or not. The id of "!" is 0, like that of padding."""
    assert torch.allclose(TextEncoder(network, tokenizer)([text]), wanted(network, [text]), atol=1e-5)


def test_texts_of_all_lengths_in_one_call(network: nn.Module) -> None:
    assert {width_of(n, 77) for n in used(TEXTS)} == {8, 16, 32, 77}
    assert torch.allclose(TextEncoder(network, tokenizer)(TEXTS), wanted(network, TEXTS), atol=1e-5)


def used(texts: list[str]) -> list[int]:
    """Tokens with the two marks."""
    return [int(row.argmax()) + 1 for row in tokenizer(texts)]


@pytest.mark.parametrize(
    ("words", "width"), [(0, 8), (1, 8), (6, 8), (7, 16), (14, 16), (15, 32), (30, 32), (31, 77), (75, 77), (200, 77)]
)
def test_at_the_borders_of_the_widths(network: nn.Module, words: int, width: int) -> None:
    """Two marks stand around the words."""
    text = " ".join(["dog"] * words)
    assert width_of(*used([text]), 77) == width
    assert torch.allclose(TextEncoder(network, tokenizer)([text]), wanted(network, [text]), atol=1e-5)


WORDS = sorted(word for word in {"".join(pair) for pair in permutations("abdehiknorst", 2)} if used([word]) == [3])


@pytest.mark.parametrize(
    ("texts", "passes"),
    [
        (WORDS[:63], [127]),  # the mark in front is one token for all of them
        (WORDS[:64], [127, 3]),
        ([*WORDS[:62], "zz dog"], [128]),
        ([*WORDS[:63], "zz dog"], [128, 3]),
        ([f"a photo of a {word}" for word in WORDS[:20]], [45]),
        (["dog", "dog", "red dog", "red", "red cat", "red dog"], [9]),
        (["dog"] * 300, [3, 3, 3]),  # no pass has more texts than tokens
        (["a " * 20 + word for word in WORDS[:3]], [27]),  # a longer kind of text
        (["", "dog", "a " * 20], [4, 22]),
    ],
    ids=range(9),
)
def test_a_beginning_that_texts_of_a_pass_share_is_computed_once(
    network: nn.Module, texts: list[str], passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    compute = TextTower.encode_packed

    def counted(tower: TextTower, tokens: Tensor, positions: Tensor, places: Tensor, cells: Tensor) -> Tensor:
        asked.append(1 + int(tokens.nonzero().max()))
        assert len(places) <= len(tokens) == 128
        return compute(tower, tokens, positions, places, cells)

    monkeypatch.setattr(TextTower, "encode_packed", counted)
    found = TextEncoder(network, tokenizer)(texts)
    assert asked == passes
    assert torch.allclose(found, wanted(network, texts), atol=1e-5)


@given(st.lists(st.lists(st.sampled_from(["a", "red", "dog", "!", "cat"]), max_size=8), min_size=1, max_size=60))
def test_whatever_texts_share_a_row_is_that_of_the_text_alone(words: list[list[str]]) -> None:
    network = tiny_clip()
    texts = [" ".join(each) for each in words]
    encode = TextEncoder(network, tokenizer)
    found = encode(texts)
    assert torch.allclose(found, wanted(network, texts), atol=1e-5)
    for number in {0, len(texts) // 2, len(texts) - 1}:
        assert torch.equal(found[number : number + 1], encode([texts[number]]))


def test_the_same_row_in_any_batch(network: nn.Module) -> None:
    encode = TextEncoder(network, tokenizer)
    alone = torch.cat([encode([text]) for text in TEXTS])
    assert torch.equal(encode(TEXTS), alone)
    many = TEXTS * 3
    assert torch.equal(encode(many), alone.repeat(3, 1))
    assert torch.equal(encode(TEXTS[::-1]), alone.flip(0))


def test_no_gradient_is_recorded(network: nn.Module) -> None:
    assert not TextEncoder(network, tokenizer)(["dog"]).requires_grad


@pytest.mark.parametrize(
    "text_options",
    [{"no_causal_mask": True, "pool_type": "argmax"}, {"pool_type": "last"}, {"proj_type": "none"}],
    ids=["no mask", "last token", "no projection"],
)
def test_other_text_towers(text_options: dict[str, object]) -> None:
    """Where tokens after the end count, or another one is pooled, the whole context is embedded."""
    architecture = tiny_architecture()
    architecture["text_cfg"].update(text_options)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        other = open_clip.CLIP(**architecture).eval()
    encode = TextEncoder(other, tokenizer)
    assert (encode.tower is None) == ("pool_type" in text_options)
    assert torch.allclose(encode(TEXTS), wanted(other, TEXTS), atol=1e-5)
    assert torch.equal(encode(TEXTS[3:4]), encode(TEXTS)[3:4])


def test_custom_text_towers(tmp_path: Path) -> None:
    network, config = save_model(tmp_path)
    (tmp_path / "tiny.json").write_text(json.dumps({**tiny_architecture(), "custom_text": True}))
    encode = load(config).encode_text
    assert isinstance(encode, TextEncoder)
    assert encode.tower is not None
    assert torch.allclose(encode(TEXTS), wanted(network, TEXTS), atol=1e-5)


def test_the_embedded_models_own_context_length() -> None:
    """Its tokenizer has its own words and a shorter context."""
    encode = load(ModelConfig(name="demo", device="cpu")).encode_text
    assert isinstance(encode, TextEncoder)
    with torch.no_grad():
        full = module_of(recognise(ModelConfig(name="demo"))).encode_text(encode.tokenizer(TEXTS))
    assert torch.allclose(encode(TEXTS), full, atol=1e-5)


@pytest.fixture(scope="module")
def model() -> ClipModel:
    return from_open_clip(tiny_clip(), tokenizer, SPEC)


class Counted:
    """A model's text encoder that remembers what it was asked."""

    def __init__(self, model: ClipModel) -> None:
        self.asked: list[str] = []
        self._encode = model.encode_text
        self.model = replace(model, encode_text=self)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        self.asked.extend(texts)
        return self._encode(texts)


def test_unit_rows_in_the_order_of_the_texts(model: ClipModel) -> None:
    rows = TextCache(model)(["dog", "cat", "dog"])
    wanted = F.normalize(model.encode_text(["dog", "cat", "dog"]), dim=-1)
    assert rows.dtype == torch.float32
    assert torch.allclose(rows, wanted, atol=1e-6)
    assert torch.equal(rows[0], rows[2])


def test_each_text_is_computed_once(model: ClipModel) -> None:
    counted = Counted(model)
    cache = TextCache(counted.model)
    cache(["dog", "cat", "dog"])
    cache(["cat", "bird"])
    cache(["bird", "dog", "cat"])
    assert counted.asked == ["dog", "cat", "bird"]


def test_templates_are_filled_and_averaged(model: ClipModel) -> None:
    counted = Counted(model)
    cache = TextCache(counted.model, ("a photo of a {}", "{} and {}"))
    rows = cache(["dog", "a {} b"])
    assert counted.asked == ["a photo of a dog", "dog and dog", "a photo of a a {} b", "a {} b and a {} b"]
    for row, text in zip(rows, ["dog", "a {} b"], strict=True):
        parts = [template.replace("{}", text) for template in cache.templates]
        mean = F.normalize(model.encode_text(parts), dim=-1).mean(dim=0)
        assert torch.allclose(row, F.normalize(mean, dim=-1), atol=1e-6)


def test_the_texts_that_were_not_used_for_longest_are_forgotten(model: ClipModel) -> None:
    counted = Counted(model)
    cache = TextCache(counted.model, max_texts=2)
    first = cache(["a", "b", "c"])
    assert len(first) == 3, "more than fit may be asked for at once"
    cache(["b", "c"])
    assert counted.asked == ["a", "b", "c"]
    again = cache(["a"])
    assert counted.asked == ["a", "b", "c", "a"]
    assert torch.equal(again[0], first[0])
    cache(["c", "b"])
    assert counted.asked == ["a", "b", "c", "a", "b"]


def test_a_phrase_of_every_batch_is_embedded_once(model: ClipModel) -> None:
    counted = Counted(model)
    cache = TextCache(counted.model, max_texts=5)
    for number in range(20):
        cache(["dog", f"new {number}", f"newer {number}"])
    assert counted.asked.count("dog") == 1
    assert len(counted.asked) == 41


def test_memory_does_not_grow_with_the_texts_that_were_forgotten(model: ClipModel) -> None:
    cache = TextCache(model, max_texts=100)
    for number in range(10):
        cache([f"{number} {other}" for other in range(60)])
    assert cache._rows is not None
    assert len(cache._rows) == 256


def test_places_of_forgotten_texts_are_taken_again(model: ClipModel) -> None:
    """With more and fewer new texts than places that are free, and beyond what is held at first."""
    cache = TextCache(model, max_texts=3)
    for count in (2, 5, 1, 300, 4, 700):
        texts = [f"{count} {number}" for number in range(count)]
        assert torch.allclose(cache(texts), F.normalize(model.encode_text(texts), dim=-1), atol=1e-6)
        assert torch.equal(cache(texts[-3:]), cache(texts)[-3:])


def test_a_text_that_did_not_fit_takes_no_place_of_another(model: ClipModel, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = TextCache(model, max_texts=4)
    cache(["a", "b", "c", "d"])
    cache(["e", "f"])

    def full(tensor: Tensor, device: torch.device) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    embeddings = cache._embedded(["g", "h"])
    with monkeypatch.context() as memory:
        memory.setattr(cache, "_embedded", lambda _: embeddings)
        memory.setattr(texts_module, "to_device", full)
        with pytest.raises(torch.OutOfMemoryError):
            cache(["g", "h"])
    for texts in (["g", "h"], ["e", "f"], ["i", "e", "k"], ["e", "i", "k", "f"]):
        assert torch.allclose(cache(texts), F.normalize(model.encode_text(texts), dim=-1), atol=1e-6), texts
