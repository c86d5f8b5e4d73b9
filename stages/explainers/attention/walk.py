"""A vision transformer's last blocks, walked in float32 with their attention as part of what can be differentiated.

For each walked block with tokens x (class token 0, patches 1..N):

    z = ln_1(x), [q, k, v] = z W_in + b_in
    A = softmax(q k' / sqrt(D / H))                   one matrix per head, rows sum to 1
    y = x + (A v) W_out + b_out, then the MLP

A method takes the gradient of a score at any of these with autograd, phrase by phrase: no hook is set, no weight
carries a gradient, and the graph is gone with the `Walked` that holds it. Blocks before the first walked one compute in
the model's own precision and have no graph. One image is walked at a time, because the attention of a whole batch would
fill the memory.

Shapes: B images (1 here), P phrases, H heads, T = N + 1 tokens, D width, E embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from stages.contract.errors import ConfigError
from stages.explain.maps import Maps, by_step, cosine_gradients, joined
from stages.shared.model.clip import ClipModel
from stages.shared.model.towers.vision import VisionTower, split_heads


@dataclass(frozen=True, slots=True, kw_only=True)
class Walked:
    """The tensors of one image, float32 and in one graph, with an entry for each walked block.

    Attributes:
        early: (1, N, D), see `Maps.tokens`; without a graph, in the model's precision.
        inputs: (1, T, D), x.
        normed: (1, T, D), z.
        attention: (1, H, T, T), A; row i is where token i looks.
        outputs: (1, T, D), the tokens after the block.
        embedding: (1, E), of the image, not normalised.
    """

    early: Tensor | None
    inputs: tuple[Tensor, ...]
    normed: tuple[Tensor, ...]
    attention: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    embedding: Tensor


@dataclass(frozen=True, slots=True)
class Traced:
    """A tower's answer to one image as a function of some tensor in it.

    Attributes:
        leaf: (1, T, D), the tensor that is differentiated by; its last N tokens are the patches.
        embedding: (1, E), in the leaf's graph.
        tokens: See `Maps.tokens`.
    """

    leaf: Tensor
    embedding: Tensor
    tokens: Tensor | None


class Walk:
    """Walks the last `blocks` of a transformer with a class token, which is only read.

    `kept` is the number of the block, from 0, whose incoming patches are `Walked.early`; None: not wanted. Raises
    ConfigError, which names `setting`, for more blocks than the model has.
    """

    def __init__(
        self, model: ClipModel, blocks: int | Literal["all"], kept: int | None = None, setting: str = "blocks"
    ) -> None:
        tower = model.tower
        assert isinstance(tower, VisionTower)  # noqa: S101
        layers = len(tower.blocks)
        if blocks != "all" and blocks > layers:
            raise ConfigError(f"explain.{setting}: {model.name} has {layers} blocks, not {blocks}")
        self.tower = tower.float_head()
        self.first = 0 if blocks == "all" else layers - blocks
        self.blocks = tuple(block.float() for block in tower.blocks[self.first :])
        self.kept = kept

    @torch.enable_grad()
    def __call__(self, rgb: Tensor) -> Walked:
        """One image, uint8 (1, height, width, 3) -> what it leaves behind."""
        with torch.no_grad():
            x, early = self.tower.tokens_before(rgb, self.first, self.kept)
        inputs, normed, attention, outputs = [], [], [], []
        x = x.float().requires_grad_()
        for number, block in enumerate(self.blocks, self.first):
            if number == self.kept:
                early = x.detach()
            z = block.ln_1(x)
            q, k, v = (split_heads(part, block.heads) for part in block.qkv(z).chunk(3, dim=-1))
            a = (q @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1)
            inputs.append(x)
            normed.append(z)
            attention.append(a)
            x = block.finish(x, (a @ v).transpose(1, 2).flatten(2))
            outputs.append(x)
        return Walked(
            early=None if early is None else early[:, 1:],
            inputs=tuple(inputs),
            normed=tuple(normed),
            attention=tuple(attention),
            outputs=tuple(outputs),
            embedding=self.tower.head(x[:, 0]),
        )


def image_by_image(maps: Callable[[Tensor, Tensor], Maps], rgb: Tensor, texts: Tensor) -> Maps:
    """Return the maps of a batch, given a function for those of one image; arguments as in `Explainer.maps`."""
    return joined([maps(image, own) for image, own in zip(rgb.split(1), texts.split(1), strict=True)])


def gradients_at(score: Tensor, wanted: Sequence[Tensor], starts: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield, for each phrase in order, a gradient for each wanted tensor, in its shape.

    Args:
        score: (1, E), what the phrases' scores are functions of, such as the embedding.
        wanted: Tensors of its graph.
        starts: (P, E), the gradient of each phrase's score at it. Rows of zeros, which only fill up, cost nothing.
    """
    for start in starts:
        if start.any():
            yield torch.autograd.grad(score, wanted, start[None], retain_graph=True)
        else:
            yield tuple(torch.zeros_like(each) for each in wanted)


def starts_of(embedding: Tensor, texts: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Embedding (1, E), unit texts (1, P, E) -> dc/de (P, E) and c (1, P), in groups of `phrases_per_step`."""
    starts, cosines = by_step(texts, step, partial(cosine_gradients, embedding.detach()))
    return starts[0], cosines
