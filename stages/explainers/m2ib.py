"""M2IB (Wang, Rudner, Wilson, NeurIPS 2023, arXiv 2312.17174): how much of each token the phrase's cosine needs.

Noise takes the place of what the tokens x at one layer say, and what is let through is paid for. With a weight
l = sigmoid(a) for every channel of every token, noise n from N(0, v), and z = l x + (1 - l) n in place of x:

    L(a) = beta · mean KL(N(l x, (1 - l)^2 v) || N(0, v)) - mean cos(image embedding of z, text embedding)
    H_i  = sum over channels of KL at token i, after `steps` steps of Adam from a = 5

KL, in nats, bounds what z tells of x, so that H is what the image must tell about itself for the phrase to be found in
it. The bottleneck stands before a block of a transformer with a class token, which gets weights too and has no place in
the map; where one attention pools the tokens of a trunk, or they are averaged, it stands before that, which is our
reading.

Deviations: noise comes in pairs n and -n, so that what is linear in it cancels; it has a seed of its own and is the
same for every image and phrase; the map is taken after the last step, where the authors' code takes it before. The
settings are those of the authors' code: its layer 9, counted from 0, is `depth: 0.83` of twelve blocks, with the
bottleneck behind it.

The cost for each phrase is `steps` times `samples` passes, forwards and back, through what is behind the bottleneck.
Shapes: B images, P phrases, S samples, N patches, T tokens, D width, E embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Final, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from stages.explain.base import Explainer, Maps, cosines_of
from stages.explain.config import ExplainerConfig
from stages.shared.model.clip import ClipModel
from stages.shared.model.towers.averaged import AveragedTower
from stages.shared.model.towers.pooled import PooledTower
from stages.shared.model.towers.vision import VisionTower

_OPEN: Final = 5.0
"""a before the first step: l is .993, nearly everything is let through."""

Score = Callable[[Tensor], Tensor]
"""Tokens (S, T, D) -> what is wanted of them, (S,)."""


class M2ibConfig(ExplainerConfig):
    """M2IB: an information bottleneck before one layer."""

    kind: Literal["m2ib"] = "m2ib"
    contrast: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0

    depth: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.83
    """With a class token: the share of all blocks that come before the bottleneck; one at least comes after it. Without
    effect on other towers."""

    beta: Annotated[float, Field(gt=0.0)] = 0.1
    """What a nat costs, of which the mean over all channels of all tokens is taken."""

    steps: Annotated[int, Field(ge=1)] = 10
    """Steps of Adam."""

    learning_rate: Annotated[float, Field(gt=0.0)] = 1.0
    """Of Adam."""

    samples: Annotated[int, Field(ge=2, multiple_of=2)] = 10
    """Samples of the noise in each step, half of them the others' negatives."""

    variance: Annotated[float, Field(gt=0.0)] = 1.0
    """v, of the noise, in the scale of the tokens."""

    seed: int = 0
    """Of the noise."""


