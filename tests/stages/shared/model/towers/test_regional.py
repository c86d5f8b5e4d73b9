"""Features of regions are means over the patches under them."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from stages.shared.model.towers.dense import by_boxes, by_masks
from stages.shared.model.towers.tower import Placement


def test_a_box_of_whole_cells_has_the_mean_of_their_directions() -> None:
    patches = torch.randn(2, 16, 8, generator=torch.Generator().manual_seed(1))
    unit = F.normalize(patches, dim=-1).unflatten(1, (4, 4))
    rois = torch.tensor([[1.0, 8, 0, 24, 8], [0.0, 0, 16, 8, 32]])
    found = by_boxes(patches, (4, 4), Placement(stride_px=8), rois)
    wanted = torch.stack([unit[1, 0, 1:3].mean(0), unit[0, 2:4, 0].mean(0)])
    # RoIAlign takes samples between the cells' centres, which mix in neighbours.
    assert F.cosine_similarity(found, wanted).min() > 0.75
    assert torch.allclose(found.norm(dim=1), torch.ones(2))
    alone = by_boxes(patches, (4, 4), Placement(stride_px=8), torch.tensor([[0.0, 8, 8, 16, 16]]))
    assert torch.allclose(alone[0], unit[0, 1, 1], atol=1e-6), "one sample in the middle of a cell"


def test_tokens_that_look_elsewhere_are_taken_where_they_look() -> None:
    patches = torch.randn(1, 16, 8, generator=torch.Generator().manual_seed(2))
    roi = torch.tensor([[0.0, 8, 8, 16, 16]])
    there = by_boxes(patches, (4, 4), Placement(stride_px=8), roi)
    moved = by_boxes(patches, (4, 4), Placement(stride_px=8, shift_px=3.0), roi + torch.tensor([0.0, 3, 3, 3, 3]))
    assert torch.allclose(there, moved, atol=1e-5)


def test_a_mask_weighs_its_patches() -> None:
    patches = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(3))
    shares = torch.tensor([[[1.0, 0.5], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    found = by_masks(patches, shares)
    unit = F.normalize(patches, dim=-1)
    assert torch.allclose(found[0], F.normalize(unit[0, 0] + 0.5 * unit[0, 1], dim=0))
    assert not found[1].any()
