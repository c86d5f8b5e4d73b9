"""The model that is trained: open_clip's own numbers, and losses against sums written out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer

from pipeline.training.model import (
    bank_loss,
    build_model,
    caption_loss,
    cut_patches,
    encode_image,
    encode_text,
    known_true,
    normalise,
    positions_at,
)


@pytest.fixture(scope="module")
def model(tokenizer: SimpleTokenizer) -> CLIP:
    torch.manual_seed(0)
    return build_model(tokenizer, 70).eval()


def test_images_as_open_clip(model: CLIP) -> None:
    images = torch.randn(2, 3, 70, 70, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model.encode_image(images, normalize=True)
        assert torch.allclose(encode_image(model, images), expected, atol=2e-6)


def test_keeping_every_patch_in_any_order_changes_nothing(model: CLIP) -> None:
    images = torch.randn(2, 3, 70, 70, generator=torch.Generator().manual_seed(2))
    keep = torch.stack([torch.randperm(49), torch.randperm(49)])
    with torch.no_grad():
        whole = encode_image(model, images)
        assert torch.allclose(encode_image(model, images, keep=keep), whole, atol=2e-6)
        assert not torch.allclose(encode_image(model, images, keep=keep[:, :24]), whole, atol=1e-3)


def test_left_out_patches_are_not_seen(model: CLIP) -> None:
    images = torch.randn(1, 3, 70, 70, generator=torch.Generator().manual_seed(3))
    changed = images.clone()
    changed[:, :, :10, :10] = 5.0
    keep = torch.arange(1, 49).unsqueeze(0)
    with torch.no_grad():
        assert torch.equal(encode_image(model, images, keep=keep), encode_image(model, changed, keep=keep))


def test_texts_as_open_clip(model: CLIP, tokenizer: SimpleTokenizer) -> None:
    tokens = tokenizer(["a red car", "two blue fish next to the big yellow house", "zebra"])
    with torch.no_grad():
        expected = model.encode_text(tokens, normalize=True)
        assert torch.allclose(encode_text(model, tokens), expected, atol=2e-6)


def test_patches_are_row_major(model: CLIP) -> None:
    image = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert cut_patches(image, 2)[0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]


def test_normalise_is_clip_s() -> None:
    grey = normalise(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8))
    assert grey[0, 0, 0, 0] == pytest.approx((1 - 0.48145466) / 0.26862954, rel=1e-5)


def test_positions_are_interpolated_and_the_class_token_kept() -> None:
    positions = torch.arange(5.0)[:, None].repeat(1, 3)
    resized = positions_at(positions, 4)
    assert resized.shape == (17, 3)
    assert torch.equal(resized[0], positions[0])
    assert float(resized[1:].mean()) == pytest.approx(2.5, abs=1e-4)
    assert torch.equal(positions_at(positions, 2), positions)


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
