"""Partition SHAP: Owen values by their definition, as a mean over the orders that keep halves together, and shap's."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from stages.explainers.perturbation.partition_shap import Rectangle, owen_values
from tests.stages.explainers.perturbation.games import Game, Played, exact_shapley, linear_game, tangled_game, worth


def orders(part: Rectangle, grid_hw: tuple[int, int]) -> list[tuple[int, ...]]:
    """All orders of a rectangle's cells in which every half comes as a whole."""
    if part.cells == 1:
        return [(part.top * grid_hw[1] + part.left,)]
    first, second = (orders(half, grid_hw) for half in part.halves())
    return [pair for a, b in product(first, second) for pair in (a + b, b + a)]


def owen_by_orders(game: Game, grid_hw: tuple[int, int]) -> np.ndarray:
    """What each cell adds when it comes, in the mean over these orders: (N, E)."""
    cells = grid_hw[0] * grid_hw[1]
    every = orders(Rectangle(0, 0, *grid_hw), grid_hw)
    values = np.zeros((cells, len(worth(game, cells, ()))))
    for order in every:
        for place, cell in enumerate(order):
            values[cell] += worth(game, cells, order[: place + 1]) - worth(game, cells, order[:place])
    return values / len(every)


SHAP_SAYS = {
    "both": [-0.027608645488, 0.032140716219, 0.29101546733, 0.110425985757, 0.361668628819, 0.069013485899],
    "shown": [-0.72213909868, -0.412813903451, 0.488050552984, 1.152203643927, 0.63477280029, -0.303418356533],
    "hidden": [0.666921807704, 0.669626568166, -0.0985508506, -0.931351672412, -0.074749495393, 0.604759281071],
}
"""What `shap.explainers.Partition` of shap 0.51.0 gives for the sine of the sum of the shown of 1 .. 6, on 2 x 3 cells
in the same halves, with `fixed_context` None, 1 and 0. It is written down, because shap brings 250 MB."""


@pytest.mark.parametrize("context", SHAP_SAYS)
def test_full_depth_gives_what_shap_gives(context: str) -> None:
    numbers = torch.arange(1.0, 7, dtype=torch.float64)[:, None]
    image = Played(lambda shares: torch.sin(shares @ numbers), (2, 3))
    assert owen_values(image, 10_000, context).flatten().tolist() == pytest.approx(SHAP_SAYS[context], abs=1e-11)


@pytest.mark.parametrize("grid_hw", [(1, 1), (1, 3), (2, 3), (2, 4), (3, 3)])
def test_full_depth_gives_the_owen_values(grid_hw: tuple[int, int]) -> None:
    game = tangled_game(grid_hw[0] * grid_hw[1])
    found = owen_values(Played(game, grid_hw), 10_000, "both").numpy()
    wanted = owen_by_orders(game, grid_hw)
    assert np.allclose(found, wanted, atol=1e-9)
    if wanted.size > 9:
        assert np.abs(wanted - exact_shapley(game, [(cell,) for cell in range(len(wanted))], len(wanted))).max() > 0.01


@pytest.mark.parametrize("context", ["both", "shown", "hidden"])
@pytest.mark.parametrize("most", [4, 9, 40, 200])
def test_the_values_sum_to_the_gain_however_early_it_ends(context: str, most: int) -> None:
    image = Played(tangled_game(20), (4, 5))
    found = owen_values(image, most, context)
    whole, nothing = (image.game(torch.full((1, 20), share, dtype=torch.float64))[0] for share in (1.0, 0.0))
    assert torch.allclose(found.sum(dim=0), whole - nothing, atol=1e-9)
    assert image.asked <= most
    assert len({tuple(row) for row in found.tolist()}) > 1


@pytest.mark.parametrize("context", ["both", "shown", "hidden"])
def test_cells_that_do_not_interact_get_what_they_add(context: str) -> None:
    game, parts = linear_game(20)
    image = Played(game, (4, 5))
    assert torch.allclose(owen_values(image, 10_000, context), parts, atol=1e-9)
    if context != "both":
        assert image.asked == 1 + 2 * 19


def test_one_context_gives_two_cells_the_first_or_the_last_share_and_half_of_what_they_do_together() -> None:
    def both_or_nothing(shares: torch.Tensor) -> torch.Tensor:
        return (2 * shares[:, :1] + 3 * shares[:, 1:]) + 10 * shares.prod(dim=1, keepdim=True)

    for context in ("both", "shown", "hidden"):
        assert owen_values(Played(both_or_nothing, (1, 2)), 9, context).flatten().tolist() == [7, 8]


def test_the_half_where_more_happens_is_cut_first() -> None:
    parts = torch.zeros(16, 1, dtype=torch.float64)
    parts[3], parts[0] = 10, 1
    image = Played(lambda shares: shares @ parts, (4, 4), masks_per_step=2)
    found = owen_values(image, 1 + 2 * 4, "shown").reshape(4, 4)
    assert found[0, 3] == pytest.approx(10)
    assert torch.allclose(found[:2, :2], torch.full((2, 2), 0.25, dtype=torch.float64))


def test_a_rectangle_is_cut_across_its_longer_side() -> None:
    assert Rectangle(0, 0, 3, 2).halves() == (Rectangle(0, 0, 1, 2), Rectangle(1, 0, 3, 2))
    assert Rectangle(1, 1, 2, 4).halves() == (Rectangle(1, 1, 2, 2), Rectangle(1, 2, 2, 4))
