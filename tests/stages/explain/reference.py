"""Grad-ECLIP again, slowly: float64, one image, one phrase, explicit loops over heads and patches.

Written from the paper's equations (arXiv 2502.18816) and the description of the authors' two files, with
nothing from `phrasebox.stages.explain`. Gradients come from autograd over the complete computation of the cosine.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class Answer:
    """Map (N,) and cosine."""

    heat: Tensor
    cosine: float


def _attention(block: Any, x: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    z = F.layer_norm(x, (x.shape[-1],), block.ln_1.weight, block.ln_1.bias, block.ln_1.eps)
    d = x.shape[-1]
    w = block.attn.in_proj_weight
    b = block.attn.in_proj_bias
    q = z @ w[:d].T + b[:d]
    k = z @ w[d : 2 * d].T + b[d : 2 * d]
    v = z @ w[2 * d :].T + b[2 * d :]
    width = d // heads
    outputs = []
    for h in range(heads):
        part = slice(h * width, (h + 1) * width)
        logits = q[:, part] @ k[:, part].T / width**0.5
        a = torch.exp(logits) / torch.exp(logits).sum(dim=1, keepdim=True)
        outputs.append(a @ v[:, part])
    return q, k, v, torch.cat(outputs, dim=1)


def _finish(block: Any, x: Tensor, o: Tensor) -> Tensor:
    y = x + block.ls_1(o @ block.attn.out_proj.weight.T + block.attn.out_proj.bias)
    return y + block.ls_2(block.mlp(block.ln_2(y)))


def grad_eclip(model: nn.Module, pixels: Tensor, text: Tensor, config: Any) -> Answer:
    """model in float64; pixels (3, H, W) normalised; text (E,) unit; config with Grad-ECLIP's settings."""
    visual: Any = model.visual
    x = visual._embeds(pixels[None])[0]
    resblocks = list(visual.transformer.resblocks)
    explained = []
    for i, block in enumerate(resblocks):
        is_explained = i >= len(resblocks) - config.blocks
        if is_explained:  # the patches are constants, and the gradient goes through the class token alone
            x = torch.cat([x[:1], x[1:].detach()])
        count = block.attn.num_heads if not (is_explained and config.heads == "single") else 1
        q, k, v, o = _attention(block, x, count)
        if is_explained:
            explained.append((block, q, k, v, o))
        x = _finish(block, x, o)
    e = visual.ln_post(x[0]) @ visual.proj
    cosine = (e / e.norm()) @ text
    gradients = torch.autograd.grad(cosine, [entry[4] for entry in explained])
    total = torch.zeros(x.shape[0] - 1, dtype=torch.float64)
    for gradient, (block, q, k, v, _) in zip(gradients, explained, strict=True):
        w = gradient[0]
        q0 = q[0]
        ks = k
        if config.similarity == "projected":
            q0 = q0 @ block.attn.out_proj.weight.T + block.attn.out_proj.bias
            ks = ks @ block.attn.out_proj.weight.T + block.attn.out_proj.bias
        s = torch.stack([q0 @ ks[i] / (q0.norm() * ks[i].norm()) for i in range(1, len(ks))])
        weight = (s - s.min()) / (s.max() - s.min())
        signed = torch.stack([weight[i - 1] * (w * v[i]).sum() for i in range(1, len(v))])
        total = total + signed.clamp(min=0)
    return Answer(total.detach(), cosine.item())
