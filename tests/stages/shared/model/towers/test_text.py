from collections.abc import Callable
from functools import partial
from typing import Any

import open_clip
import pytest
import torch
from open_clip.model import convert_weights_to_lp
from torch import nn

from stages.contract.errors import ConfigError
from stages.shared.model.clip import TextEncoder
from stages.shared.model.config import ModelConfig
from stages.shared.model.towers.from_open_clip import build_text_tower
from tests.build.cases import cases
from tests.factories import TOWERS
from tests.messages import expect_error
from tests.stages.explain.models import sharp_text_clip, text_architecture, tokenizer
from tests.stages.shared.model.saved import load_model

LONG = "two dogs, one of them brown, run after a ball that rolls over the wet grass of the garden"
TEXTS = ["a red car", "", LONG, "dog"]


def custom(**text: Any) -> nn.Module:
    """A model whose text tower is a module of its own."""
    return open_clip.CustomTextCLIP(**text_architecture(**text)).eval()


MODELS: dict[str, Callable[[], nn.Module]] = {
    "plain": sharp_text_clip,
    "quick gelu": partial(sharp_text_clip, quick_gelu=True),
    "layer scale": partial(sharp_text_clip, ls_init_value=0.5),
    "biased projection": partial(sharp_text_clip, proj_bias=True),
    "no projection": partial(sharp_text_clip, proj_type="none", width=48, heads=3),
    "one layer": partial(sharp_text_clip, layers=1),
    "end token": partial(sharp_text_clip, pool_type="eos", eos_id=49407),
    "module of its own": custom,
    "beside timm's tower": TOWERS["EVA02"][0],
}


@pytest.mark.parametrize("name", MODELS)
def test_encode_equals_encode_text(name: str) -> None:
    model = MODELS[name]()
    tokens = tokenizer(TEXTS)
    with torch.no_grad():
        expected = model.encode_text(tokens)
    embeddings = build_text_tower(model).encode(tokens)
    assert torch.allclose(embeddings, expected, atol=1e-5)
    assert not torch.allclose(embeddings[0], embeddings[3], atol=1e-2), "texts differ"


def test_what_stands_behind_the_end_changes_nothing() -> None:
    tower = build_text_tower(sharp_text_clip())
    tokens = tokenizer(TEXTS[:1])
    filled = tokens.clone()
    filled[0, tower.ends_of(tokens)[0] + 1 :] = 5
    assert torch.allclose(tower.encode(filled), tower.encode(tokens), atol=1e-6)
    assert torch.allclose(tower.encode(tokens[:, :16]), tower.encode(tokens), atol=1e-6)


@pytest.mark.parametrize("name", ["demo", "photo"])
def test_the_trained_models(name: str) -> None:
    model = load_model(ModelConfig(name=name, device="cpu"))
    assert isinstance(model.encode_text, TextEncoder)
    assert model.encode_text.tower is not None, "texts are cut off at their end"


def test_halved_weights() -> None:
    model = open_clip.CLIP(**text_architecture(), cast_dtype=torch.bfloat16).eval()
    convert_weights_to_lp(model, dtype=torch.bfloat16)
    tower = build_text_tower(model)
    with torch.no_grad():
        expected = model.encode_text(tokenizer(TEXTS))
    assert tower.dtype == tower.blocks[0].qkv.weight.dtype == torch.bfloat16
    assert torch.allclose(tower.encode(tokenizer(TEXTS)), expected, atol=0.05, rtol=0.05)


REFUSED: dict[str, Callable[[], nn.Module]] = {
    "both ways": lambda: custom(no_causal_mask=True),
    "class token": lambda: custom(embed_cls=True),
    "first token": lambda: custom(pool_type="first"),
    "qk-norm": lambda: custom(block_type="custom", qk_norm=True),
    "another kind": lambda: nn.ModuleDict({"text": nn.Linear(2, 2)}),
}


@cases("make", REFUSED)
def test_other_towers_are_refused_with_the_reason(make: Callable[[], nn.Module]) -> None:
    with expect_error(ConfigError):
        build_text_tower(make())
