"""The contrastive loss against its definition."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from pipeline.finetune.losses import contrastive, logits_of, same


def test_pairs_on_the_diagonal_give_clips_loss() -> None:
    logits = torch.randn(5, 5, generator=torch.Generator().manual_seed(1)) * 3
    target = torch.arange(5)
    wanted = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    assert contrastive(logits, torch.eye(5, dtype=torch.bool)) == pytest.approx(float(wanted), abs=1e-6)


def test_other_positives_and_what_is_ignored_are_no_negatives() -> None:
    logits = torch.tensor([[2.0, 1.0, 5.0, 0.0]])
    positive = torch.tensor([[True, True, False, False]])
    ignored = torch.tensor([[False, False, True, False]])
    rows = (math.log1p(math.exp(0.0 - 2.0)) + math.log1p(math.exp(0.0 - 1.0))) / 2
    # A column of one region has no negatives at all.
    assert float(contrastive(logits, positive, ignored)) == pytest.approx(rows / 2, abs=1e-6)


def test_weights_weigh_the_rows_and_what_is_zero_teaches_nothing() -> None:
    logits = torch.randn(3, 3, generator=torch.Generator().manual_seed(2)).requires_grad_()
    positive = torch.eye(3, dtype=torch.bool)
    alone = contrastive(logits, positive, weights=torch.tensor([1.0, 0.0, 0.0]))
    wanted = (F.cross_entropy(logits[:1], torch.tensor([0])) + F.cross_entropy(logits.T[:1], torch.tensor([0]))) / 2
    assert float(alone.detach()) == pytest.approx(float(wanted.detach()), abs=1e-6)


def test_rows_without_negatives_or_positives_have_gradients_that_are_numbers() -> None:
    logits = torch.randn(2, 2, requires_grad=True)
    everything, nothing = torch.ones(2, 2, dtype=torch.bool), torch.zeros(2, 2, dtype=torch.bool)
    for positive, ignored in ((everything, None), (nothing, None), (nothing, everything)):
        loss = contrastive(logits, positive, ignored)
        assert float(loss.detach()) == 0
        (gradient,) = torch.autograd.grad(loss, logits)
        assert torch.isfinite(gradient).all()


def test_nothing_at_all_has_no_loss() -> None:
    assert float(contrastive(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.bool))) == 0


def test_logits_keep_their_digits_under_autocast() -> None:
    units = F.normalize(torch.randn(4, 64, generator=torch.Generator().manual_seed(3)), dim=-1)
    wanted = 100 * units @ units.T
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.allclose(logits_of(torch.tensor(100.0), units, units), wanted, atol=1e-4)
        assert not torch.allclose((100 * units @ units.T).float(), wanted, atol=0.01), "which it would not otherwise"


def test_equal_texts_are_the_same() -> None:
    assert same(["a", "b", "a"]).tolist() == [[True, False, True], [False, True, False], [True, False, True]]
