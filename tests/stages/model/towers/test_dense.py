"""Dense features: MaskCLIP's tests show that they are right; here that training can use them, and their means."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from phrasebox.stages.model.load import from_open_clip
from phrasebox.stages.model.towers.dense import dense, pool_boxes
from phrasebox.stages.model.towers.from_open_clip import build_image_tower
from phrasebox.stages.model.towers.tower import Placement
from tests.closeness import assert_close
from tests.factories import TOWERS


@pytest.mark.parametrize("name", TOWERS)
def test_live_weights_get_gradients_and_the_same_features(name: str) -> None:
    make, spec = TOWERS[name]
    model = make()
    rgb = torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, (2, spec.size_px, spec.size_px, 3), np.uint8)
    )
    live = build_image_tower(model.visual, spec.mean, spec.std)
    features = dense(live, rgb)
    (features.patches.square().sum() + features.embedding.square().sum()).backward()
    names = {
        key for key, value in model.visual.named_parameters() if value.grad is not None and value.grad.any()
    }
    first = next(key for key, value in model.visual.named_parameters() if value.ndim == 4)
    assert first in names, "the first convolution learns"
    assert len(names) > 0.8 * len([*model.visual.parameters()])

    torch.optim.SGD(model.visual.parameters(), lr=1e-4).step()
    stepped = dense(live, rgb)
    stepped.embedding.sum().backward()
    assert not torch.equal(stepped.embedding, features.embedding), "the step is seen"

    frozen = from_open_clip(model, lambda texts: None, spec).tower
    same = dense(frozen, rgb)
    assert not same.patches.requires_grad
    assert_close(same.patches, stepped.patches)
    # A step from random weights leaves embeddings of some hundreds, which are sums of larger numbers.
    assert_close(same.embedding, model.encode_image(frozen.normalise(rgb)), 1e-3)


def test_a_box_has_the_mean_of_the_directions_under_it_where_the_tokens_look() -> None:
    patches = torch.randn(2, 16, 8, generator=torch.Generator().manual_seed(1))
    unit = F.normalize(patches, dim=-1).unflatten(1, (4, 4))
    cells = Placement(stride_px=8)
    rois = torch.tensor([[1.0, 8, 0, 24, 8]])
    [mean] = pool_boxes(patches, (4, 4), cells, rois)
    # RoIAlign takes samples between the cells' centres, which mix in neighbours.
    assert F.cosine_similarity(mean, unit[1, 0, 1:3].mean(0), dim=0) > 0.75
    assert float(mean.norm()) == pytest.approx(1)
    roi = torch.tensor([[0.0, 8, 8, 16, 16]])
    mean = pool_boxes(patches, (4, 4), cells, roi)
    assert_close(mean[0], unit[0, 1, 1])  # one sample in the middle of a cell
    moved = pool_boxes(
        patches, (4, 4), Placement(stride_px=8, shift_px=3.0), roi + torch.tensor([0.0, 3, 3, 3, 3])
    )
    assert_close(mean, moved)
