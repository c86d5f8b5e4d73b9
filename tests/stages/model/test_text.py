from __future__ import annotations

import json
from pathlib import Path

import open_clip
import pytest
import torch
from torch import Tensor, nn

from stages.model.config import ModelConfig
from stages.model.open_clip import load
from stages.model.text import TextEncoder
from tests.factories import tiny_architecture, tiny_clip
from tests.stages.model.saved import save_model

tokenizer = open_clip.get_tokenizer("ViT-B-32")

TEXTS = [
    "a red car",
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
def model() -> nn.Module:
    return tiny_clip()


def wanted(model: nn.Module, texts: list[str]) -> Tensor:
    with torch.no_grad():
        return model.encode_text(tokenizer(texts))


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_equals_encode_text(model: nn.Module, text: str) -> None:
    """Cut to 16 or 32 tokens or not. The id of "!" is 0, like that of padding."""
    assert torch.allclose(TextEncoder(model, tokenizer)([text]), wanted(model, [text]), atol=1e-5)


def test_texts_of_all_lengths_are_cut_differently(model: nn.Module) -> None:
    lengths = TextEncoder(model, tokenizer)._lengths(tokenizer(TEXTS))
    assert set(lengths) == {16, 32, 77}
    assert torch.allclose(TextEncoder(model, tokenizer)(TEXTS), wanted(model, TEXTS), atol=1e-5)


@pytest.mark.parametrize("n", [14, 15, 30, 31, 32])
def test_at_the_borders_of_the_cut(model: nn.Module, n: int) -> None:
    """n words and two marks: 16 tokens fit into 16, 17 do not."""
    text = " ".join(["dog"] * n)
    assert TextEncoder(model, tokenizer)._lengths(tokenizer([text])) == [16 if n <= 14 else 32 if n <= 30 else 77]
    assert torch.allclose(TextEncoder(model, tokenizer)([text]), wanted(model, [text]), atol=1e-5)


def test_the_same_row_in_any_batch(model: nn.Module) -> None:
    encode = TextEncoder(model, tokenizer)
    alone = torch.cat([encode([text]) for text in TEXTS])
    assert torch.equal(encode(TEXTS), alone)
    many = TEXTS * 3
    assert torch.equal(encode(many), alone.repeat(3, 1))
    assert torch.equal(encode(TEXTS[::-1]), alone.flip(0))


def test_no_gradient_is_recorded(model: nn.Module) -> None:
    assert not TextEncoder(model, tokenizer)(["dog"]).requires_grad


@pytest.mark.parametrize(
    "text_options",
    [{"no_causal_mask": True, "pool_type": "argmax"}, {"pool_type": "last"}, {"proj_type": "none"}],
    ids=["no mask", "last token", "no projection"],
)
def test_other_text_towers(text_options: dict[str, object]) -> None:
    """Where tokens after the end count, or another one is pooled, nothing may be cut."""
    architecture = tiny_architecture()
    architecture["text_cfg"].update(text_options)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        other = open_clip.CLIP(**architecture).eval()
    assert torch.allclose(TextEncoder(other, tokenizer)(TEXTS), wanted(other, TEXTS), atol=1e-5)


def test_custom_text_towers_are_never_cut(tmp_path: Path) -> None:
    model, config = save_model(tmp_path)
    (tmp_path / "tiny.json").write_text(json.dumps({**tiny_architecture(), "custom_text": True}))
    encode = load(config).encode_text
    assert isinstance(encode, TextEncoder)
    assert not encode.can_cut
    assert torch.allclose(encode(TEXTS), wanted(model, TEXTS), atol=1e-5)


def test_the_embedded_models_own_context_length() -> None:
    """Its tokenizer has its own words and a shorter context."""
    encode = load(ModelConfig(device="cpu")).encode_text
    assert isinstance(encode, TextEncoder)
    with torch.no_grad():
        full = encode.model.encode_text(encode.tokenizer(TEXTS))
    assert torch.allclose(encode(TEXTS), full, atol=1e-5)
