"""RISE against images that are masked one at a time, as its paper has it."""

import pytest
import torch
import torch.nn.functional as F

from phrasebox.stages.explainers.masked import baseline_image, masked_embeddings
from phrasebox.stages.explainers.rise import rise_masks
from tests.closeness import assert_close
from tests.factories import TOWERS
from tests.stages.explain.models import clip_of, image, make_explainer


@pytest.mark.parametrize("name", TOWERS)
def test_masked_images_are_embedded_as_their_product_with_the_mask(name: str) -> None:
    """A mask on the mean colour multiplies the normalised image, in shares that are not rounded."""
    tower = clip_of(name).tower
    rgb = torch.from_numpy(image(name, 2, 3))
    masks = torch.rand(9, *rgb.shape[1:3], generator=torch.Generator().manual_seed(1))
    masks[0] = 1
    masks[1] = 0
    embeddings = masked_embeddings(tower, rgb[0], masks, baseline_image(tower, rgb[0]))
    normalised = tower.normalise(rgb) * masks[:, None]
    pixels = (normalised * tower.std[:, None, None] + tower.mean[:, None, None]) * 255
    with torch.no_grad():
        expected = F.normalize(tower.encode(pixels.permute(0, 2, 3, 1)), dim=-1)
    spread = float((expected[0] - expected[1]).abs().max())
    assert spread > 1e-5
    assert_close(embeddings, expected, min(spread / 20, 1e-3))


def test_the_map_is_the_sum_over_the_masks() -> None:
    explainer = make_explainer("rise", masks=7)
    rgb = torch.from_numpy(image(columns=5, seed=0))
    texts = F.normalize(torch.randn(1, 8, 48, generator=torch.Generator().manual_seed(0)), dim=-1)
    maps = explainer.maps(rgb)
    tower = explainer.model.tower
    masks = torch.cat(list(rise_masks(7, (32, 40))))
    embeddings = masked_embeddings(tower, rgb[0], masks, baseline_image(tower, rgb[0]))
    cosines = embeddings @ texts[0].T
    total = torch.einsum("np,nyx->pyx", cosines - cosines.mean(dim=0), masks) / (7 * 0.5)
    expected = total.reshape(8, 4, 8, 5, 8).mean(dim=(2, 4)).flatten(1)
    assert expected.max() > 0.002
    assert expected.min() < 0
    assert_close(maps.heat(texts)[0], expected.relu(), 1e-3)  # small differences of cosines


def test_masks_do_not_depend_on_the_steps_and_show_every_pixel_as_often() -> None:
    masks, larger_steps = (torch.cat(list(rise_masks(6000, (12, 18), step))) for step in (70, 4096))
    assert_close(masks, larger_steps)
    assert masks.shape == (6000, 12, 18)
    assert masks.min() >= 0
    assert masks.max() <= 1
    assert torch.allclose(masks.mean(dim=0), torch.tensor(0.5), atol=0.03)
