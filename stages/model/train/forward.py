"""The forward pass of an `open_clip.CLIP`, arranged for training on a CPU.

Same numbers as `encode_image` and `encode_text` with the same weights, but: attention is two batched matrix
products, because the backward pass of torch's fused attention is slow on CPUs; left-out patches are never
embedded; and texts are only as long as the longest of the batch, which the causal mask makes exact.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor


def encode_image(model: CLIP, images: Tensor, *, keep: Tensor | None = None) -> Tensor:
    """Image embeddings, normalised.

    Args:
        model: a class-token vision transformer.
        images: float (batch, 3, side, side), normalised; the side is that of the positional embedding.
        keep: int64 (batch, kept), which patches of each image to look at, row-major; None for all.

    Returns:
        (batch, embed_dim), length 1.
    """
    visual = model.visual
    patches = cut_patches(images, int(visual.patch_size[0]))
    places: Tensor = visual.positional_embedding[1:].unsqueeze(0)
    if keep is not None:
        patches = patches.gather(1, keep.unsqueeze(-1).expand(-1, -1, patches.shape[-1]))
        places = visual.positional_embedding[1:][keep]
    x = F.linear(patches, visual.conv1.weight.flatten(1)) + places
    first = (visual.class_embedding + visual.positional_embedding[0]).expand(x.shape[0], 1, -1)
    x = visual.ln_pre(torch.cat([first.to(x.dtype), x], dim=1))
    for block in visual.transformer.resblocks:
        x = _block(block, x, causal=False)
    return F.normalize(visual.ln_post(x[:, 0]) @ visual.proj, dim=-1)


def encode_text(model: CLIP, tokens: Tensor) -> Tensor:
    """Text embeddings, normalised.

    Args:
        model: a CLIP whose text tower has a causal mask and pools at the end token, the greatest id.
        tokens: int64 (texts, context), zero after the end token.

    Returns:
        (texts, embed_dim), length 1.
    """
    ends = tokens.argmax(dim=1)
    length = int(ends.max()) + 1
    x = model.token_embedding(tokens[:, :length]) + model.positional_embedding[:length]
    for block in model.transformer.resblocks:
        x = _block(block, x, causal=True)
    pooled = model.ln_final(x[torch.arange(x.shape[0]), ends])
    return F.normalize(pooled @ model.text_projection, dim=-1)


def cut_patches(images: Tensor, patch_px: int) -> Tensor:
    """(batch, 3, side, side) -> (batch, patches, 3 * patch_px ** 2), patches row-major, channels first."""
    batch, channels, side, _ = images.shape
    grid = side // patch_px
    cut = images.reshape(batch, channels, grid, patch_px, grid, patch_px)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(batch, grid * grid, channels * patch_px * patch_px)


def _block(block: ResidualAttentionBlock, x: Tensor, *, causal: bool) -> Tensor:
    x = x + _attention(block.attn, block.ln_1(x), causal=causal)
    mixed: Tensor = x + block.mlp(block.ln_2(x))
    return mixed


def _attention(attention: torch.nn.MultiheadAttention, x: Tensor, *, causal: bool) -> Tensor:
    batch, length, width = x.shape
    heads = attention.num_heads
    qkv = F.linear(x, attention.in_proj_weight, attention.in_proj_bias)
    q, k, v = qkv.view(batch, length, 3, heads, width // heads).permute(2, 0, 3, 1, 4).unbind(0)
    logits = (q * (1.0 / math.sqrt(width // heads))) @ k.transpose(-2, -1)
    if causal:
        logits = logits + torch.full((length, length), float("-inf"), dtype=logits.dtype).triu(1)
    mixed = (logits.softmax(dim=-1).to(v.dtype) @ v).transpose(1, 2).reshape(batch, length, width)
    return F.linear(mixed, attention.out_proj.weight, attention.out_proj.bias)
