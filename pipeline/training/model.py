"""The small CLIP that is trained: how it is built and resized, its forward pass, its losses and optimisers.

The forward pass gives the numbers of open_clip's `encode_image` and `encode_text`, arranged for training on a CPU:
attention is two batched matrix products, because the backward pass of torch's fused attention is slow on CPUs; patches
that are left out are never embedded; and texts are only as long as the longest of the batch, which the causal mask
makes exact.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn

from pipeline.training.config import MODEL_CFG, PREPROCESS_CFG, TrainConfig
from stages.shared.model.towers.vision import resize_positions


def model_cfg(tokenizer: SimpleTokenizer, side_px: int) -> dict[str, Any]:
    """The arguments of `open_clip.CLIP` for an image side and a tokenizer's vocabulary."""
    cfg: dict[str, Any] = copy.deepcopy(MODEL_CFG)
    cfg["vision_cfg"]["image_size"] = side_px
    cfg["text_cfg"]["vocab_size"] = int(tokenizer.vocab_size)
    return cfg


def build_model(tokenizer: SimpleTokenizer, side_px: int) -> CLIP:
    """A model with random weights from torch's current seed."""
    return CLIP(**model_cfg(tokenizer, side_px))


def model_at(model: CLIP, tokenizer: SimpleTokenizer, side_px: int) -> CLIP:
    """A copy of the model for another image side; only the positional embedding differs."""
    other = build_model(tokenizer, side_px)
    state = model.state_dict()
    grid = side_px // int(other.visual.patch_size[0])
    state["visual.positional_embedding"] = positions_at(state["visual.positional_embedding"], grid)
    other.load_state_dict(state)
    return other


def positions_at(positions: Tensor, grid: int) -> Tensor:
    """A positional embedding (1 + old_grid ** 2, width) for another number of patches per side."""
    old = round((len(positions) - 1) ** 0.5)
    return resize_positions(positions, (old, old), (grid, grid))


def make_optimisers(model: CLIP, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the transformer blocks, AdamW for everything else.

    Each parameter group holds its full learning rate under "full_lr"; the caller sets "lr" to a share of it.
    """
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (matrices if ".resblocks." in name and parameter.ndim == 2 else others).append(parameter)
    muon = torch.optim.Muon(matrices, lr=config.matrix_lr, weight_decay=config.matrix_weight_decay)
    adamw = torch.optim.AdamW(others, lr=config.other_lr, betas=(0.9, 0.98), weight_decay=0.0)
    for optimiser in (muon, adamw):
        for group in optimiser.param_groups:
            group["full_lr"] = group["lr"]
    return [muon, adamw]


def normalise(images: Tensor) -> Tensor:
    """uint8 (batch, 3, H, W) -> float32, as `PREPROCESS_CFG` says."""
    mean, std = (torch.tensor(PREPROCESS_CFG[key]).view(3, 1, 1) for key in ("mean", "std"))
    return (images.float() / 255.0 - mean) / std


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


def known_true(claimed: Tensor, denied: Tensor, present: Tensor) -> Tensor:
    """Which captions are true of which images as far as the truth table knows.

    Args:
        claimed, denied: float (captions, columns), 0 or 1.
        present: float (images, columns), 0 or 1.

    Returns:
        bool (images, captions).
    """
    missing = (1.0 - present) @ claimed.T
    wrong = present @ denied.T
    return (missing + wrong) < 0.5


def caption_loss(logits: Tensor, true: Tensor) -> Tensor:
    """InfoNCE between images and their own captions, both ways, without known false negatives.

    Args:
        logits: float (batch, batch), scaled similarities, image by caption; pairs on the diagonal.
        true: bool (batch, batch), captions known to be true of an image; off the diagonal they are left out.

    Returns:
        A scalar: the mean of both directions in nats.
    """
    own = torch.eye(len(logits), dtype=torch.bool)
    masked = logits.masked_fill(true & ~own, float("-inf"))
    target = torch.arange(len(logits))
    return (F.cross_entropy(masked, target) + F.cross_entropy(masked.T, target)) / 2


def bank_loss(logits: Tensor, positive: Tensor) -> Tensor:
    """InfoNCE with several positives: each positive against all negatives, other positives left out.

    Args:
        logits: float (rows, columns), scaled similarities.
        positive: bool (rows, columns). Rows without a positive do not count.

    Returns:
        A scalar: the mean over rows of the mean over a row's positives, in nats; 0 if there is no positive.
    """
    rows = positive.any(dim=1)
    logits, positive = logits[rows], positive[rows]
    if len(logits) == 0:
        return logits.sum()
    negatives = logits.masked_fill(positive, float("-inf")).logsumexp(dim=1, keepdim=True)
    each = torch.logaddexp(logits, negatives) - logits
    weights = positive.float() / positive.sum(dim=1, keepdim=True)
    return (each * weights).sum(dim=1).mean()
