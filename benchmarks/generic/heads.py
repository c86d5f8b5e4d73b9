"""The trained parts of the small CLIPs: an image head over a frozen trunk's tokens, and a text head.

Shapes: B images, N tokens, C channels of the trunk, D width, E embedding.
"""

from __future__ import annotations

import math
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.generic.texts import WIDTH as SENTENCE_WIDTH
from benchmarks.generic.trunks import FrozenTrunk

WIDTH: Final = 256
HEADS: Final = 4
GRID: Final = 14  # tokens a side in training
CHANNELS: Final = 1280
MLP: Final = 2


class HeadBlock(nn.Module):
    """One residual attention block; the MLP only where patches mix."""

    def __init__(self, *, has_mlp: bool) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.drop = nn.Dropout(0.1)
        self.mlp = (
            nn.Sequential(
                nn.LayerNorm(WIDTH),
                nn.Linear(WIDTH, MLP * WIDTH),
                nn.GELU(),
                nn.Linear(MLP * WIDTH, WIDTH),
            )
            if has_mlp
            else None
        )

    def attend(self, query: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return the output of the attention (B, Q, D), and the values (B, T, D)."""
        q = self.qkv(self.ln_1(query)).chunk(3, dim=-1)[0]
        _, k, v = self.qkv(self.ln_1(tokens)).chunk(3, dim=-1)
        parts = (part.unflatten(-1, (HEADS, -1)).transpose(-3, -2) for part in (q, k, v))
        return F.scaled_dot_product_attention(*parts).transpose(-3, -2).flatten(-2), v

    def finish(self, tokens: Tensor, output: Tensor) -> Tensor:
        """Return the tokens behind the block."""
        tokens = tokens + self.drop(self.out(output))
        return tokens if self.mlp is None else tokens + self.drop(self.mlp(tokens))


class ImageHead(nn.Module):
    """Tokens of a trunk -> an embedding, and one of each token by its value path.

    Args:
        trunk: The trunk, whose 1 x 1 convolution stays frozen.
        depth: Blocks. With one the class token asks once, and nothing mixes; with more they are a transformer.
    """

    def __init__(self, trunk: FrozenTrunk, depth: int) -> None:
        super().__init__()
        self.register_buffer("head_weight", trunk.head_weight.clone())
        self.register_buffer("head_bias", trunk.head_bias.clone())
        self.reduce = nn.Linear(CHANNELS, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.positions = nn.Parameter(torch.randn(GRID * GRID, WIDTH) * 0.02)
        self.class_token = nn.Parameter(torch.randn(WIDTH) * 0.02)
        self.adapter = nn.Sequential(
            nn.LayerNorm(WIDTH),
            nn.Linear(WIDTH, 2 * WIDTH),
            nn.GELU(),
            nn.Dropout(0.1),
            nn.Linear(2 * WIDTH, WIDTH),
        )
        self.blocks = nn.ModuleList(HeadBlock(has_mlp=depth > 1) for _ in range(depth))
        self.ln_post = nn.LayerNorm(WIDTH)
        self.output = nn.Linear(WIDTH, WIDTH, bias=False)
        self.drop = nn.Dropout(0.3)

    def stem(self, features: Tensor, positions: Tensor) -> Tensor:
        """Features (B, N, C) and positions (N, D) or (B, N, D) -> tokens (B, N, D)."""
        channels = F.relu6(F.linear(features, self.head_weight, self.head_bias))  # type: ignore[arg-type]
        x = self.norm(self.reduce(self.drop(channels))) + positions
        tokens: Tensor = x + self.adapter(x)
        return tokens

    def forward(self, features: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, n, C) of tokens at `places` (B, n) -> unit embeddings (B, E), and of each token (B, n, E)."""
        x = self.stem(features, self.positions[places])
        token = self.class_token.expand(len(x), 1, -1)
        mixes = len(self.blocks) > 1
        values = x
        for number, block in enumerate(self.blocks):
            assert isinstance(block, HeadBlock)
            both = torch.cat([token, x], dim=1) if mixes else x
            if mixes and number + 1 < len(self.blocks):
                output, _ = block.attend(both, both)
                token, x = block.finish(both, output).tensor_split([1], dim=1)
            else:
                output, values = block.attend(token, both)
                token = block.finish(token, output)
        last = self.blocks[-1]
        assert isinstance(last, HeadBlock)
        # The value path is what each tower's dense maps read: the attention's output alone, or with the residual.
        paths = last.out(values[:, 1:]) if mixes else last.finish(self.class_token, values)
        embeddings = F.normalize(self.output(self.ln_post(token[:, 0])), dim=-1)
        return embeddings, F.normalize(self.output(self.ln_post(paths)), dim=-1)


class TextHead(nn.Module):
    """Embeddings of a sentence encoder (n, 384) -> unit embeddings (n, E)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(SENTENCE_WIDTH)
        self.mlp = nn.Sequential(
            nn.Dropout(0.2),
            nn.Linear(SENTENCE_WIDTH, 3 * WIDTH),
            nn.GELU(),
            nn.Dropout(0.2),
            nn.Linear(3 * WIDTH, SENTENCE_WIDTH),
        )
        self.output = nn.Linear(SENTENCE_WIDTH, WIDTH)

    def forward(self, vectors: Tensor) -> Tensor:
        """Return the embeddings."""
        x = self.norm(vectors)
        return F.normalize(self.output(x + self.mlp(x)), dim=-1)


class Scales(nn.Module):
    """Factors of the cosines of captions, of phrases, and of phrases on single tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.captions, self.phrases, self.tokens = (
            nn.Parameter(torch.tensor(math.log(14.0))) for _ in range(3)
        )
