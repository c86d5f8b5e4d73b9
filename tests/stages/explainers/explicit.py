"""Relevance propagation written out layer by layer in float64: relevance in, relevance out, and what each layer keeps.

Nothing here is differentiated by autograd.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from phrasebox.stages.model.towers.layers import LayerNorm, Linear
from phrasebox.stages.model.towers.pooled import AttentionPool
from phrasebox.stages.model.towers.vision import Block, VisionTower, split_heads


@dataclass
class Explicit:
    """The rules of AttnLRP; `losses` holds what biases and softmax keep."""

    losses: list[float] = field(default_factory=list)

    def linear(self, layer: Linear, x: Tensor, relevance: Tensor) -> Tensor:
        """The epsilon rule with epsilon 0, from every output j to every input i."""
        out = torch.zeros_like(x)
        losses = torch.zeros((), dtype=torch.float64)
        bias = torch.zeros(len(layer.weight), dtype=torch.float64) if layer.bias is None else layer.bias
        for j, weights in enumerate(layer.weight):
            parts = torch.cat([x * weights, bias[j].expand(*x.shape[:-1], 1)], dim=-1)
            shares = parts / parts.sum(dim=-1, keepdim=True) * relevance[..., j : j + 1]
            out += shares[..., :-1]
            losses += shares[..., -1].sum()
        self.losses.append(float(losses))
        return out

    def norm(self, layer: LayerNorm, x: Tensor, relevance: Tensor) -> Tensor:
        """Passes the scaling, and goes through the centring as through a linear layer."""
        y = layer(x)
        bias = torch.zeros_like(y) if layer.bias is None else layer.bias.expand_as(y)
        self.losses.append(float((relevance * bias / y).sum()))
        width = x.shape[-1]
        centring = torch.eye(width, dtype=torch.float64) - 1 / width
        return self.linear(Linear(centring, None), x, relevance * (y - bias) / y)

    def attention(
        self, q: Tensor, k: Tensor, v: Tensor, relevance: Tensor, heads: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Relevance of the attention's output (B, Tq, D) -> of queries, keys and values."""
        queries, keys, values, given = (split_heads(x, heads) for x in (q, k, v, relevance))
        logits = queries @ keys.mT * queries.shape[-1] ** -0.5
        weights = logits.softmax(dim=-1)
        per_output = given / (weights @ values)
        at_weights = weights * (per_output @ values.mT)
        at_values = values * (weights.mT @ per_output)
        at_weights = at_weights / 2
        at_values = at_values / 2
        at_logits = logits * (at_weights - weights * at_weights.sum(dim=-1, keepdim=True))
        self.losses.append(float(at_weights.sum() - at_logits.sum()))
        per_logit = at_logits / (queries @ keys.mT)
        at_queries = queries * (per_logit @ keys) / 2
        at_keys = keys * (per_logit.mT @ queries) / 2
        parts = [x.transpose(-3, -2).flatten(-2) for x in (at_queries, at_keys, at_values)]
        return parts[0], parts[1], parts[2]

    def block(self, block: Block, x: Tensor, relevance: Tensor) -> Tensor:
        """Relevance of a block's output (B, T, D) -> of its input."""
        z = block.ln_1(x)
        q, k, v = block.qkv(z).chunk(3, dim=-1)
        queries, keys, values = (split_heads(part, block.heads) for part in (q, k, v))
        weights = (queries @ keys.mT * queries.shape[-1] ** -0.5).softmax(dim=-1)
        o = (weights @ values).transpose(-3, -2).flatten(-2)
        a = block.out(o)
        a_scaled = a if block.ls_1 is None else a * block.ls_1
        y = x + a_scaled
        z_2 = block.ln_2(y)
        active = block.activation(block.fc(z_2))
        m = block.proj(active)
        m_scaled = m if block.ls_2 is None else m * block.ls_2
        end = y + m_scaled
        at_hidden = self.linear(block.proj, active, relevance * m_scaled / end)
        at_y = relevance * y / end + self.norm(block.ln_2, y, self.linear(block.fc, z_2, at_hidden))
        at_o = self.linear(block.out, o, at_y * a_scaled / y)
        at_qkv = torch.cat(self.attention(q, k, v, at_o, block.heads), dim=-1)
        return at_y * x / y + self.norm(block.ln_1, x, self.linear(block.qkv, z, at_qkv))

    def head(self, tower: VisionTower, x: Tensor, text: Tensor) -> tuple[Tensor, float]:
        """Relevance (B, T, D) of the tokens after the last block, and the cosine, of one image."""
        normed = tower.ln_post(x[:, 0])
        e = normed if tower.output is None else normed @ tower.output
        relevance = e * text / e.norm()
        cosine = float(relevance.sum())
        if tower.output is not None:
            relevance = self.linear(Linear(tower.output.T, None), normed, relevance)
        whole = torch.zeros_like(x)
        whole[:, 0] = self.norm(tower.ln_post, x[:, 0], relevance)
        return whole, cosine

    def tower(self, tower: VisionTower, x: Tensor, text: Tensor) -> tuple[Tensor, float]:
        """Tokens (1, T, D) before the blocks, a unit text (E,) -> their relevance (1, T, D), and the cosine."""
        inputs = [x]
        for block in tower.blocks:
            inputs.append(block(inputs[-1]))
        relevance, cosine = self.head(tower, inputs[-1], text)
        for block, given in zip(reversed(tower.blocks), reversed(inputs[:-1]), strict=True):
            relevance = self.block(block, given, relevance)
        return relevance, cosine

    def pool(self, pool: AttentionPool, x: Tensor, text: Tensor) -> tuple[Tensor, float]:
        """Tokens (1, N, D) of a pool with a latent query, linear layers and nothing else -> relevance, and cosine."""
        assert pool.q is not None
        assert isinstance(pool.out, Linear)
        query = pool.q(pool.latent.expand(1, 1, -1))
        k = pool.k(x)
        v = pool.v(x)
        queries, keys, values = (split_heads(part, pool.heads) for part in (query, k, v))
        weights = (queries @ keys.mT * queries.shape[-1] ** -0.5).softmax(dim=-1)
        o = (weights @ values).transpose(-3, -2).flatten(-2)
        e = pool.out(o)
        relevance = e * text / e.norm()
        cosine = float(relevance.sum())
        at_query, at_keys, at_values = self.attention(
            query, k, v, self.linear(pool.out, o, relevance), pool.heads
        )
        self.losses.append(float(at_query.sum()))
        return self.linear(pool.k, x, at_keys) + self.linear(pool.v, x, at_values), cosine


def in_float64(tower: VisionTower) -> VisionTower:
    """A float32 tower, with the same numbers in float64."""

    def wide(layer: Linear | LayerNorm) -> Linear | LayerNorm:
        bias = None if layer.bias is None else layer.bias.double()
        return replace(layer, weight=layer.weight.double(), bias=bias)

    blocks = []
    for block in tower.blocks:
        layers = {name: wide(getattr(block, name)) for name in ("ln_1", "qkv", "out", "ln_2", "fc", "proj")}
        scales = {name: getattr(block, name) for name in ("ls_1", "ls_2")}
        wider = {name: None if scale is None else scale.double() for name, scale in scales.items()}
        blocks.append(replace(block, **layers, **wider))
    ln_post = wide(tower.ln_post)
    assert isinstance(ln_post, LayerNorm)
    output = None if tower.output is None else tower.output.double()
    return replace(tower, blocks=tuple(blocks), ln_post=ln_post, output=output)
