"""Transformer interpretability beyond attention visualization (Chefer, Gur, Wolf, CVPR 2021, arXiv 2012.09838).

For every block b with attention A_b, the gradient of the score s at it, and its relevance R_b:

    C_b = I + mean over heads of ReLU(ds/dA_b · R_b)
    H   = row of the class token in C_B ... C_2 C_1, over the patches

s is the cosine times the logit scale, which decides how much products of blocks count beside
their sum. Relevance starts with 1 for the phrase, which is shared out among the channels of the
image's embedding e by what adds to the cosine, (e_d t_d)+. From the end of a block to its
beginning, R the relevance of the output of each part:

    linear      R_i = sum_j (x_i W_ji)+ / sum_i' (x_i' W_ji')+ R_j         only what adds: alpha 1, beta 0; no bias
    product     z = A v:  R_A = A · (R / z) v' / 2,  R_v = v · A' (R / z) / 2;   the same for q k'
    sum         z = a + b: R_a = a / z R, and R_b = b / z R, each scaled to share |sum R_a| / (|sum R_a| + |sum R_b|)
    others      layer norm, activation, softmax, LayerScale: R passes

Every rule preserves the total: the relevance of a block's tokens has the same sum at both ends.
Where the rules of products and sums divide by values near zero, the method is ill-conditioned:
on a random network of the tests the relevance of a row of attention changes its sign when
weights change by a ten-thousandth.

Deviations from the paper: rows of C_b are divided by their sum, as the authors' evaluation code
does it and the paper does not; all blocks are multiplied, where that evaluation leaves the
first one out; the paper has no CLIP, so that the cosine takes the place of a class's logit; the
sums in the rule of sums are over the tokens of one image, where the authors' code takes them
over the batch. No setting restores these.

Layer-wise relevance propagation is claimed to be patented, see `CLAIM`. No default uses it.

Shapes: B images (1 here), P phrases, H heads, N patches, T = N + 1 tokens, D width, E embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Literal

import torch
from torch import Tensor

from phrasebox.stages.explain.config import ExplainerConfig
from phrasebox.stages.explainers.attention import Walker
from phrasebox.stages.explainers.lrp_rules import CLAIM
from phrasebox.stages.explainers.walk import BlockTensors, phrase_gradients
from phrasebox.stages.model.towers.layers import Linear, TensorFunction
from phrasebox.stages.model.towers.vision import Block, join_heads, split_heads

_TINY: Final = 1e-9
"""Added to divisors, as in the authors' code."""


class TransformerInterpretabilityConfig(ExplainerConfig):
    """Relevance of attention times its gradient, multiplied through the blocks."""

    kind: Literal["transformer_interpretability"] = "transformer_interpretability"


class TransformerInterpretability(Walker[TransformerInterpretabilityConfig]):
    """Transformer interpretability (Chefer, Gur, Wolf, CVPR 2021): the relevance of attention times its gradient.

    The module has the formula and the deviations.
    """

    config_type = TransformerInterpretabilityConfig
    claim = CLAIM

    def _explain_blocks(self, tensors: BlockTensors, texts: Tensor) -> Tensor:
        last = tensors.tokens[-1].detach()
        parts = zip(self.walk.blocks, tensors.tokens[:-1], tensors.attention, strict=True)
        blocks = [block_rule(block, x.detach(), a.detach()) for block, x, a in parts]
        gradients_of_phrases = phrase_gradients(
            tensors.embedding, tensors.attention, texts, self.model.logit_scale
        )
        values = last.new_zeros(1, texts.shape[1], last.shape[1] - 1)
        for number, (text, gradients) in enumerate(zip(texts[0], gradients_of_phrases, strict=True)):
            if text.any():
                relevance = torch.zeros_like(last)
                relevance[:, 0] = self._start_relevance(last[:, 0], tensors.embedding.detach(), text)
                values[:, number] = _roll_out(blocks, gradients, relevance)
        return values

    def _start_relevance(self, token: Tensor, embedding: Tensor, text: Tensor) -> Tensor:
        """Class token behind the last block (1, D), embedding (1, E), text (E,) -> relevance (1, D), in total 1."""
        tower = self.walk.tower
        contributions = (embedding * text).relu()
        relevance = divide_by_total(contributions, contributions.sum())
        if tower.output is None:
            return relevance
        return linear_rule(Linear(tower.output.T, None), tower.ln_post(token))(relevance)


