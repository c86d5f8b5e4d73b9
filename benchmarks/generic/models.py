"""The small CLIPs as the product's models: a frozen trunk, trained heads, and a frozen sentence encoder.

| name | trunk | tokens | pooling | family |
|---|---|---|---|---|
| `photo` | EfficientNet-Lite 2, trained further | 22 x 22 of 16 px | attention | photo |
| `lite0-pool` | EfficientNet-Lite 0, frozen | 22 x 22 of 16 px | attention | lite0 |
| `lite0-blocks` | the same | 22 x 22 of 16 px | transformer of three blocks | lite0 |
| `lite1-pool` | EfficientNet-Lite 1, frozen | 14 x 14 of 32 px | attention | lite1 |

All sentence encoders are one: a model's family is its trunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from benchmarks.generic.heads import GRID, HEADS, WIDTH, HeadBlock, ImageHead, TextHead
from benchmarks.generic.texts import SentenceEncoder
from benchmarks.generic.train import TrainingPlan, read_photographs, train_heads, training_features
from benchmarks.generic.trunks import MEAN, STD, FrozenTrunk, load_trunk
from phrasebox.stages.model.clip import ClipModel
from phrasebox.stages.model.config import InputSpec
from phrasebox.stages.model.towers import layers
from phrasebox.stages.model.towers.pooled import AttentionPool, PooledTower
from phrasebox.stages.model.towers.tower import Placement, Tower
from phrasebox.stages.model.towers.trunk import TokenTrunk
from phrasebox.stages.model.towers.vision import Block, VisionTower, resize_grid


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a small CLIP is made.

    Attributes:
        trunk: Name of its trunk, which is its family.
        stride_px, size_px: Pixels from token to token, and the side of its images.
        depth: Blocks of its head, see `ImageHead`.
        keep: Tokens of each photograph that a step of training sees.
        steps: Steps of training.
    """

    trunk: str
    stride_px: int
    size_px: int
    depth: int
    keep: int
    steps: int


RECIPES: Final = {
    "lite0-pool": Recipe(trunk="lite0", stride_px=16, size_px=352, depth=1, keep=16, steps=300),
    "lite0-blocks": Recipe(trunk="lite0", stride_px=16, size_px=352, depth=3, keep=40, steps=300),
    "lite1-pool": Recipe(trunk="lite1", stride_px=32, size_px=448, depth=1, keep=16, steps=300),
}


@cache
def sentence_encoder(packages: Path) -> SentenceEncoder:
    """Return the encoder, loaded once."""
    return SentenceEncoder(packages)


def build_model(name: str, packages: Path, out: Path, lines: Path, images: Path) -> ClipModel:
    """Return a model of `RECIPES`; it is trained if `out` does not hold it.

    Args:
        name: Its name.
        packages: Folder with the packages of trunks and encoder.
        out: Folder of features and heads.
        lines, images: Captions and folder of the photographs for training.
    """
    recipe = RECIPES[name]
    trunk = load_trunk(packages, recipe.trunk, recipe.stride_px)
    image_head, text_head = ImageHead(trunk, recipe.depth), TextHead()
    file = out / f"{name}.pt"
    encode = sentence_encoder(packages)
    if not file.is_file():
        photographs = read_photographs(lines, images)
        features = training_features(
            trunk, photographs.files, out / f"{recipe.trunk}-{recipe.stride_px}.npy"
        )
        plan = TrainingPlan(depth=recipe.depth, steps=recipe.steps, keep=recipe.keep)
        heads = train_heads(trunk, features, photographs, encode, plan)
        out.mkdir(parents=True, exist_ok=True)
        torch.save({"image": heads[0].state_dict(), "text": heads[1].state_dict(), "scale": heads[2]}, file)
    state = torch.load(file, weights_only=True)
    image_head.load_state_dict(state["image"])
    text_head.load_state_dict(state["text"])
    image_head.eval().requires_grad_(False)
    text_head.eval().requires_grad_(False)
    return ClipModel(
        name=name,
        tower=tower_of(recipe, trunk, image_head),
        input=InputSpec(
            size_px=recipe.size_px, patch_px=recipe.stride_px, mean=(MEAN,) * 3, std=(STD,) * 3
        ),
        encode_text=lambda texts: _embed_texts(text_head, encode, texts),
        logit_scale=state["scale"],
        logit_bias=None,
    )


def _embed_texts(head: TextHead, encode: SentenceEncoder, texts: Sequence[str]) -> Tensor:
    embeddings: Tensor = head(encode(texts))
    return embeddings


