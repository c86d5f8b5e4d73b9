"""KernelSHAP and Partition SHAP: values by their definition, those of `shap`, and the sum that they must have."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from stages.explainers.perturbation.masked import masked_embeddings
from stages.explainers.perturbation.shapley import (
    KernelShapConfig,
    Rectangle,
    coalitions,
    groups,
    owen_values,
    shapley_values,
)
from tests.stages.explain.models import image, made
from tests.stages.explainers.games import Played, exact_shapley, linear_game, tangled_game


def cells_of(group_of: torch.Tensor) -> list[tuple[int, ...]]:
    flat = group_of.flatten().tolist()
    return [tuple(cell for cell, own in enumerate(flat) if own == group) for group in range(max(flat) + 1)]


@pytest.mark.parametrize(("grid_hw", "most"), [((1, 2), 2), ((2, 3), 6), ((2, 4), 8), ((3, 5), 6)])
def test_all_coalitions_give_the_exact_values(grid_hw: tuple[int, int], most: int) -> None:
    game, group_of = tangled_game(grid_hw[0] * grid_hw[1]), groups(grid_hw, most)
    found = shapley_values(Played(game, grid_hw), group_of, 256, 0)
    wanted = exact_shapley(game, cells_of(group_of), group_of.numel())
    assert np.ptp(wanted) > 0.5
    assert np.allclose(found.numpy(), wanted, atol=1e-9)


def test_few_coalitions_find_what_each_cell_adds_where_cells_do_not_interact() -> None:
    game, parts = linear_game(49)
    image = Played(game, (7, 7))
    found = shapley_values(image, groups((7, 7), 64), 256, 0)
    assert torch.allclose(found, parts, atol=1e-9)
    assert image.asked <= 257


def test_more_coalitions_come_closer_and_the_sum_always_holds() -> None:
    game = tangled_game(9)
    wanted = exact_shapley(game, [(cell,) for cell in range(9)], 9)
    whole, nothing = (game(torch.full((1, 9), share, dtype=torch.float64))[0] for share in (1.0, 0.0))
    misses = []
    for evaluations in (36, 110, 320):
        found = [shapley_values(Played(game, (3, 3)), groups((3, 3), 9), evaluations, seed) for seed in range(4)]
        assert all(torch.allclose(values.sum(dim=0), whole - nothing, atol=1e-9) for values in found)
        misses.append(np.mean([np.abs(values.numpy() - wanted).mean() for values in found]))
    assert misses[0] > 1.3 * misses[1]
    assert misses[1] > 1.3 * misses[2]


def test_a_group_shares_its_value_equally() -> None:
    group_of = groups((3, 5), 6)
    assert group_of.tolist() == [[0, 0, 1, 1, 2], [0, 0, 1, 1, 2], [3, 3, 4, 4, 5]]
    assert groups((4, 4), 1).max() == 0
    assert groups((4, 7), 28).tolist() == torch.arange(28).reshape(4, 7).tolist()
    explainer = made("kernel_shap", players=6, evaluations=64)
    game = tangled_game(15)
    found = explainer._attribution(Played(game, (3, 5))).T
    wanted = exact_shapley(game, cells_of(group_of), 15) / [[4], [4], [2], [2], [2], [1]]
    assert np.allclose(found.numpy(), wanted[group_of.flatten().numpy()].T, atol=1e-5)


def test_coalitions_have_the_weights_of_the_shapley_kernel() -> None:
    chosen, weights = coalitions(6, 62, 0)
    assert len({tuple(row) for row in chosen.tolist()}) == 62
    sizes = chosen.sum(axis=1)
    by_size = [weights[sizes == size].sum() for size in range(1, 6)]
    masses = np.array([1 / (size * (6 - size)) for size in range(1, 6)])
    assert np.allclose(by_size, masses / masses.sum())
    assert all(np.ptp(weights[sizes == size]) < 1e-12 for size in range(1, 6))


def test_sampled_coalitions_are_different_come_in_pairs_and_are_no_more_than_allowed() -> None:
    chosen, weights = coalitions(20, 200, 3)
    rows = {tuple(row) for row in chosen.tolist()}
    assert len(rows) == len(chosen) <= 200
    assert len(chosen) >= 190
    assert all(tuple(not shown for shown in row) in rows for row in rows)
    assert weights.sum() == pytest.approx(1)
    assert (chosen.sum(axis=1) == 1).sum() == 20
    assert np.array_equal(coalitions(20, 200, 3)[0], chosen)
    assert not np.array_equal(coalitions(20, 200, 4)[0], chosen)


def test_on_a_model_the_map_sums_to_what_the_image_gains_over_the_baseline() -> None:
    explainer = made("kernel_shap", players=4, evaluations=16, baseline="black")
    rgb = torch.from_numpy(image(seed=0))
    texts = F.normalize(torch.randn(1, 8, 48, generator=torch.Generator().manual_seed(0)), dim=-1)
    heat = explainer.maps(rgb, texts).values
    against = explainer.maps(rgb, -texts).values
    masks, black = torch.tensor([1.0, 0])[:, None, None], torch.zeros(32, 32, 3)
    ends = masked_embeddings(explainer.model.tower, rgb[0], masks, black)
    # What is cut off a map is what the opposite phrase keeps.
    gain = texts[0] @ (ends[0] - ends[1])
    assert torch.allclose((heat - against).sum(dim=-1)[0], gain, atol=1e-5)
    assert gain.abs().max() > 0.05


def test_too_few_evaluations_are_refused() -> None:
    with pytest.raises(ValidationError, match="64 players need at least 256 evaluations"):
        KernelShapConfig(evaluations=100)


# Partition SHAP


SHAP_SAYS = [-0.027608645488, 0.032140716219, 0.29101546733, 0.110425985757, 0.361668628819, 0.069013485899]
"""What `shap.explainers.Partition` of shap 0.51.0 gives for the sine of the sum of the shown of 1 .. 6, on 2 x 3 cells
in the same halves. It is written down, because shap brings 250 MB."""


def test_full_depth_gives_what_shap_gives() -> None:
    numbers = torch.arange(1.0, 7, dtype=torch.float64)[:, None]
    image = Played(lambda shares: torch.sin(shares @ numbers), (2, 3))
    assert owen_values(image, 10_000).flatten().tolist() == pytest.approx(SHAP_SAYS, abs=1e-11)


@pytest.mark.parametrize("most", [4, 9, 40, 200])
def test_the_values_sum_to_the_gain_however_early_it_ends(most: int) -> None:
    image = Played(tangled_game(20), (4, 5))
    found = owen_values(image, most)
    whole, nothing = (image.game(torch.full((1, 20), share, dtype=torch.float64))[0] for share in (1.0, 0.0))
    assert torch.allclose(found.sum(dim=0), whole - nothing, atol=1e-9)
    assert image.asked <= most
    assert len({tuple(row) for row in found.tolist()}) > 1


@pytest.mark.parametrize("grid_hw", [(1, 1), (1, 3), (4, 5)])
def test_cells_that_do_not_interact_get_what_they_add(grid_hw: tuple[int, int]) -> None:
    game, parts = linear_game(grid_hw[0] * grid_hw[1])
    assert torch.allclose(owen_values(Played(game, grid_hw), 10_000), parts, atol=1e-9)


def test_the_half_where_more_happens_is_cut_first() -> None:
    parts = torch.zeros(16, 1, dtype=torch.float64)
    parts[3], parts[0] = 10, 1
    image = Played(lambda shares: shares @ parts, (4, 4), masks_per_step=2)
    found = owen_values(image, 1 + 2 * 15).reshape(4, 4)
    assert found[0, 3] == pytest.approx(10)
    assert torch.allclose(found[:2, :2], torch.full((2, 2), 0.25, dtype=torch.float64))


def test_a_rectangle_is_cut_across_its_longer_side() -> None:
    assert Rectangle(0, 0, 3, 2).halves() == (Rectangle(0, 0, 1, 2), Rectangle(1, 0, 3, 2))
    assert Rectangle(1, 1, 2, 4).halves() == (Rectangle(1, 1, 2, 2), Rectangle(1, 2, 2, 4))
