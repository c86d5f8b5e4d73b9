"""Embeddings of texts, computed by the layers of open_clip or transformers, or by plain blocks of our own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

import torch
from open_clip import transformer
from torch import Tensor, nn

from phrasebox.stages.contract.stage import Device
from phrasebox.stages.model.device import allow_tf32, to_device
from phrasebox.stages.model.dual_encoder import DualEncoder, MaskedTexts
from phrasebox.stages.model.towers.from_open_clip import block_of
from phrasebox.stages.model.towers.trunk import private_copy
from phrasebox.stages.model.towers.vision import Block, attend


class Passes(NamedTuple):
    """What decides which texts share a forward pass.

    Attributes:
        most_tokens: The most tokens of one pass, which bounds its memory.
        cost: A pass costs as much as so many tokens, whatever it embeds.
    """

    most_tokens: int
    cost: int


PASSES: Final[dict[Device, Passes]] = {"cpu": Passes(4096, 40), "cuda": Passes(32_768, 2000)}
"""Passes by device. On 2 CPU cores captions of 10 to 26 tokens take two thirds of the time of exact
lengths (measured with ViT-B-32 in bf16). A GPU has some 150 launches a pass, in whose time it computes
some 2,000 tokens (an estimate from counted launches)."""

LEAST_WIDTH_IN_16_BITS: Final = 384
"""Text towers of fewer numbers a token cost little beside the images, and stay exact in fp32."""


@dataclass(frozen=True, slots=True)
class TextTower:
    """A causal text transformer of open_clip, for texts that are cut off behind their end.

    The row of a text's end token makes the embedding, and no token sees those behind it. Shapes:
    B texts, T' tokens, at most those of the context, D width, E embedding.

    `nn.MultiheadAttention` transposes the tokens before its product of matrices. A CPU then takes twice as long
    for the product in fp32, and 30 times in bf16. So plain blocks are computed as those of image towers. Only
    their products are in 16 bits: sums and layer norms are in fp32, which halves the rounding.

    Attributes:
        module: The part of open_clip's model that holds the layers of texts.
        end: Number of the token that ends a text; None: the highest number of a text.
        blocks: The weights of plain blocks, shared with the module; None: open_clip's own layers compute.
    """

    module: Any
    end: int | None
    blocks: tuple[Block, ...] | None

    @property
    def width(self) -> int:
        """Numbers of a token."""
        return int(self.module.token_embedding.weight.shape[1])

    def ends_of(self, tokens: Tensor) -> Tensor:
        """Numbers of tokens (B, T') -> the place of the row that makes the embedding, int64 (B,)."""
        return (tokens if self.end is None else (tokens == self.end).int()).argmax(dim=-1)

    def encode(self, tokens: Tensor) -> Tensor:
        """Numbers of tokens (B, T') -> embeddings (B, E), not normalised."""
        parts = self.module
        length = tokens.shape[1]
        x = parts.token_embedding(tokens) + parts.positional_embedding[:length]
        ends = self.ends_of(tokens)
        if self.blocks is None:
            x = x.to(parts.transformer.get_cast_dtype())
            x = parts.transformer(x, attn_mask=parts.attn_mask[:length, :length])
            x = x[torch.arange(len(x), device=x.device), ends]
        else:
            x = x.float()
            for block in self.blocks[:-1]:
                x = block.finish(x, attend(*block.project(x), block.heads, is_causal=True))
            x = _last_block(self.blocks[-1], x, ends)
        row: Tensor = parts.ln_final(x)
        projection = parts.text_projection
        if isinstance(projection, Tensor):
            return row @ projection.to(row.dtype)
        embedding: Tensor = row if projection is None else projection(row)
        return embedding


def _last_block(block: Block, x: Tensor, ends: Tensor) -> Tensor:
    """Tokens (B, T, D) before a causal block -> the one at the end of each text (B, D) behind it: no other is used."""
    places = torch.arange(x.shape[1], device=x.device)
    q, k, v = block.project(x)
    rows = ends[:, None, None].expand(-1, 1, x.shape[-1])
    is_seen = (places <= ends[:, None])[:, None, None]
    o = attend(q.gather(1, rows), k, v, block.heads, mask=is_seen)
    return block.finish(x.gather(1, rows), o)[:, 0]


def text_tower_of(model: Any) -> TextTower | None:
    """Return the text tower of an open_clip model; None if tokens behind the end of a text count in its embedding."""
    module = getattr(model, "text", model)
    pool = getattr(module, "text_pool_type", getattr(module, "pool_type", None))
    has_class_token = getattr(module, "cls_emb", None) is not None
    if getattr(module, "attn_mask", None) is None or has_class_token or pool not in ("argmax", "eos"):
        return None
    end = getattr(module, "text_eos_id", getattr(module, "eos_id", None))
    return TextTower(module, None if pool == "argmax" else end, _plain_blocks(module))


def _plain_blocks(module: Any) -> tuple[Block, ...] | None:
    """Return the blocks of a causal text transformer; None if one of them has a part that `Block` does not compute."""
    modules = list(module.transformer.resblocks)
    if not modules or not all(map(_is_plain, modules)):
        return None
    return tuple(block_of(block, block.mlp.c_fc.weight.dtype) for block in modules)


def _is_plain(block: Any) -> bool:
    """Return whether a block is open_clip's own, and no part of it was replaced, such as by an adapter."""
    if type(block) is not transformer.ResidualAttentionBlock or hasattr(block, "ln_1_kv"):
        return False
    attention = block.attn
    if type(attention) is not nn.MultiheadAttention or attention.in_proj_weight is None:
        return False
    return (
        attention.bias_k is None
        and not attention.add_zero_attn
        and isinstance(attention.out_proj, nn.Linear)
        and list(dict(block.mlp.named_children())) == ["c_fc", "gelu", "c_proj"]
        and type(block.mlp.c_fc) is type(block.mlp.c_proj) is nn.Linear
        and all(isinstance(norm, nn.LayerNorm) for norm in (block.ln_1, block.ln_2))
        and all(
            isinstance(scale, (nn.Identity, transformer.LayerScale)) for scale in (block.ls_1, block.ls_2)
        )
    )


class TextEncoder:
    """Texts -> embeddings. Texts of similar lengths share forward passes.

    Under a causal mask the tokens behind the end of a text cannot reach it, so they are cut
    off: phrases of 1,000 photographs have 4.3 tokens on average, and the model's context has
    77. Text towers without such a mask embed the whole context.

    In a run in bf16 the products of texts are in bf16, too, but for open_clip's own layers on a CPU, whose transposed
    input makes them slower than in fp32, and for narrow towers. In fp16 weights stay as they
    are, since texts of some models overflow. A GPU may compute the fp32 products of a run in 16 bits in TF32.

    Args:
        model: A model of open_clip, or a `DualEncoder`.
        tokenizer: Texts -> int (T, context).
        precision: Precision of the run; None: that of the model's weights.
    """

    def __init__(self, model: Any, tokenizer: Any, precision: torch.dtype | None = None) -> None:
        self.tokenizer = tokenizer
        self.device = next(model.parameters()).device
        self.precision = precision
        self._passes = PASSES["cuda" if self.device.type == "cuda" else "cpu"]
        self.model = private_copy(model, None)  # in evaluation mode: a text tower may have dropout
        self.model._modules.pop("visual", None)  # texts do not need the memory of the image tower
        self.tower = _tower_of(self.model)
        if precision == torch.bfloat16:
            self._use_16_bits(precision)

    def _use_16_bits(self, precision: torch.dtype) -> None:
        """Convert the weights that are faster so."""
        if not isinstance(self.tower, TextTower) or self.tower.blocks is None:
            if isinstance(self.model, DualEncoder) or self.device.type == "cuda":
                self.model.to(precision)
        elif self.tower.width >= LEAST_WIDTH_IN_16_BITS:
            transformer_of_texts = self.tower.module.transformer
            blocks = tuple(block_of(block, precision) for block in transformer_of_texts.resblocks)
            transformer_of_texts.resblocks = nn.ModuleList()  # lets their memory go
            self.tower.module.token_embedding.to(precision)
            self.tower = replace(self.tower, blocks=blocks)

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Return the embeddings (len(texts), E), not normalised."""
        tokens: Tensor = self.tokenizer(list(texts))
        if self.tower is None:
            encode = self.model.encode_text
            lengths = torch.full((len(tokens),), tokens.shape[1])
        else:
            encode = self.tower.encode
            lengths = self.tower.ends_of(tokens) + 1
        order = []
        parts = []
        with allow_tf32(self.device, self.precision or torch.float32):
            for length, rows in split_by_length(lengths, self._passes):
                order.append(rows)
                parts.append(encode(to_device(tokens[rows, :length], self.device)))
        return torch.cat(parts)[to_device(torch.cat(order).argsort(), self.device)]


def _tower_of(model: Any) -> TextTower | MaskedTexts | None:
    return model.texts if isinstance(model, DualEncoder) else text_tower_of(model)


def split_by_length(lengths: Tensor, kind: Passes) -> Iterator[tuple[int, Tensor]]:
    """Split texts for forward passes by their lengths in tokens, int (T,), the longest first.

    Yield the length that a pass needs, and the numbers of its texts. Shorter texts join a pass
    while their padding costs less than a pass of their own.
    """
    order = lengths.argsort(descending=True, stable=True)
    sizes = lengths[order].tolist()
    start = 0
    padding = 0
    for place, tokens in enumerate(sizes):
        padding += sizes[start] - tokens
        is_full = place > start and (place + 1 - start) * sizes[start] > kind.most_tokens
        if is_full or padding > kind.cost:
            yield sizes[start], order[start:place]
            start = place
            padding = 0
    if sizes:
        yield sizes[start], order[start:]
