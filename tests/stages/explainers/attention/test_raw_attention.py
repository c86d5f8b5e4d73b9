"""Raw attention against what open_clip's own forward pass attends to."""

from __future__ import annotations

import numpy as np
import open_clip
import pytest
import torch

from stages.explainers.attention.raw_attention import RawAttention, RawAttentionConfig
from stages.shared.model.load import from_open_clip
from tests.factories import TOWERS
from tests.stages.explainers.attention.captured import capture

PHRASES = ["red car", "dog"]
tokenizer = open_clip.get_tokenizer("ViT-B-32")


@pytest.mark.parametrize("name", ["class token", "timm, class token", "ResNet", "EVA02", "SigLIP"])
def test_it_is_the_first_row_of_the_last_attention(name: str) -> None:
    make, spec = TOWERS[name]
    model = make()
    explainer = RawAttention(RawAttentionConfig(), from_open_clip(model, tokenizer, spec))
    side = spec.size_px
    rgb = np.random.default_rng(2).integers(0, 256, (1, side, side, 3), dtype=np.uint8)
    captured = capture(model, explainer.model.tower.normalised(torch.from_numpy(rgb))[0])
    row = captured.attention[-1][0, :, 0].mean(dim=0).detach()
    cells = (side // spec.patch_px) ** 2
    assert len(row) - cells in (0, 1)
    wanted = row[-cells:].reshape(side // spec.patch_px, -1).numpy()
    assert wanted.max() > 1.2 * wanted.min(), "far from uniform"
    for found, text in zip(explainer.explain(rgb, [PHRASES])[0], PHRASES, strict=True):
        assert np.allclose(found.values, wanted, rtol=2e-3)
        cosine = captured.cosine(explainer.texts([text])[0]).item()
        assert found.similarity == pytest.approx(cosine, abs=1e-3)
