"""Dense features of an image tower, in the space of its embeddings: of each patch alone, and of regions.

The embedding of a single patch is the tower's embedding if its attention saw that patch alone.
The attention's output is then the patch's value (MaskCLIP, Zhou, Loy, Dai, ECCV 2022, arXiv
2112.01071):

    y_i = the rest of the tower, with v_i in place of sum_j a_j v_j

In a transformer with a class token this replaces the last attention of the patches by their
values. The block's residual and its MLP do not follow, as in CLIP Surgery (arXiv 2304.05653) and
ClearCLIP. In MaskCLIP's own code for ViTs both do. Where one attention pools the tokens
it is the authors' form for CLIP's ResNets, but with the tokens' positions. Where tokens are
averaged it is the head on each token. All is differentiable in the tower's weights.

Shapes: B images, N patches, T = N + 1 tokens, D width, E embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

from phrasebox.stages.contract.values import Sides
from phrasebox.stages.model.towers.pooled import AveragedTower, PooledTower, by_tower
from phrasebox.stages.model.towers.tower import Placement, Tower
from phrasebox.stages.model.towers.vision import VisionTower, attend


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseFeatures:
    """Features of B images, in any scale.

    Attributes:
        patches: Embeddings of single patches, row by row (B, N, E).
        embedding: Embeddings of the images (B, E).
        tokens: Patches before the pool, or before the `block` of `dense` (B, N, D).
    """

    patches: Tensor
    embedding: Tensor
    tokens: Tensor | None


def dense(tower: Tower, rgb: Tensor, *, block: int | None = None) -> DenseFeatures:
    """Compute the dense features of images, uint8 (B, height, width, 3), in one forward pass.

    The part behind the trunk computes in float32. Raise ValueError if a side is not a multiple
    of the stride.

    With a class token, `tokens` are the input of the block with the number `block`, from 0.
    """

    def of_pool(tower: PooledTower) -> DenseFeatures:
        pooling = tower.pool_tokens(rgb)
        patches = tower.pool.embedding_of_each(pooling)
        return DenseFeatures(
            patches=patches, embedding=tower.pool.embedding(pooling), tokens=pooling.tokens
        )

    def of_mean(tower: AveragedTower) -> DenseFeatures:
        tokens = tower.embed(rgb).float()
        return DenseFeatures(
            patches=tower.finish(tokens), embedding=tower.finish(tokens.mean(dim=1)), tokens=tokens
        )

    def of_blocks(tower: VisionTower) -> DenseFeatures:
        tokens, early = tower.tokens_before(rgb, len(tower.blocks) - 1, block)
        last = tower.blocks[-1].float()
        x = tokens.float()
        q, k, v = last.project(x)
        token = last.finish(x[:, :1], attend(q[:, :1], k, v, last.heads))[:, 0]
        patches = last.attended(v[:, tower.prefix_tokens :])
        tokens_at_block = None if early is None else early[:, tower.prefix_tokens :]
        return DenseFeatures(
            patches=tower.head(patches), embedding=tower.head(token), tokens=tokens_at_block
        )

    return by_tower(tower, blocks=of_blocks, pooled=of_pool, averaged=of_mean)


def pool_boxes(patches: Tensor, grid_hw: Sides, placement: Placement, rois: Tensor) -> Tensor:
    """Return the mean direction of the patches under each box, as in CLIPSelf (arXiv 2310.01403), unit vectors (R, E).

    RoIAlign with one bin, several samples in it, on features of length 1.

    Args:
        patches: `DenseFeatures.patches` (B, N, E).
        grid_hw: Rows and columns of the patches.
        placement: Places of the patches in their images.
        rois: Float (R, 5): image of the batch, x0, y0, x1, y1 in px of the images, half open.
    """
    unit = F.normalize(patches.float(), dim=-1).mT.unflatten(-1, grid_hw)
    if placement.shift_px:
        rois = torch.cat([rois[:, :1], rois[:, 1:] - placement.shift_px], dim=1)
    means: Tensor = torchvision.ops.roi_align(
        unit, rois.to(unit.dtype), (1, 1), 1.0 / placement.stride_px, -1, True
    )
    return F.normalize(means.flatten(1), dim=-1)
