"""The losses against sums written out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from stages.model.train.loss import bank_loss, caption_loss, known_true


def test_a_caption_is_true_if_all_claims_hold_and_nothing_denied_is_there() -> None:
    claimed = torch.tensor([[1.0, 0, 0], [1, 1, 0], [1, 0, 0], [0, 0, 0]])
    denied = torch.tensor([[0.0, 0, 0], [0, 0, 0], [0, 1, 0], [0, 0, 1]])
    present = torch.tensor([[1.0, 1, 0], [1, 0, 1]])
    expected = [[True, True, False, True], [True, False, True, False]]
    assert known_true(claimed, denied, present).tolist() == expected


def test_caption_loss_without_false_negatives_is_plain_infonce() -> None:
    logits = torch.tensor([[2.0, 0.5], [-1.0, 1.0]])
    rows = (-math.log(math.exp(2) / (math.exp(2) + math.exp(0.5))) + math.log(1 + math.exp(-2))) / 2
    columns = (math.log(1 + math.exp(-3)) + math.log(1 + math.exp(-0.5))) / 2
    found = caption_loss(logits, torch.eye(2, dtype=torch.bool))
    assert float(found) == pytest.approx((rows + columns) / 2, rel=1e-5)


def test_known_false_negatives_do_not_count() -> None:
    true = torch.tensor([[True, True], [False, True]])
    near = caption_loss(torch.tensor([[2.0, 0.5], [-1.0, 1.0]]), true)
    far = caption_loss(torch.tensor([[2.0, 9.0], [-1.0, 1.0]]), true)
    assert float(near) == pytest.approx(float(far))


def test_bank_loss_by_hand() -> None:
    logits = torch.tensor([[1.0, 2.0, 0.0], [5.0, 5.0, 5.0]])
    positive = torch.tensor([[True, True, False], [False, False, False]])
    first = math.log(1 + math.exp(-1))
    second = math.log(1 + math.exp(-2))
    assert float(bank_loss(logits, positive)) == pytest.approx((first + second) / 2, rel=1e-5)


def test_bank_loss_without_positives_is_zero() -> None:
    logits = torch.zeros(2, 3, requires_grad=True)
    loss = bank_loss(logits, torch.zeros(2, 3, dtype=torch.bool))
    loss.backward()
    assert float(loss.detach()) == 0.0


def test_bank_loss_with_only_positives_is_zero_and_finite() -> None:
    logits = torch.zeros(1, 2, requires_grad=True)
    loss = bank_loss(logits, torch.ones(1, 2, dtype=torch.bool))
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
