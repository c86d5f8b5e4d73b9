"""RISE: its masks in their mean and covariance, and its map in closed form where cells do not interact."""

from __future__ import annotations

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F

from stages.explainers.perturbation.rise import Rise, RiseConfig, rise_masks
from stages.shared.model.load import from_open_clip
from tests.factories import SPEC, tiny_clip
from tests.stages.explainers.perturbation.games import Played, linear_game

tokenizer = open_clip.get_tokenizer("ViT-B-32")


def explainer_with(**settings: object) -> Rise:
    return Rise(RiseConfig(**settings), from_open_clip(tiny_clip(), tokenizer, SPEC))


def covariance(size_hw: tuple[int, int], grid_hw: tuple[int, int], cells: int, shown: float) -> np.ndarray:
    """Of two cells' shares of a mask, by linear algebra: independent coarse cells, enlarged, cut out at every place."""
    ways = []
    for side, count in zip(size_hw, grid_hw, strict=True):
        step = -(-side // cells)
        length = (cells + 1) * step
        position = np.clip((np.arange(length) + 0.5) * cells / length - 0.5, 0, cells - 1)
        enlarge = np.maximum(0, 1 - np.abs(position[:, None] - np.arange(cells)))
        pool = np.kron(np.eye(count), np.full((1, side // count), count / side))
        ways.append(np.stack([pool @ enlarge[start : start + side] for start in range(step)]))
    down, right = ways
    every = np.einsum("tac,ubd->tuabcd", down, right).reshape(-1, grid_hw[0] * grid_hw[1], cells * cells)
    covered: np.ndarray = shown * (1 - shown) * np.einsum("nic,njc->ij", every, every) / len(every)
    return covered


def test_where_cells_do_not_interact_the_map_is_their_parts_blurred_by_the_masks() -> None:
    game, parts = linear_game(9)
    explainer = explainer_with(masks=20_000, cells=3, shown=0.4, masks_per_step=4000)
    found = explainer.attribution(Played(game, (3, 3), cell_px=4))(torch.eye(3)).numpy()
    wanted = (covariance((12, 12), (3, 3), 3, 0.4) @ parts.numpy() / 0.4).T
    assert np.ptp(wanted) > 0.5
    assert np.abs(found - wanted).max() < 0.03 * np.ptp(wanted)


def test_without_centring_the_map_is_the_papers_sum_over_the_masks() -> None:
    explainer = explainer_with(masks=7, cells=2, centred=False, masks_per_step=3)
    rgb = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 32, 40, 3), dtype=np.uint8))
    texts = F.normalize(torch.randn(1, 8, 48, generator=torch.Generator().manual_seed(0)), dim=-1)
    heat = explainer.maps(rgb, texts).values
    tower = explainer.model.tower
    total = np.zeros((8, 32, 40))
    for mask in torch.cat(list(rise_masks(explainer.config, (32, 40)))):
        # The paper multiplies the input as the network takes it.
        masked = tower.normalised(rgb) * mask
        pixels = (masked * tower.std[:, None, None] + tower.mean[:, None, None]) * 255
        with torch.no_grad():
            unit = F.normalize(tower.encode(pixels.permute(0, 2, 3, 1)), dim=-1)[0]
        total += (texts[0] @ unit).numpy()[:, None, None] * mask.numpy() / (7 * 0.5)
    wanted = total.reshape(8, 4, 8, 5, 8).mean(axis=(2, 4)).reshape(8, 20)
    assert (wanted > 0.02).any()
    assert np.allclose(heat[0].numpy(), np.maximum(wanted, 0), atol=1e-5)


def test_masks_are_the_same_for_a_size_and_do_not_depend_on_the_steps() -> None:
    one, other = (torch.cat(list(rise_masks(RiseConfig(masks=50, masks_per_step=step), (24, 40)))) for step in (7, 50))
    assert torch.equal(one, other)
    assert one.shape == (50, 24, 40)
    assert one.min() >= 0
    assert one.max() <= 1
    assert not torch.equal(one, torch.cat(list(rise_masks(RiseConfig(masks=50, seed=1), (24, 40)))))


@pytest.mark.parametrize("shown", [0.2, 0.5])
def test_every_pixel_is_shown_as_often_as_the_others(shown: float) -> None:
    masks = torch.cat(list(rise_masks(RiseConfig(masks=6000, cells=3, shown=shown, masks_per_step=4096), (12, 18))))
    assert torch.allclose(masks.mean(dim=0), torch.tensor(shown), atol=0.03)
