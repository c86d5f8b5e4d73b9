"""Builds the small CLIP, changes its image size, and sets up its optimisers."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor, nn

from stages.model.train.config import MODEL_CFG, TrainConfig


def model_cfg(tokenizer: SimpleTokenizer, side_px: int) -> dict[str, Any]:
    """The arguments of `open_clip.CLIP` for an image side and a tokenizer's vocabulary."""
    cfg: dict[str, Any] = copy.deepcopy(MODEL_CFG)
    cfg["vision_cfg"]["image_size"] = side_px
    cfg["text_cfg"]["vocab_size"] = int(tokenizer.vocab_size)
    return cfg


def build_model(tokenizer: SimpleTokenizer, side_px: int) -> CLIP:
    """A model with random weights from torch's current seed."""
    return CLIP(**model_cfg(tokenizer, side_px))


def resize_positions(positions: Tensor, grid: int) -> Tensor:
    """Interpolate a positional embedding to another grid.

    Args:
        positions: float (1 + old_grid ** 2, width), the class token's first.
        grid: new number of patches per side.

    Returns:
        float (1 + grid ** 2, width).
    """
    old = round((len(positions) - 1) ** 0.5)
    if old == grid:
        return positions
    square = positions[1:].T.reshape(1, -1, old, old)
    square = F.interpolate(square, size=(grid, grid), mode="bicubic", align_corners=False)
    return torch.cat([positions[:1], square.flatten(2)[0].T])


def model_at(model: CLIP, tokenizer: SimpleTokenizer, side_px: int) -> CLIP:
    """A copy of the model for another image side; only the positional embedding differs."""
    other = build_model(tokenizer, side_px)
    state = model.state_dict()
    grid = side_px // int(other.visual.patch_size[0])
    state["visual.positional_embedding"] = resize_positions(state["visual.positional_embedding"], grid)
    other.load_state_dict(state)
    return other


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
