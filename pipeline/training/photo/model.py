"""The photograph model in training: a stock `open_clip.CLIP`, run in parts and on some of the tokens, and its losses.

The forward pass gives the numbers of open_clip's `encode_image` where the window is the whole grid and every token is
kept, apart from bf16's rounding.

Shapes: B images, P phrases, g x g the window, N tokens kept, D width, E embedding.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor, nn

from pipeline.training.photo.config import MODEL_CFG
from pipeline.training.photo.imagenet import run_block, run_last, tail_blocks
from pipeline.training.photo.teacher import TEACHER_WIDTH


def model_cfg(tokenizer: SimpleTokenizer) -> dict[str, Any]:
    """The arguments of `open_clip.CLIP` for a tokenizer's vocabulary."""
    cfg: dict[str, Any] = copy.deepcopy(MODEL_CFG)
    cfg["text_cfg"]["vocab_size"] = int(tokenizer.vocab_size)
    return cfg


class Bridge(nn.Module):
    """The teacher's vectors -> vectors beside the images. It serves training alone and is not exported."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(TEACHER_WIDTH)
        self.inner = nn.Linear(TEACHER_WIDTH, 2 * TEACHER_WIDTH)
        self.outer = nn.Linear(2 * TEACHER_WIDTH, TEACHER_WIDTH)
        self.project = nn.Linear(TEACHER_WIDTH, embed_dim)
        self.dropout = nn.Dropout(0.2)

    def forward(self, vectors: Tensor) -> Tensor:
        """(T, 384) -> (T, E), length 1."""
        x = self.norm(vectors)
        x = x + self.outer(self.dropout(F.gelu(self.inner(self.dropout(x)))))
        return F.normalize(self.project(x), dim=-1)


class Scales(nn.Module):
    """Learned factors on the similarities of the three losses, at most `MOST`."""

    MOST = 60.0

    def __init__(self) -> None:
        super().__init__()
        self.logs = nn.Parameter(torch.full((3,), math.log(14.0)))

    def forward(self) -> tuple[Tensor, Tensor, Tensor]:
        """For captions, phrases and tokens."""
        caption, phrase, token = self.logs.clamp(max=math.log(self.MOST)).exp().unbind()
        return caption, phrase, token


@dataclass(frozen=True, slots=True)
class Seen:
    """What the model makes of a batch.

    Attributes:
        whole: Embeddings (B, E), length 1.
        tokens: What each token's value alone would make of the embedding (B, N, E), length 1.
    """

    whole: Tensor
    tokens: Tensor


def look(model: CLIP, front: Tensor, *, corner: Tensor, keep: Tensor, trained_blocks: int, precision: Any) -> Seen:
    """Run the tail, the neck and the pooling on a batch.

    Args:
        model: The model, its norms folded.
        front: What the fixed part gives, (B, g, g, channels).
        corner: Row and column of the window's first token in the grid, int64 (B, 2).
        keep: Places in the window of the tokens that reach the head, int64 (B, N).
        trained_blocks: How many of the last blocks get a gradient; with 0 the last convolution gets none either.
        precision: dtype that the tail computes in.
    """
    trunk = model.visual.trunk
    blocks = tail_blocks(trunk.features)
    x = front.to(precision)
    with torch.no_grad():
        for block in blocks[: len(blocks) - trained_blocks]:
            x = run_block(block, x)
    for block in blocks[len(blocks) - trained_blocks :]:
        x = run_block(block, x)
    x = x.flatten(1, 2).gather(1, keep.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
    with torch.set_grad_enabled(trained_blocks > 0 and torch.is_grad_enabled()):
        x = run_last(trunk.features, x)
    side = front.shape[1]
    grid = model.visual.head.pool.feat_size[1]
    places = (corner[:, :1] + keep // side) * grid + corner[:, 1:] + keep % side
    return pool(model.visual.head.pool, trunk.neck(x.float()), places)


def pool(attention: Any, x: Tensor, places: Tensor) -> Seen:
    """timm's attention pooling on some of an image's tokens, and what each token's value alone would give.

    Args:
        attention: timm's `AttentionPool2d`.
        x: Tokens (B, N, D).
        places: Their places in the grid, row by row, int64 (B, N).
    """
    first = x.mean(dim=1, keepdim=True) + attention.pos_embed[:1]
    x = torch.cat([first, x + attention.pos_embed[1:][places]], dim=1)
    q, k, v = F.linear(x, attention.qkv.weight, attention.qkv.bias).chunk(3, dim=-1)
    q, k, heads = (_heads(part, attention.num_heads) for part in (q[:, :1], k, v))
    weights = ((q * attention.scale) @ k.mT).softmax(dim=-1)
    mixed = (weights @ heads).transpose(1, 2).flatten(2)[:, 0]
    return Seen(whole=F.normalize(attention.proj(mixed), dim=-1), tokens=F.normalize(attention.proj(v[:, 1:]), dim=-1))


def _heads(x: Tensor, heads: int) -> Tensor:
    apart: Tensor = x.unflatten(-1, (heads, -1))
    return apart.transpose(1, 2)


def matching_loss(logits: Tensor, positive: Tensor, ignored: Tensor) -> Tensor:
    """InfoNCE with several positives, both ways: each positive against all negatives of its row, and of its column.

    Args:
        logits: Scaled similarities, texts by images.
        positive: bool, which texts belong to which images; at least one.
        ignored: bool, pairs that are neither: too near to tell.

    Returns:
        A scalar: the mean over positives, and over both ways, in nats.
    """
    negatives = logits.masked_fill(positive | ignored, float("-inf"))
    ways = [F.softplus(negatives.logsumexp(dim=dim, keepdim=True) - logits)[positive].mean() for dim in (0, 1)]
    return (ways[0] + ways[1]) / 2


def soft_matching_loss(logits: Tensor, alike: Tensor) -> Tensor:
    """Cross entropy to soft targets, both ways: how alike captions are says how much each should fit each image.

    Args:
        logits: Scaled similarities, captions by images (B, B).
        alike: The captions' own similarities, divided by their temperature (B, B).
    """
    ways = [-(alike.softmax(dim=dim) * logits.log_softmax(dim=dim)).sum(dim=dim).mean() for dim in (0, 1)]
    return (ways[0] + ways[1]) / 2


def local_logits(phrases: Tensor, tokens: Tensor, scale: Tensor) -> Tensor:
    """How well the best tokens of each image fit each phrase: (P, E) and (B, N, E) -> (P, B).

    It is the scaled cosine's log-mean-exp over the tokens, which the tokens that fit best decide. This is what teaches
    the model places: no one tells it which token a phrase is about, but some must be.
    """
    images, kept, _ = tokens.shape
    each = scale * (phrases @ tokens.flatten(0, 1).T).view(len(phrases), images, kept)
    return each.logsumexp(dim=-1) - math.log(kept)


def distillation_loss(y: Tensor, wanted: Tensor) -> Tensor:
    """Cosine to the wanted vectors, and the divergence of the batch's similarities from the wanted ones'.

    Args:
        y: Vectors (T, E), length 1.
        wanted: The vectors that they should be, length 1.
    """
    near = 4.0 * (1.0 - (y * wanted).sum(dim=-1)).mean()
    mine, theirs = (15.0 * y @ wanted.T).log_softmax(dim=-1), (15.0 * wanted @ wanted.T).softmax(dim=-1)
    return near + F.kl_div(mine, theirs, reduction="batchmean")
