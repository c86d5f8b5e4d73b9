"""Dense features: what they are is tested with MaskCLIP, which draws them; here that training can use them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stages.shared.model.load import from_open_clip
from stages.shared.model.towers.dense import dense
from stages.shared.model.towers.take_apart import take_apart
from tests.factories import TOWERS


@pytest.mark.parametrize("name", TOWERS)
def test_live_weights_get_gradients_and_the_same_features(name: str) -> None:
    make, spec = TOWERS[name]
    model = make()
    rgb = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, spec.size_px, spec.size_px, 3), np.uint8))
    live = take_apart(model.visual, spec.mean, spec.std, None)
    seen = dense(live, rgb, residual=True)
    (seen.patches.square().sum() + seen.embedding.square().sum()).backward()
    got = {key for key, value in model.visual.named_parameters() if value.grad is not None and value.grad.any()}
    first = next(key for key, value in model.visual.named_parameters() if value.ndim == 4)
    assert first in got, "the first convolution learns"
    assert len(got) > 0.8 * len([*model.visual.parameters()])

    torch.optim.SGD(model.visual.parameters(), lr=1e-4).step()
    stepped = dense(live, rgb, residual=True)
    stepped.embedding.sum().backward()
    assert not torch.equal(stepped.embedding, seen.embedding), "the step is seen"

    frozen = from_open_clip(model, lambda texts: None, spec).tower
    same = dense(frozen, rgb, residual=True)
    assert not same.patches.requires_grad
    assert torch.allclose(same.patches, stepped.patches, atol=1e-6)
    assert torch.allclose(same.embedding, model.encode_image(frozen.normalised(rgb)), atol=1e-4)


def test_a_frozen_tower_follows_training_of_the_module() -> None:
    model, spec = TOWERS["class token"][0](), TOWERS["class token"][1]
    frozen = from_open_clip(model, lambda texts: None, spec).tower
    rgb = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
    before = dense(frozen, rgb).embedding
    with torch.no_grad():
        model.visual.proj.mul_(2.0)
    assert torch.allclose(dense(frozen, rgb).embedding, 2 * before), "the weights are shared"
