"""LeGrad, against autograd through open_clip's own forward pass in float64."""

from __future__ import annotations

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F

from stages.contract.errors import ConfigError
from stages.explainers.attention.legrad import LeGrad, LeGradConfig
from stages.shared.model.load import from_open_clip
from tests.factories import SPEC, TOWERS, tiny_clip
from tests.stages.explainers.attention.captured import capture

PHRASES = ["red car", "dog"]
tokenizer = open_clip.get_tokenizer("ViT-B-32")


@pytest.mark.parametrize(("settings", "blocks"), [({}, 2), ({"blocks": "all"}, 4), ({"blocks": 1}, 1)])
def test_blocks(settings: dict[str, object], blocks: int) -> None:
    model = tiny_clip()
    explainer = LeGrad(LeGradConfig(**settings), from_open_clip(model, tokenizer, SPEC))  # type: ignore[arg-type]
    rgb = np.random.default_rng(2).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    pixels = explainer.model.tower.normalised(torch.from_numpy(rgb))[0]
    captured = capture(model, pixels, *(f"transformer.resblocks.{n}" for n in range(4)))
    maps = explainer.explain(rgb, [PHRASES])[0]
    for text, found in zip(PHRASES, maps, strict=True):
        embedding = explainer.texts([text])[0].double()
        wanted = np.zeros(16)
        for tokens, attention in list(zip(captured.seen, captured.attention, strict=True))[-blocks:]:
            meaning = captured.visual.ln_post(tokens[0].mean(dim=0)) @ captured.visual.proj
            (gradient,) = torch.autograd.grad(F.normalize(meaning, dim=0) @ embedding, attention, retain_graph=True)
            wanted += np.maximum(gradient[0].numpy(), 0).mean(axis=(0, 1))[1:]
        assert np.allclose(found.values.ravel(), wanted, atol=1e-4 * wanted.max())
        assert found.similarity == pytest.approx(captured.cosine(embedding).item(), abs=1e-5)


@pytest.mark.parametrize("name", ["ResNet", "SigLIP"])
@pytest.mark.parametrize("threshold", [0.8, 0.3, 1.0])
def test_pools(name: str, threshold: float) -> None:
    make, spec = TOWERS[name]
    model, side, cells = make(), spec.size_px, (spec.size_px // spec.patch_px) ** 2
    explainer = LeGrad(LeGradConfig(empty_threshold=threshold), from_open_clip(model, tokenizer, spec))
    rgb = np.random.default_rng(2).integers(0, 256, (1, side, side, 3), dtype=np.uint8)
    captured = capture(model, explainer.model.tower.normalised(torch.from_numpy(rgb))[0])

    def heat(text: str) -> np.ndarray:
        (gradient,) = captured.gradients(explainer.texts([text])[0], captured.attention[-1:])
        found: np.ndarray = np.maximum(gradient[0, :, 0, -cells:].numpy(), 0).mean(axis=0)
        return found

    empty = heat("a photo of a")
    kept = (empty - empty.min()) / (empty.max() - empty.min()) <= threshold
    assert kept.all() == (threshold == 1.0)
    for text, found in zip(PHRASES, explainer.explain(rgb, [PHRASES])[0], strict=True):
        wanted = heat(text) * kept
        assert np.allclose(found.values.ravel(), wanted, atol=3e-3 * wanted.max())


def test_more_blocks_than_there_are_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"explain\.blocks: .* has 4 blocks, not 5"):
        LeGrad(LeGradConfig(blocks=5), from_open_clip(tiny_clip(), tokenizer, SPEC))
