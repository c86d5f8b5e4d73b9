"""KernelSHAP (Lundberg and Lee, NeurIPS 2017, arXiv 1705.07874): Shapley values by weighted least squares.

The players are square groups of patches; a coalition S is an image that shows these and hides the others. With u(S) its
unit embedding and k(S) the Shapley kernel, the values of the players are

    minimise   sum_S k(S) |u(S) - u(nothing) - sum_{j in S} d_j|^2
    subject to sum_j d_j = u(everything) - u(nothing)

solved exactly, for the vector u at once (`explainer`): d_j . t is the Shapley value of the cosine with phrase t. A
group's value is shared equally by its patches, so that the attributions sum to c(everything) - c(nothing) (before
negative ones are cut). With all 2^M - 2 coalitions these are the exact Shapley values; with fewer, see `coalitions`.

Deviations: none for the method; no L1 selection of players, which the authors' package may use; patches in groups, so
that 512 coalitions say something about each of at most 64 players. `players` of at least the number of patches restores
single patches, which deserve many thousands of `evaluations`. The cost is `evaluations` forward passes for each image.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from stages.explainers.perturbation.coalitions import coalitions
from stages.explainers.perturbation.explainer import Attribution, MaskedImage, Perturbation, PerturbationConfig, along


class KernelShapConfig(PerturbationConfig):
    """KernelSHAP over groups of patches."""

    kind: Literal["kernel_shap"] = "kernel_shap"

    players: Annotated[int, Field(ge=1, le=4096)] = 64
    """At most so many groups of patches; the groups are the smallest squares that make no more."""

    evaluations: Annotated[int, Field(ge=4, le=1_000_000)] = 512
    """At most so many coalitions, each one forward pass; at least four for each player."""

    seed: Annotated[int, Field(ge=0)] = 0
    """Of the coalitions, which are the same for all images of one grid."""

    @model_validator(mode="after")
    def _enough_for_all(self) -> Self:
        if self.evaluations < 4 * self.players:
            raise ValueError(f"{self.players} players need at least {4 * self.players} evaluations")
        return self


class KernelShap(Perturbation[KernelShapConfig]):
    """KernelSHAP: Shapley values from weighted coalitions."""

    config_type = KernelShapConfig

    def attribution(self, image: MaskedImage) -> Attribution:
        """See `Perturbation.attribution`."""
        group_of = groups(image.grid_hw, self.config.players)
        sizes = group_of.flatten().bincount()
        values = shapley_values(image, group_of, self.config.evaluations, self.config.seed)
        return along((values / sizes[:, None].to(values))[group_of.flatten().to(values.device)])


def groups(grid_hw: tuple[int, int], most: int) -> Tensor:
    """Group of each cell, (rows, columns), numbered from 0: the smallest squares that are no more than `most`."""
    rows, columns = grid_hw
    side = next(side for side in range(1, max(grid_hw) + 1) if -(-rows // side) * -(-columns // side) <= most)
    across = -(-columns // side)
    return (torch.arange(rows) // side)[:, None] * across + (torch.arange(columns) // side)[None]


def shapley_values(image: MaskedImage, group_of: Tensor, evaluations: int, seed: int) -> Tensor:
    """Shapley values of the unit embedding, float64 (players, E)."""
    players = int(group_of.max()) + 1
    nothing = image.embeddings(torch.zeros(1, *group_of.shape))[0].double()
    gain = image.whole.double() - nothing
    if players == 1:
        return gain[None]
    chosen, weights = coalitions(players, evaluations, seed)
    shown = torch.from_numpy(chosen)
    found = image.embeddings(shown[:, group_of].float()).double() - nothing
    shown, weight = shown.to(found), torch.from_numpy(weights).to(found.device)
    weighted = shown.mT * weight
    # Lagrange: what the unconstrained solution misses of the sum is spread by the inverse of the normal matrix.
    ones = torch.ones(players, 1, dtype=torch.float64, device=found.device)
    solved = torch.linalg.solve(weighted @ shown, torch.cat([weighted @ found, ones], dim=1))
    free, spread = solved[:, :-1], solved[:, -1:]
    values: Tensor = free + spread / spread.sum() * (gain - free.sum(dim=0))
    return values