def tower_of(recipe: Recipe, trunk: FrozenTrunk, head: ImageHead) -> Tower:
    """Return the tower of a trunk with a head: a transformer behind it, or a pool."""
    side = recipe.size_px // recipe.stride_px
    placement = Placement(stride_px=recipe.stride_px, shift_px=trunk.shift_px)
    if recipe.depth > 1:
        return _BlockTower(
            patch_weight=torch.zeros(WIDTH, 3, recipe.stride_px, recipe.stride_px),
            patch_bias=None,
            class_token=head.class_token,
            position_embedding=torch.zeros(1 + side * side, WIDTH),
            grid_hw=(side, side),
            ln_pre=layers.NOTHING,
            blocks=tuple(_block(block) for block in head.blocks if isinstance(block, HeadBlock)),
            ln_post=_norm(head.ln_post),
            output=head.output.weight.T,
            mean=torch.full((3,), MEAN),
            std=torch.full((3,), STD),
            network=trunk,
            stem=_Stem(head),
            where=placement,
        )
    [block] = head.blocks
    assert isinstance(block, HeadBlock)
    weight, bias = block.qkv.weight, block.qkv.bias
    # The query is the same for all images, so that it is a bias.
    query = torch.nn.functional.linear(block.ln_1(head.class_token), weight[:WIDTH], bias[:WIDTH])
    pool = AttentionPool(
        heads=HEADS,
        latent=head.class_token,
        prefix_tokens=0,
        norm=_norm(block.ln_1),
        q=layers.Linear(torch.zeros(WIDTH, WIDTH), query),
        k=layers.Linear(weight[WIDTH : 2 * WIDTH], bias[WIDTH : 2 * WIDTH]),
        v=layers.Linear(weight[2 * WIDTH :], bias[2 * WIDTH :]),
        out=_linear(block.out),
        residual=True,
        finish=layers.Chain((_norm(head.ln_post), layers.Linear(head.output.weight, None))),
    )
    return PooledTower(
        placement=placement,
        trunk=TokenTrunk(body=trunk.body, tokens_of=_Stem(head)),
        dtype=torch.bfloat16,
        mean=torch.full((3,), MEAN),
        std=torch.full((3,), STD),
        kind="latent_pool",
        pool=pool,
    )


@dataclass(frozen=True, slots=True)
class _Stem:
    """The tokens of an image head from its trunk's grid of features."""

    head: ImageHead

    def __call__(self, grid: Tensor) -> Tensor:
        """Features (B, C, rows, columns) -> tokens (B, N, D)."""
        positions = resize_grid(
            self.head.positions, (GRID, GRID), (grid.shape[2], grid.shape[3]), "bicubic"
        )
        return self.head.stem(grid.float().flatten(2).transpose(1, 2), positions)


@dataclass(frozen=True, slots=True, kw_only=True)
class _BlockTower(VisionTower):
    """A transformer whose patches come from a trunk.

    Attributes:
        network: The trunk.
        stem: Makes its tokens of the trunk's grid.
        where: Where its tokens look.
    """

    network: FrozenTrunk
    stem: _Stem
    where: Placement

    @property
    def placement(self) -> Placement:
        """See `Tower`."""
        return self.where

    @property
    def dtype(self) -> torch.dtype:
        """See `Tower`."""
        return torch.float32

    def embed(self, rgb: Tensor) -> Tensor:
        """See `Tower.embed`."""
        pixels = self.normalise(rgb).to(torch.bfloat16)
        tokens = self.stem(self.network.body(pixels))
        return torch.cat([self.class_token.expand(len(tokens), 1, -1), tokens], dim=1)


def _block(block: HeadBlock) -> Block:
    assert block.mlp is not None
    ln_2, fc, _, proj = block.mlp
    assert isinstance(ln_2, torch.nn.LayerNorm)
    assert isinstance(fc, torch.nn.Linear)
    assert isinstance(proj, torch.nn.Linear)
    return Block(
        heads=HEADS,
        ln_1=_norm(block.ln_1),
        qkv=_linear(block.qkv),
        out=_linear(block.out),
        ls_1=None,
        ln_2=_norm(ln_2),
        fc=_linear(fc),
        activation=torch.nn.functional.gelu,
        proj=_linear(proj),
        ls_2=None,
    )


def _norm(norm: torch.nn.LayerNorm) -> layers.LayerNorm:
    return layers.LayerNorm(norm.weight, norm.bias, norm.eps)


def _linear(linear: torch.nn.Linear) -> layers.Linear:
    return layers.Linear(linear.weight, linear.bias)
