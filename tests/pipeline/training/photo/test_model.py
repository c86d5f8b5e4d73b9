"""The forward pass in parts against open_clip's own, and the losses against their definitions."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from torch import Tensor, nn

from pipeline.training.photo.config import MODEL_CFG
from pipeline.training.photo.imagenet import fold_norms, front
from pipeline.training.photo.model import (
    Scales,
    distillation_loss,
    local_logits,
    look,
    matching_loss,
    soft_matching_loss,
)
from stages.shared.model.towers.photo_trunk import GRID


@pytest.fixture(scope="module")
def model() -> CLIP:
    torch.manual_seed(2)
    text = {**MODEL_CFG["text_cfg"], "vocab_size": 50}
    built = CLIP(**{**MODEL_CFG, "text_cfg": text}).eval()
    nn.init.normal_(built.visual.head.pool.pos_embed, std=0.5)
    fold_norms(built.visual.trunk.features)
    return built


@pytest.fixture(scope="module")
def fronts(model: CLIP) -> tuple[Tensor, Tensor]:
    """Images and what the fixed part makes of them."""
    x = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        return x, front(model.visual.trunk.features, x)


def test_the_whole_grid_gives_open_clips_embedding(model: CLIP, fronts: tuple[Tensor, Tensor]) -> None:
    x, channels = fronts
    everything = torch.arange(GRID**2).expand(2, -1)
    with torch.no_grad():
        seen = look(
            model,
            channels,
            corner=torch.zeros(2, 2, dtype=torch.int64),
            keep=everything,
            trained_blocks=3,
            precision=torch.float32,
        )
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
            return look(model, window, corner=corner, keep=keep, trained_blocks=0, precision=torch.float32).tokens

    here, there = seen_at(2, 3), seen_at(5, 8)
    assert not torch.allclose(here, there, atol=1e-3)
    kept = table.data.clone()
    places = [row * GRID + column for row, column in ((2, 3), (3, 4), (5, 6))]
    moved = [(row + 3) * GRID + column + 5 for row, column in ((2, 3), (3, 4), (5, 6))]
    table.data[[1 + place for place in moved]] = kept[[1 + place for place in places]]
    assert torch.allclose(seen_at(5, 8), here, atol=1e-5)
    table.data.copy_(kept)


@pytest.mark.parametrize(("trained", "expected"), [(0, 0), (1, 1), (3, 3)])
def test_only_the_last_blocks_get_a_gradient(
    model: CLIP, fronts: tuple[Tensor, Tensor], trained: int, expected: int
) -> None:
    model.zero_grad(set_to_none=True)
    seen = look(
        model,
        fronts[1][:, :4, :4],
        corner=torch.zeros(2, 2, dtype=torch.int64),
        keep=torch.arange(16).expand(2, -1),
        trained_blocks=trained,
        precision=torch.float32,
    )
    seen.whole.sum().backward()
    features = model.visual.trunk.features
    blocks = [block for stage in features.blocks for block in stage]
    assert sum(block.conv_pw.weight.grad is not None for block in blocks[1:]) == expected
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


def test_scales_stay_below_their_limit() -> None:
    scales = Scales()
    nn.init.constant_(scales.logs, 10.0)
    assert [round(scale.item(), 3) for scale in scales()] == [Scales.MOST] * 3


def test_a_perfect_pupil_has_no_loss() -> None:
    wanted = F.normalize(torch.randn(6, 8), dim=-1)
    assert distillation_loss(wanted, wanted).item() == pytest.approx(0.0, abs=1e-5)
    assert distillation_loss(-wanted, wanted).item() > 8
