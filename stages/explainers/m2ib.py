"""M2IB (Wang, Rudner, Wilson, NeurIPS 2023, arXiv 2312.17174): how much of each token the phrase's cosine needs.

Noise takes the place of a part of the tokens x at one layer, and the part that passes has a
price. With a weight l = sigmoid(a) for every channel of every token, noise n from N(0, v), and
z = l x + (1 - l) n in place of x:

    L(a) = beta · mean KL(N(l x, (1 - l)^2 v) || N(0, v)) - mean cos(image embedding of z, text embedding)
    H_i  = sum over channels of KL at token i, after `steps` steps of Adam from a = 5

KL, in nats, bounds the information of z about x. So H is the information about the image that
the model needs to find the phrase in it. The bottleneck stands before a block of a transformer
with a class token, which gets weights too and has no place in the map. Where one attention
pools the tokens of a trunk, or they are averaged, it stands before that, which is our reading.

Deviations: noise comes in pairs n and -n, so that its linear effects cancel; it has a seed of
its own and is the same for every image and phrase; the map is taken after the last step, where
the authors' code takes it before. The settings are those of the authors' code: its layer 9,
counted from 0, is `depth: 0.83` of twelve blocks, with the bottleneck behind it.

Shapes: B images (1 here), P phrases, S samples, N patches, T tokens, D width, E embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from stages.contract.values import Sides
from stages.explain.config import ExplainerConfig, ShareBelowOne
from stages.explain.maps import Maps
from stages.explainers.attention.walk import SingleImageExplainer, TrunkTower, embedding_of, run_trunk
from stages.shared.model.clip import ClipModel
from stages.shared.model.towers.layers import TensorFunction
from stages.shared.model.towers.pooled import by_tower
from stages.shared.model.towers.vision import VisionTower

_OPEN: Final = 5.0
"""a before the first step: l is 0.993, nearly everything is let through."""

Parts = tuple[
    Callable[[Tensor], tuple[Tensor, Tensor | None]],
    Callable[[Tensor, Sides], Tensor],
]
"""Pixels -> tokens (B, T, D) at the bottleneck, the patches last, and `Maps.tokens`; and the
rest of the tower: tokens (S, T, D) of a grid -> embeddings (S, E), not normalised."""


class M2ibConfig(ExplainerConfig):
    """M2IB: an information bottleneck before one layer."""

    kind: Literal["m2ib"] = "m2ib"
    depth: ShareBelowOne = Field(
        0.83,
        description="With a class token: share of all blocks before the bottleneck; one at least comes after it.",
    )


class M2ib(SingleImageExplainer[M2ibConfig]):
    """The information about each patch that the cosine needs. `HeatMap.similarity` is the cosine with no noise."""

    config_type = M2ibConfig
    cost = "perturbation"

    def __init__(self, config: M2ibConfig, model: ClipModel) -> None:
        super().__init__(config, model)
        self.bottleneck = Bottleneck()
        self._parts: Parts = by_tower(
            model.tower, blocks=self._parts_of_blocks, pooled=_parts_of_trunk, averaged=_parts_of_trunk
        )

    def _maps_of_image(self, rgb: Tensor) -> Maps:
        grid_hw = self.model.tower.grid_of(rgb)
        tokens, rest = self._parts
        with torch.no_grad():
            x, patches = tokens(rgb)
            embedding = rest(x, grid_hw)

        def heat(texts: Tensor) -> Tensor:
            values = x.new_zeros(1, texts.shape[1], grid_hw[0] * grid_hw[1])
            for row, text in zip(values[0], texts[0], strict=True):
                if text.any():
                    a = self.bottleneck.fit(x[0], partial(self._cosines, text, grid_hw))
                    row[:] = self.bottleneck.nats(x[0], a).sum(dim=-1).clamp(min=0)[-len(row) :]
            return values

        return Maps(heat=heat, embedding=embedding, tokens=patches)

    def _cosines(self, text: Tensor, grid_hw: Sides, z: Tensor) -> Tensor:
        return F.normalize(self._parts[1](z, grid_hw), dim=-1) @ text

    def _parts_of_blocks(self, tower: VisionTower) -> Parts:
        layers = len(tower.blocks)
        affinity_block = self.early_block
        first = min(round(self.config.depth * layers), layers - 1)
        blocks = tuple(block.float() for block in tower.blocks[first:])

        def tokens(rgb: Tensor) -> tuple[Tensor, Tensor | None]:
            x, _ = tower.tokens_before(rgb, first)
            early = None if affinity_block is None else tower.tokens_before(rgb, affinity_block)[0][:, 1:]
            return x.float(), early

        def embedding(z: Tensor, _: Sides) -> Tensor:
            for block in blocks:
                z = block(z)
            return tower.head(z[:, 0])

        return tokens, embedding


def _parts_of_trunk(tower: TrunkTower) -> Parts:
    return partial(run_trunk, tower), partial(embedding_of, tower)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bottleneck:
    """Fits the weights of noise to a score of the tokens.

    Attributes:
        beta: Price of a nat, of which the mean over all channels of all tokens is taken.
        steps: Steps of Adam.
        learning_rate: Adam's.
        samples: Samples of the noise in each step, half of them the negatives of the others.
        variance: v, the variance of the noise, in the scale of the tokens.
    """

    beta: float = 0.1
    steps: int = 10
    learning_rate: float = 1.0
    samples: int = 10
    variance: float = 1.0

    def fit(self, x: Tensor, score: TensorFunction) -> Tensor:
        """Return a of the module's formula (T, D), for tokens (T, D) and their score, (S, T, D) -> (S,)."""
        generator = torch.Generator().manual_seed(0)
        with torch.enable_grad():
            a = torch.full_like(x, _OPEN, requires_grad=True)
            adam = torch.optim.Adam([a], lr=self.learning_rate)
            for _ in range(self.steps):
                (a.grad,) = torch.autograd.grad(self.objective(x, a, score, generator), a)
                adam.step()
        return a.detach()

    def objective(self, x: Tensor, a: Tensor, score: TensorFunction, generator: torch.Generator) -> Tensor:
        """Return L of the module's formula, with fresh noise."""
        noise = torch.randn(self.samples // 2, *x.shape, generator=generator).to(x.device)
        half = noise * self.variance**0.5
        through = a.sigmoid()
        z = through * x + (1 - through) * torch.cat([half, -half])
        return self.beta * self.nats(x, a).mean() - score(z).mean()

    def nats(self, x: Tensor, a: Tensor) -> Tensor:
        """Return KL of the module's formula, for every channel of every token (T, D)."""
        closed = F.logsigmoid(-a)
        mean = a.sigmoid() * x
        return (mean.square() / self.variance + (2 * closed).exp() - 1) / 2 - closed
