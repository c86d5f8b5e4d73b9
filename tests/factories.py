"""Small things of the real kinds, for tests."""

from __future__ import annotations

from typing import Any

import open_clip
import torch
from open_clip.model import convert_weights_to_lp
from torch import nn

from stages.model.config import InputSpec

SPEC = InputSpec(size_px=32, patch_px=8, mean=open_clip.OPENAI_DATASET_MEAN, std=open_clip.OPENAI_DATASET_STD)


def tiny_architecture(**vision: Any) -> dict[str, Any]:
    """open_clip's configuration of a real but tiny CLIP: 4x4 patches, 4 blocks of width 64 with 4 heads."""
    return {
        "embed_dim": 48,
        "vision_cfg": {
            "image_size": 32,
            "patch_size": 8,
            "width": 64,
            "layers": 4,
            "head_width": 16,
            **vision,
        },
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    }


def tiny_clip(
    seed: int = 0,
    *,
    quick_gelu: bool = False,
    spread: float = 3.0,
    precision: torch.dtype | None = None,
    **vision: Any,
) -> nn.Module:
    """A randomly initialised open_clip model of the tiny architecture.

    With `precision` its weights are halved as `open_clip.create_model(precision="fp16")` does it: all but layer norms
    and embeddings.

    `spread` widens the attention's weights: at open_clip's initialisation all attention is nearly
    uniform, and a wrong formula would go unnoticed.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = open_clip.CLIP(**tiny_architecture(**vision), quick_gelu=quick_gelu, cast_dtype=precision)
        with torch.no_grad():
            for block in model.visual.transformer.resblocks:
                block.attn.in_proj_weight.mul_(spread)
                block.attn.in_proj_bias.normal_(0, 0.3)
                block.attn.out_proj.bias.normal_(0, 0.3)
                block.ln_1.weight.normal_(1, 0.2)
                block.ln_1.bias.normal_(0, 0.2)
                for scale in (block.ls_1, block.ls_2):
                    if hasattr(scale, "gamma"):
                        scale.gamma.uniform_(0.5, 1.5)
    if precision is not None:
        convert_weights_to_lp(model, dtype=precision)
    return model.eval()
