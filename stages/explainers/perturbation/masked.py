"""What masked copies of an image mean: one set of embeddings that serves every phrase.

CLIP embeds images and texts apart, so that the embedding of a masked image does not depend on the phrase. N masks cost
N forward passes of the image tower, and the cosines with all phrases are then one product. RISE, occlusion, Shapley
values, Score-CAM, insertion and deletion all draw from this.

Masked pixels are not rounded: between the pixel and its baseline every shade reaches the tower.
"""

from __future__ import annotations

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.shared.model.towers.averaged import AveragedTower
from stages.shared.model.towers.pooled import PooledTower
from stages.shared.model.towers.tower import Tower
from stages.shared.model.towers.vision import VisionTower, attend

MASKS_PER_STEP: Final = 32
"""Masked images in one forward pass, unless it is said otherwise."""


@torch.no_grad()
def masked_embeddings(
    tower: Tower, rgb: Tensor, masks: Tensor, baseline: Tensor, masks_per_step: int = MASKS_PER_STEP
) -> Tensor:
    """Embed an image under many masks.

    The shapes of the forward passes depend on the number of masks alone, so that the same image and masks give the
    same bytes, whatever else is computed.

    Args:
        tower: Any image tower; its head computes in float32.
        rgb: uint8 (height, width, 3), sides that fit the tower.
        masks: Floats or bools, (N, height, width), or (N, rows, columns) in cells of one size that cover the image:
            1 shows the image, 0 the baseline, and what lies between mixes them.
        baseline: (height, width, 3) in 0-255, see `baseline_image`.
        masks_per_step: Masks in one forward pass.

    Returns:
        float32 (N, E), of unit length.

    Raises:
        ValueError: The masks' cells do not cover the image evenly, or a side does not fit the tower.
    """
    hidden = baseline.to(tower.device, torch.float32)
    shown = rgb.to(tower.device, torch.float32) - hidden
    height, width = shown.shape[:2]
    down, right = height // masks.shape[1], width // masks.shape[2]
    if (masks.shape[1] * down, masks.shape[2] * right) != (height, width):
        raise ValueError(
            f"expected masks whose cells cover {width}x{height} px, got {masks.shape[2]}x{masks.shape[1]} cells"
        )
    parts = []
    for part in masks.split(masks_per_step):
        share = part.to(tower.device, torch.float32)
        share = share.repeat_interleave(down, dim=1).repeat_interleave(right, dim=2)
        parts.append(F.normalize(embeddings_and_tokens(tower, hidden + share[..., None] * shown)[0], dim=-1))
    return torch.cat(parts)


def embeddings_and_tokens(tower: Tower, rgb: Tensor, kept: int | None = None) -> tuple[Tensor, Tensor | None]:
    """Embed images with a head in float32, and hand out the patches' tokens on the way.

    Args:
        tower: Any image tower.
        rgb: Pixels (B, height, width, 3) in 0-255, whole numbers or not.
        kept: With a class token: the block whose incoming tokens are handed out, or None. Other towers hand out those
            before the pool.

    Returns:
        float32 (B, E), not normalised; and (B, N, D).
    """
    if isinstance(tower, VisionTower):
        last = tower.blocks[-1]
        x, early = tower.tokens_before(rgb, len(tower.blocks) - 1, kept)
        asking = x[:, :1]
        # Of the last block nothing but the class token is used, so that nothing else is computed.
        o = attend(last.project(asking)[0], *last.project_keys_values(x), last.heads)
        token = last.finish(asking, o)[:, 0]
        return tower.float_head().head(token.float()), None if early is None else early[:, 1:]
    if isinstance(tower, PooledTower):
        exact = tower.float_head()
        seen = exact.look(rgb)
        return exact.pool.embedding(seen), seen.tokens
    if isinstance(tower, AveragedTower):
        tokens = tower.embed(rgb).float()
        return tower.float_head().finish(tokens.mean(dim=1)), tokens
    return tower.encode(rgb).float(), None
