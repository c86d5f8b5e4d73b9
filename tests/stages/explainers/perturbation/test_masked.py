"""Masked embeddings: the model's own encoder on images that numpy masked."""

from __future__ import annotations

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F

from stages.explainers.perturbation.baseline import baseline_image, blurred
from stages.explainers.perturbation.masked import embeddings_and_tokens, masked_embeddings
from stages.shared.model.load import from_open_clip
from stages.shared.model.towers.tower import Tower
from tests.factories import SPEC, TOWERS, tiny_clip

tokenizer = open_clip.get_tokenizer("ViT-B-32")


def tower_of(name: str) -> Tower:
    make, spec = TOWERS[name]
    return from_open_clip(make(), tokenizer, spec).tower


def image_of(tower: Tower, rows: int = 2, columns: int = 3) -> torch.Tensor:
    side = tower.placement.stride_px
    pixels = np.random.default_rng(4).integers(0, 256, (rows * side, columns * side, 3), dtype=np.uint8)
    return torch.from_numpy(pixels)


@pytest.mark.parametrize("name", TOWERS)
def test_they_are_the_embeddings_of_images_that_were_masked_before(name: str) -> None:
    tower = tower_of(name)
    rgb = image_of(tower)
    masks = torch.tensor([[[1.0, 0, 1], [0, 1, 1]], [[1, 1, 1], [1, 1, 1]], [[0, 0, 0], [0, 0, 0]]])
    black = baseline_image(tower, rgb, "black")
    found = masked_embeddings(tower, rgb, masks, black, masks_per_step=2)
    side = tower.placement.stride_px
    shown = np.kron(masks.numpy(), np.ones((1, side, side))).astype(np.uint8)
    with torch.no_grad():
        wanted = F.normalize(tower.encode(torch.from_numpy(shown[..., None] * rgb.numpy())), dim=-1)
    spread = float((wanted[0] - wanted[1]).abs().max())
    assert spread > 1e-5
    assert torch.allclose(found, wanted, atol=min(spread / 20, 1e-5))


def test_masks_in_pixels_mix_and_are_not_rounded() -> None:
    tower = tower_of("class token")
    rgb = image_of(tower)
    mean = baseline_image(tower, rgb, "mean")
    share = torch.rand(3, 16, 24, generator=torch.Generator().manual_seed(1))
    found = masked_embeddings(tower, rgb, share, mean)
    # A mask on the mean colour multiplies the normalised image.
    normalised = tower.normalised(rgb[None]) * share[:, None]
    pixels = (normalised * tower.std[:, None, None] + tower.mean[:, None, None]) * 255
    with torch.no_grad():
        wanted = F.normalize(tower.encode(pixels.permute(0, 2, 3, 1)), dim=-1)
    assert torch.allclose(found, wanted, atol=1e-5)


def test_cells_that_do_not_cover_the_image_are_refused() -> None:
    tower = tower_of("class token")
    rgb = image_of(tower)
    with pytest.raises(ValueError, match="cells cover 24x16 px, got 5x2 cells"):
        masked_embeddings(tower, rgb, torch.ones(1, 2, 5), baseline_image(tower, rgb, "mean"))


def test_halved_weights_have_a_head_in_float32() -> None:
    tower = from_open_clip(tiny_clip(precision=torch.bfloat16), tokenizer, SPEC).tower
    rgb = image_of(tower)
    found = masked_embeddings(tower, rgb, torch.ones(2, 2, 3), baseline_image(tower, rgb, "mean"))
    assert found.dtype == torch.float32
    assert torch.allclose(found.norm(dim=-1), torch.ones(2), atol=1e-6)
    whole = masked_embeddings(tower_of("class token"), rgb, torch.ones(1, 2, 3), baseline_image(tower, rgb, "mean"))
    assert torch.allclose(found, whole.expand(2, -1), atol=0.03)


@pytest.mark.parametrize("name", ["class token", "ResNet", "ConvNeXt"])
def test_tokens_come_from_the_same_pass(name: str) -> None:
    tower = tower_of(name)
    rgb = image_of(tower)[None]
    with torch.no_grad():
        embedding, tokens = embeddings_and_tokens(tower, rgb, kept=0)
        assert torch.allclose(embedding, tower.encode(rgb), atol=1e-5)
        own = tower.embed(rgb)
    assert tokens is not None
    assert torch.equal(tokens, own[:, own.shape[1] - 6 :])


def test_a_blur_keeps_what_is_even_and_spreads_a_point_as_a_gaussian() -> None:
    assert torch.allclose(blurred(torch.full((9, 7, 3), 40.0), 2.0), torch.full((9, 7, 3), 40.0), atol=1e-4)
    point = torch.zeros(31, 31, 3)
    point[15, 15] = 1
    spread = blurred(point, 2.0)[..., 0]
    places = torch.arange(31.0) - 15
    assert spread.sum().item() == pytest.approx(1, abs=1e-5)
    assert (spread.sum(dim=0) * places**2).sum().item() == pytest.approx(4, rel=0.05)
    assert spread[15, 17] / spread[15, 15] == pytest.approx(np.exp(-0.5), abs=1e-5)