class M2ib(Explainer[M2ibConfig]):
    """How much the cosine needs to know of each patch. `similarity` is the cosine of image and phrase, without
    noise."""

    config_type = M2ibConfig
    towers = ("class_token", "attention_pool", "latent_pool", "average_pool")
    needs = "tokens that stand for places"
    cost = "perturbation"

    def __init__(self, config: M2ibConfig, model: ClipModel) -> None:
        super().__init__(config, model)
        tower = model.tower
        assert isinstance(tower, VisionTower | PooledTower | AveragedTower)  # noqa: S101
        self.tower: VisionTower | PooledTower | AveragedTower = tower.float_head()
        self.bottleneck = Bottleneck(
            beta=config.beta,
            steps=config.steps,
            learning_rate=config.learning_rate,
            samples=config.samples,
            variance=config.variance,
            seed=config.seed,
        )
        self.before = 0
        if isinstance(tower, VisionTower):
            self.before = min(round(config.depth * len(tower.blocks)), len(tower.blocks) - 1)
            self.blocks = tuple(block.float() for block in tower.blocks[self.before :])

    def maps(self, rgb: Tensor, texts: Tensor) -> Maps:
        """See `Explainer.maps`."""
        grid_hw = self.tower.placement.grid_hw(rgb.shape[1], rgb.shape[2])
        with torch.no_grad():
            x, kept = self._tokens(rgb)
            # One image at a time, so that a map has the same bits whatever its neighbours are.
            embedding = torch.cat([self._embedding(own, grid_hw) for own in x.split(1)])
        parts = texts.split(self.config.phrases_per_step, dim=1)
        cosines = torch.cat([cosines_of(embedding, part) for part in parts], dim=1)
        others = x.shape[1] - grid_hw[0] * grid_hw[1]
        values = x.new_zeros(*texts.shape[:2], x.shape[1] - others)
        for own, rows, phrases in zip(x, values, texts, strict=True):
            for row, text in zip(rows, phrases, strict=True):
                if text.any():
                    row[:] = self._needed(own, text, grid_hw)[others:]
        return Maps(values, cosines, None, kept, embedding)

    def _needed(self, x: Tensor, text: Tensor, grid_hw: tuple[int, int]) -> Tensor:
        """Tokens (T, D) and a unit text embedding (E,) -> nats (T,)."""

        def score(z: Tensor) -> Tensor:
            return F.normalize(self._embedding(z, grid_hw), dim=-1) @ text

        return self.bottleneck.nats(x, self.bottleneck.fitted(x, score)).sum(dim=-1).clamp(min=0)

    def _tokens(self, rgb: Tensor) -> tuple[Tensor, Tensor | None]:
        """Tokens (B, T, D) at the bottleneck, float32, and `Maps.tokens`."""
        tower = self.tower
        if not isinstance(tower, VisionTower):
            tokens = tower.embed(rgb).float()
            return tokens, tokens[:, tower.pool.others :] if isinstance(tower, PooledTower) else tokens
        if self.affinity.block is None:
            return tower.tokens_before(rgb, self.before)[0].float(), None
        numbers = sorted((self.before, self.affinity.block))
        later, early = tower.tokens_before(rgb, numbers[1], numbers[0])
        assert early is not None  # noqa: S101
        x, kept = (later, early) if self.before == numbers[1] else (early, later)
        return x.float(), kept[:, 1:]

    def _embedding(self, z: Tensor, grid_hw: tuple[int, int]) -> Tensor:
        """Tokens (S, T, D) behind the bottleneck -> embeddings (S, E), not normalised."""
        tower = self.tower
        if isinstance(tower, PooledTower):
            return tower.pool.embedding(tower.pool.look(z, grid_hw))
        if isinstance(tower, AveragedTower):
            return tower.finish(z.mean(dim=1))
        for block in self.blocks:
            z = block(z)
        return tower.head(z[:, 0])


@dataclass(frozen=True, slots=True, kw_only=True)
class Bottleneck:
    """Noise with weights that are fitted to what is wanted of the tokens.

    Attributes:
        beta, steps, learning_rate, samples, variance, seed: see `M2ibConfig`.
    """

    beta: float
    steps: int
    learning_rate: float
    samples: int
    variance: float
    seed: int

    def fitted(self, x: Tensor, score: Score) -> Tensor:
        """Tokens (T, D) -> a of the module's formula, (T, D)."""
        generator = torch.Generator().manual_seed(self.seed)
        with torch.enable_grad():
            a = torch.full_like(x, _OPEN, requires_grad=True)
            adam = torch.optim.Adam([a], lr=self.learning_rate)
            for _ in range(self.steps):
                (a.grad,) = torch.autograd.grad(self.objective(x, a, score, generator), a)
                adam.step()
        return a.detach()

    def objective(self, x: Tensor, a: Tensor, score: Score, generator: torch.Generator) -> Tensor:
        """L of the module's formula, with fresh noise."""
        half = torch.randn(self.samples // 2, *x.shape, generator=generator).to(x.device) * self.variance**0.5
        through = a.sigmoid()
        z = through * x + (1 - through) * torch.cat([half, -half])
        return self.beta * self.nats(x, a).mean() - score(z).mean()

    def nats(self, x: Tensor, a: Tensor) -> Tensor:
        """KL of the module's formula, for every channel of every token (T, D)."""
        closed = F.logsigmoid(-a)
        mean = a.sigmoid() * x
        return (mean.square() / self.variance + (2 * closed).exp() - 1) / 2 - closed