def _roll_out(
    blocks: Sequence[Callable[[Tensor], tuple[Tensor, Tensor]]],
    gradients: Sequence[Tensor],
    relevance: Tensor,
) -> Tensor:
    """Relevance (1, T, D) behind the last block -> H (1, N)."""
    identity = torch.eye(relevance.shape[1], device=relevance.device)
    row = identity[None, :1]
    for block, gradient in zip(reversed(blocks), reversed(gradients), strict=True):
        relevance, at_attention = block(relevance)
        step = (gradient * at_attention).relu().mean(dim=1) + identity
        row = row @ (step / step.sum(dim=-1, keepdim=True))
    return row[:, 0, 1:]


def divide_by_total(relevance: Tensor, total: Tensor) -> Tensor:
    """Return the relevance for each unit of a total; 0 where the total is 0."""
    safe = total + _TINY
    return torch.where(total == 0, 0.0, relevance / torch.where(safe == 0, _TINY, safe))


def linear_rule(linear: Linear, x: Tensor) -> TensorFunction:
    """Return the rule of a linear layer with the input x (1, T, in): relevance (1, T, out) -> (1, T, in)."""
    weight = linear.weight
    total = x.clamp(min=0) @ weight.clamp(min=0).T + x.clamp(max=0) @ weight.clamp(max=0).T

    def propagate(relevance: Tensor) -> Tensor:
        unit = divide_by_total(relevance, total)
        above = unit @ weight.clamp(min=0)
        below = unit @ weight.clamp(max=0)
        return x.clamp(min=0) * above + x.clamp(max=0) * below

    return propagate


def propagate_product(a: Tensor, b: Tensor, relevance: Tensor) -> tuple[Tensor, Tensor]:
    """Share the relevance of the product a b between a and b, one half each."""
    unit = divide_by_total(relevance, a @ b) / 2
    return a * (unit @ b.mT), b * (a.mT @ unit)


def propagate_sum(a: Tensor, b: Tensor, relevance: Tensor) -> tuple[Tensor, Tensor]:
    """Share the relevance of a + b between a and b.

    >>> propagate_sum(torch.tensor([4.0]), torch.tensor([-1.0]), torch.tensor([1.0]))
    (tensor([0.8000]), tensor([0.2000]))
    """
    unit = divide_by_total(relevance, a + b)
    at_a = a * unit
    at_b = b * unit
    sum_a = at_a.sum()
    sum_b = at_b.sum()
    whole = divide_by_total(relevance.sum(), sum_a.abs() + sum_b.abs())
    return at_a * divide_by_total(sum_a.abs() * whole, sum_a), at_b * divide_by_total(
        sum_b.abs() * whole, sum_b
    )


def block_rule(block: Block, x: Tensor, attention: Tensor) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Return the rules of a float32 block for its tokens x (1, T, D) and its attention (1, H, T, T).

    They take the relevance (1, T, D) behind the block to those before it and at its attention,
    any number of times.
    """
    z = block.ln_1(x)
    queries, keys, values = block.project_heads(z)
    o = join_heads(attention @ values)
    attention_branch = block.attended(o)
    middle = x + attention_branch
    normed = block.ln_2(middle)
    active = block.activation(block.fc(normed))
    mlp_branch = block.mlp(normed)
    qkv = linear_rule(block.qkv, z)
    out = linear_rule(block.out, o)
    fc = linear_rule(block.fc, normed)
    proj = linear_rule(block.proj, active)

    def propagate(relevance: Tensor) -> tuple[Tensor, Tensor]:
        stream, branch = propagate_sum(middle, mlp_branch, relevance)
        stream, branch = propagate_sum(x, attention_branch, stream + fc(proj(branch)))
        at_attention, at_values = propagate_product(
            attention, values, split_heads(out(branch), block.heads)
        )
        at_queries, at_keys = propagate_product(queries, keys.mT, at_attention)
        parts = [join_heads(part) for part in (at_queries, at_keys.mT, at_values)]
        return stream + qkv(torch.cat(parts, dim=-1)), at_attention

    return propagate
