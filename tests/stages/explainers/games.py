"""Images whose unit embedding is any function of the cells that are shown, so that attributions are known by hand."""

from collections.abc import Callable

import torch
from torch import Tensor

Game = Callable[[Tensor], Tensor]
"""Shares of the cells that are shown (n, N), float64 -> (n, E)."""


class RecordedGame:
    """In place of `MaskedImage`: a game, and a note of every mask that was asked for."""

    def __init__(self, game: Game, grid_hw: tuple[int, int]) -> None:
        self.game = game
        self.grid_hw = grid_hw
        self.mask_count = 0
        self.whole = self.embeddings(torch.ones(1, *grid_hw))[0]
        self.mask_count = 0

    def embeddings(self, masks: Tensor) -> Tensor:
        self.mask_count += len(masks)
        return self.game(masks.double().flatten(1))


def linear_game(cells: int, size: int = 3, seed: int = 0) -> tuple[Game, Tensor]:
    """Each cell adds a vector of its own (N, E), on a constant."""
    generator = torch.Generator().manual_seed(seed)
    parts = torch.randn(cells, size, generator=generator, dtype=torch.float64)
    return (lambda shares: 5 + shares @ parts), parts


def tangled_game(cells: int, size: int = 3, seed: int = 0) -> Game:
    """Cells help and hinder each other in pairs, triples and more."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(cells, 6, generator=generator, dtype=torch.float64)
    second = torch.randn(6, size, generator=generator, dtype=torch.float64)
    return lambda shares: torch.sin(shares @ first) @ second + 1
