"""Towers that average their tokens: open_clip's embeddings, and class activation maps against autograd."""

from __future__ import annotations

import copy

import open_clip
import pytest
import torch
import torch.nn.functional as F

from stages.explainers.cams import Cam, CamConfig
from stages.shared.model.load import from_open_clip
from stages.shared.model.towers.averaged import AveragedTower
from tests.factories import TOWERS

tokenizer = open_clip.get_tokenizer("ViT-B-32")
averaged = pytest.mark.parametrize("name", ["ConvNeXt", "timm, averaged patches"])


def pixels(name: str, count: int = 2) -> torch.Tensor:
    side = TOWERS[name][1].size_px
    return torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@averaged
def test_encode_equals_encode_image(name: str) -> None:
    make, spec = TOWERS[name]
    model = make()
    tower = from_open_clip(model, tokenizer, spec).tower
    with torch.no_grad():
        wanted = model.encode_image(tower.normalised(pixels(name)))
    assert wanted.abs().max() > 0.01
    assert torch.allclose(tower.encode(pixels(name)), wanted, atol=1e-5)


@averaged
def test_a_model_in_training_mode_is_computed_in_evaluation_mode(name: str) -> None:
    make, spec = TOWERS[name]
    towers = [from_open_clip(model, tokenizer, spec).tower for model in (make(), make().train())]
    assert torch.equal(towers[0].encode(pixels(name)), towers[1].encode(pixels(name)))


@averaged
def test_maps_are_grad_cam_of_the_last_features_in_float64(name: str) -> None:
    """Gradients of the whole cosine with respect to every token, averaged over the tokens, times N: their sum."""
    make, spec = TOWERS[name]
    model = make()
    explainer = Cam(CamConfig(), from_open_clip(model, tokenizer, spec))
    rgb = pixels(name, 1)
    [maps] = explainer.explain(rgb.numpy(), [["red car", "two dogs"]])
    tower = from_open_clip(copy.deepcopy(model).double(), tokenizer, spec).tower
    assert isinstance(tower, AveragedTower)
    tokens = tower.embed(rgb)[0].requires_grad_()
    embedding = tower.finish(tokens.mean(dim=0)[None])[0]
    for heat_map, text in zip(maps, explainer.texts(["red car", "two dogs"]).double(), strict=True):
        cosine = F.cosine_similarity(embedding, text, dim=0)
        (gradient,) = torch.autograd.grad(cosine, tokens, retain_graph=True)
        wanted = F.relu(tokens.detach() @ gradient.sum(dim=0))
        assert wanted.max() > 0
        found = torch.from_numpy(heat_map.values).flatten().double()
        assert (found - wanted).abs().max() < 1e-4 * wanted.max()
        assert heat_map.similarity == pytest.approx(float(cosine.detach()), abs=3e-6)
