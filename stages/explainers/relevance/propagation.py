"""From a phrase's cosine back to the tokens of an image: relevance by the rules of `rules.py`.

    c    = sum_d e_d t_d / |e|             the norm of the image's embedding e is held
    R_i  = sum_d x_i,d dc / dx_i,d         x_i what stands for place i, the gradient by the rules

On a transformer with a class token x_i is the embedding of patch i before the position is added, and the whole network
is gone through. The projection of the patch is linear, so R_i is also the sum of its pixels' relevance, by whichever
rule of the linear layers. On other towers the trunk is not gone through: x_i are the tokens that the attention pools,
or the tokens that are averaged.

R is linear in the text embedding t: the relevance of a difference of texts is the difference of their relevances.

The cost is the trunk in float32, and one backward pass through it for each phrase.

Shapes: B images (1 here), P phrases, N patches, D width, E embedding.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stages.explainers.attention.walk import gradients_at
from stages.explainers.relevance.config import RelevanceConfig
from stages.explainers.relevance.rules import Rules
from stages.shared.model.towers.averaged import AveragedTower
from stages.shared.model.towers.pooled import PooledTower
from stages.shared.model.towers.tower import Tower
from stages.shared.model.towers.vision import VisionTower


@dataclass(frozen=True, slots=True, kw_only=True)
class Relevance:
    """What comes back for one image and P phrases.

    Attributes:
        signed: float32 (1, P, N). Positive where a place speaks for the phrase.
        cosines: float32 (1, P).
        embedding: float32 (1, E), of the image in any scale.
        tokens: see `Maps.tokens`.
    """

    signed: Tensor
    cosines: Tensor
    embedding: Tensor
    tokens: Tensor | None


@dataclass(frozen=True, slots=True)
class Passed:
    """One forward pass by the rules.

    Attributes:
        places: (1, N, D), what stands for the places; a leaf.
        embedding: (1, E), as a function of `places`.
        tokens: see `Maps.tokens`.
    """

    places: Tensor
    embedding: Tensor
    tokens: Tensor | None


class Propagation:
    """Relevance of places for phrases, on any tower. One image at a time, see `stages.explainers.attention.walk`."""

    def __init__(self, config: RelevanceConfig, tower: Tower, kept: int | None) -> None:
        """Take a tower apart by the rules of the settings; `kept` is `Affinity.block`."""
        self.kept = kept
        self.rules = Rules(config.rule, config.activation, config.gamma)
        self.tower = tower
        self.ruled = self.rules.tower(tower) if isinstance(tower, VisionTower) else None
        self.pool = self.rules.pool(tower.pool) if isinstance(tower, PooledTower) else None
        self.finish = self.rules.chain(tower.finish.float()) if isinstance(tower, AveragedTower) else None

    def __call__(self, rgb: Tensor, texts: Tensor) -> Relevance:
        """One image, uint8 (1, height, width, 3), and unit text embeddings (1, P, E) -> relevance.

        Rows of zeros, which only fill up, have none and cost nothing.
        """
        with torch.enable_grad():
            passed = self._forward(rgb)
        found = passed.embedding.detach()
        starts = texts[0] / found.norm()
        places = passed.places.detach()
        columns = [
            (gradient * places).sum(dim=-1) for (gradient,) in gradients_at(passed.embedding, (passed.places,), starts)
        ]
        return Relevance(
            signed=torch.stack(columns, dim=1),
            # A sum for each phrase, whose bits do not depend on how many there are.
            cosines=(starts * found).sum(dim=-1)[None],
            embedding=found,
            tokens=passed.tokens,
        )

    def _forward(self, rgb: Tensor) -> Passed:
        tower = self.tower
        if self.ruled is not None:
            return self._blocks(self.ruled, rgb)
        if self.pool is not None:
            assert isinstance(tower, PooledTower)  # noqa: S101
            tokens = tower.embed(rgb).float()
            patches = tokens[:, self.pool.others :].requires_grad_()
            whole = torch.cat([tokens[:, : self.pool.others], patches], dim=1)
            seen = self.pool.look(whole, tower.placement.grid_hw(rgb.shape[1], rgb.shape[2]), ask=self.rules.ask)
            return Passed(patches, self.pool.embedding(seen), patches.detach())
        assert isinstance(tower, AveragedTower)  # noqa: S101
        assert self.finish is not None  # noqa: S101
        tokens = tower.embed(rgb).float().requires_grad_()
        return Passed(tokens, self.finish(tokens.mean(dim=1)), tokens.detach())

    def _blocks(self, tower: VisionTower, rgb: Tensor) -> Passed:
        with torch.no_grad():
            raw = replace(tower, ln_pre=None).embed(rgb).float()
            positions = tower.positions(tower.placement.grid_hw(rgb.shape[1], rgb.shape[2])).float()[1:]
        places = (raw[:, 1:] - positions).requires_grad_()
        x = torch.cat([raw[:, :1], places + positions], dim=1)
        x = x if tower.ln_pre is None else tower.ln_pre(x)
        tokens: Tensor | None = None
        for number, block in enumerate(tower.blocks):
            tokens = x[:, 1:].detach() if number == self.kept else tokens
            q, k, v = block.project(x)
            x = block.finish(x, self.rules.attend(q, k, v, block.heads))
        return Passed(places, tower.head(x[:, 0]), tokens)
