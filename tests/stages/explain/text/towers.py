"""Small text towers whose attention is far from uniform."""

from __future__ import annotations

from typing import Any

import open_clip
import torch
from torch import nn

from tests.factories import tiny_architecture


def text_architecture(**text: Any) -> dict[str, Any]:
    """open_clip's configuration of a tiny CLIP with a text tower of 3 blocks of width 32 and 4 heads."""
    architecture = tiny_architecture(layers=1)
    architecture["text_cfg"] = {**architecture["text_cfg"], "layers": 3, "heads": 4, **text}
    return architecture


def sharp_text_clip(seed: int = 0, *, quick_gelu: bool = False, **text: Any) -> nn.Module:
    """A random model. At open_clip's initialisation attention is nearly uniform and a wrong formula goes unnoticed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = open_clip.CLIP(**text_architecture(**text), quick_gelu=quick_gelu)
        with torch.no_grad():
            model.token_embedding.weight.normal_(0, 0.7)
            model.positional_embedding.normal_(0, 0.3)
            for block in model.transformer.resblocks:
                block.attn.in_proj_weight.mul_(3.0)
                block.attn.in_proj_bias.normal_(0, 0.3)
                block.attn.out_proj.weight.mul_(3.0)
                block.attn.out_proj.bias.normal_(0, 0.3)
                block.ln_1.weight.normal_(1, 0.2)
                block.ln_1.bias.normal_(0, 0.2)
    return model.eval()
