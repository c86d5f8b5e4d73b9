"""open_clip's residual attention blocks as plain tensors, of image and text towers alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stages.contract.errors import ConfigError
from stages.shared.model.deferred import open_clip
from stages.shared.model.towers import layers
from stages.shared.model.towers.vision import Block

transformer = open_clip.transformer


def obstacle_of(block: Any) -> str:
    """What in a block changes the formula, or ""."""
    plain = isinstance(block, transformer.ResidualAttentionBlock) and isinstance(block.attn, nn.MultiheadAttention)
    custom = isinstance(block, transformer.CustomResidualAttentionBlock) and isinstance(
        block.attn, transformer.Attention
    )
    if not plain and not custom:
        return f"an unknown type {type(block).__name__}"
    attn = block.attn
    if plain:
        if attn.in_proj_weight is None or attn.bias_k is not None or attn.add_zero_attn:
            return "attention with separate projections or extra tokens"
        return ""
    identities = {
        "qk-norm": attn.ln_q,
        "inner norm": attn.ln_inner,
        "attention norm": block.ln_attn,
        "MLP norm": block.mlp.ln,
    }
    for name, module in identities.items():
        if not isinstance(module, nn.Identity):
            return name
    if attn.logit_scale is not None:
        return "scaled cosine attention"
    if attn.head_scale is not None:
        return "head scale"
    return ""


@dataclass(frozen=True, slots=True)
class WeightReader:
    """Reads the weights of a tower; the modules stay as they are.

    Attributes:
        precision: of all weights. With None they keep the model's own: `own`, except for layer norms, which keep
            theirs, since open_clip's half-precision models leave them in float32.
        own: the precision of the tower's matrices.
        refused: begins the message about a norm that is unknown, as in "the image tower".
        advice: ends it.
    """

    precision: torch.dtype | None
    own: torch.dtype
    refused: str
    advice: str

    def cast(self, tensor: Tensor | None, own: torch.dtype | None = None) -> Any:
        """A weight; None stays None."""
        return None if tensor is None else tensor.to(self.precision or own or self.own)

    def norm(self, module: Any) -> layers.LayerNorm:
        """A layer norm. Raises ConfigError for another norm."""
        if not isinstance(module, (transformer.LayerNorm, transformer.LayerNormFp32, nn.LayerNorm)):
            raise ConfigError(f"{self.refused} normalises with {type(module).__name__}. {self.advice}".rstrip())
        own = module.weight.dtype
        return layers.LayerNorm(self.cast(module.weight, own), self.cast(module.bias, own), module.eps)

    def product(self, module: Any) -> layers.Linear:
        """A linear layer."""
        return layers.Linear(self.cast(module.weight), self.cast(module.bias))

    def block(self, module: Any) -> Block:
        """A block for which `obstacle_of` finds nothing."""
        qkv = layers.Linear(self.cast(module.attn.in_proj_weight), self.cast(module.attn.in_proj_bias))
        width = qkv.weight.shape[1]
        kv = layers.Linear(qkv.weight[width:], None if qkv.bias is None else qkv.bias[width:])
        return Block(
            heads=int(module.attn.num_heads),
            ln_1=self.norm(module.ln_1),
            qkv=qkv,
            kv=kv,
            out=self.product(module.attn.out_proj),
            ls_1=self._layer_scale(module.ls_1),
            ln_2=self.norm(module.ln_2),
            fc=self.product(module.mlp.c_fc),
            activation=module.mlp.gelu.forward,
            proj=self.product(module.mlp.c_proj),
            ls_2=self._layer_scale(module.ls_2),
        )

    def _layer_scale(self, module: Any) -> Any:
        return self.cast(module.gamma) if isinstance(module, transformer.LayerScale) else None
