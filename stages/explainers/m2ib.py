"""M2IB (Wang, Rudner, Wilson, NeurIPS 2023, arXiv 2312.17174): how much of each token the phrase's cosine needs.

Noise takes the place of a part of the tokens x at one layer, and the part that passes has a
price. With a weight l = sigmoid(a) for every channel of every token, noise n from N(0, 1), and
z = l x + (1 - l) n in place of x:

    L(a) = beta · mean KL(N(l x, (1 - l)^2) || N(0, 1)) - mean cos(image embedding of z, text embedding)
    H_i  = sum over channels of KL at token i, after ten steps of Adam from a = 5

KL, in nats, bounds the information of z about x. So H is the information about the image that
the model needs to find the phrase in it. The bottleneck stands before a block of a transformer
with a class token, which gets weights too and has no place in the map. Where one attention
pools the tokens of a trunk, or they are averaged, it stands before that, which is our reading.

Deviations: noise comes in pairs n and -n, so that its linear effects cancel; it has a seed of
its own and is the same for every image and phrase; the map is taken after the last step, where
the authors' code takes it before. The settings are those of the authors' code: its layer 9,
counted from 0, is `DEPTH` of twelve blocks, with the bottleneck behind it.

Shapes: B images (1 here), P phrases, S samples, N patches, T tokens, D width, E embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from phrasebox.stages.contract.values import Sides
from phrasebox.stages.explain.config import ExplainerConfig
from phrasebox.stages.explain.maps import Maps
from phrasebox.stages.explainers.walk import SingleImageExplainer
from phrasebox.stages.model.clip import ClipModel
from phrasebox.stages.model.towers.dense import dense
from phrasebox.stages.model.towers.layers import TensorFunction
from phrasebox.stages.model.towers.pooled import TrunkTower, by_tower
from phrasebox.stages.model.towers.vision import VisionTower

DEPTH: Final = 0.83  # share of a transformer's blocks before the bottleneck; at least one comes after it
BETA: Final = 0.1  # price of a nat, of which the mean over all channels of all tokens is taken
SAMPLES: Final = 10  # of the noise in each step, half of them the negatives of the others

_OPEN: Final = 5.0
"""a before the first step: l is 0.993, nearly everything is let through."""

Parts = tuple[TensorFunction, Callable[[Tensor, Sides], Tensor]]
"""Pixels -> tokens (B, T, D) at the bottleneck, the patches last; and the rest of the tower:
tokens (S, T, D) of a grid -> embeddings (S, E), not normalised."""


class M2ibConfig(ExplainerConfig):
    """M2IB: an information bottleneck before one layer."""

    kind: Literal["m2ib"] = "m2ib"


class M2ib(SingleImageExplainer[M2ibConfig]):
    """The information about each patch that the cosine needs. `HeatMap.similarity` is the cosine with no noise."""

    config_type = M2ibConfig
    cost = "perturbation"

    def __init__(self, config: M2ibConfig, model: ClipModel) -> None:
        super().__init__(config, model)
        self._parts: Parts = by_tower(
            model.tower, blocks=_split_blocks, pooled=_split_trunk, averaged=_split_trunk
        )

    @torch.no_grad()
    def _maps_of_image(self, rgb: Tensor) -> Maps:
        tower = self.model.tower
        grid_hw = tower.grid_of(rgb)
        tokens, rest = self._parts
        x = tokens(rgb)[0]
        features = dense(tower, rgb, block=self.early_block)

        def cosines(text: Tensor, z: Tensor) -> Tensor:
            return F.normalize(rest(z, grid_hw), dim=-1) @ text

        def heat(texts: Tensor) -> Tensor:
            values = x.new_zeros(1, texts.shape[1], grid_hw[0] * grid_hw[1])
            for row, text in zip(values[0], texts[0], strict=True):
                if text.any():
                    a = fit_bottleneck(x, partial(cosines, text))
                    row[:] = nats(x, a).sum(dim=-1).clamp(min=0)[-len(row) :]
            return values

        return Maps(heat=heat, embedding=features.embedding, tokens=features.tokens)


def _split_blocks(tower: VisionTower) -> Parts:
    layers = len(tower.blocks)
    first = min(round(DEPTH * layers), layers - 1)
    blocks = [block.float() for block in tower.blocks[first:]]

    def embedding(z: Tensor, _: Sides) -> Tensor:
        for block in blocks:
            z = block(z)
        return tower.head(z[:, 0])

    return lambda rgb: tower.tokens_before(rgb, first)[0].float(), embedding


def _split_trunk(tower: TrunkTower) -> Parts:
    return lambda rgb: tower.embed(rgb).float(), tower.embedding_of


def fit_bottleneck(
    x: Tensor, score: TensorFunction, beta: float = BETA, steps: int = 10, learning_rate: float = 1.0
) -> Tensor:
    """Return a of the module's formula (T, D), for tokens (T, D) and their score, (S, T, D) -> (S,).

    `steps` are those of Adam, with its `learning_rate`.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.enable_grad():
        a = torch.full_like(x, _OPEN, requires_grad=True)
        adam = torch.optim.Adam([a], lr=learning_rate)
        for _ in range(steps):
            noise = torch.randn(SAMPLES // 2, *x.shape, generator=generator).to(x.device)
            through = a.sigmoid()
            z = through * x + (1 - through) * torch.cat([noise, -noise])
            loss = beta * nats(x, a).mean() - score(z).mean()
            (a.grad,) = torch.autograd.grad(loss, a)
            adam.step()
    return a.detach()


def nats(x: Tensor, a: Tensor) -> Tensor:
    """Return KL of the module's formula, for every channel of every token (T, D)."""
    closed = F.logsigmoid(-a)
    return ((a.sigmoid() * x).square() + (2 * closed).exp() - 1) / 2 - closed
