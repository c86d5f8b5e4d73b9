"""The photograph model's trunk: what timm and open_clip make of it, and tokens that speak for what they belong to."""

import pytest
import timm
import torch
import torch.nn.functional as F

from phrasebox.stages.model.towers.photo_trunk import (
    ALIKE,
    TRUNK_NAME,
    WIDTH,
    similarity_weights,
)
from tests.closeness import assert_close


def test_its_grid_follows_the_image_and_timm_has_no_weights_of_it() -> None:
    trunk = timm.create_model(TRUNK_NAME).eval()
    with torch.no_grad():
        assert trunk(torch.randn(1, 3, 96, 160)).shape == (1, WIDTH, 6, 10)
    with pytest.raises(ValueError, match="has no weights in timm"):
        timm.create_model(TRUNK_NAME, pretrained=True)


def test_tokens_count_for_those_that_look_like_them() -> None:
    torch.manual_seed(0)
    objects = torch.randn(2, 40)
    x = torch.stack([objects[0], objects[1], objects[0] + 0.01 * torch.randn(40), objects[1]])[None]
    weights = similarity_weights(x)[0]
    assert_close(weights.sum(dim=-1), torch.ones(4))
    assert torch.all(
        (weights > 0) == torch.tensor([[1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1]]).bool()
    )
    unit = F.normalize(x - x.mean(dim=1, keepdim=True), dim=-1)[0]
    expected = (unit[0] @ unit.T - ALIKE).clamp(min=0)
    assert_close(weights[0], expected / expected.sum())
