"""Towers that one attention pools: open_clip's embeddings, autograd's gradients, a private trunk."""

from __future__ import annotations

import copy
import functools
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.contract.geometry import resize_shifted
from stages.explain.grad_eclip import GradEclip, GradEclipConfig
from stages.shared.model.load import from_open_clip
from stages.shared.model.towers.plan import TowerPlan, plan_of
from stages.shared.model.towers.pooled import PooledTower
from tests.factories import TOWERS, tiny_resnet

tokenizer = open_clip.get_tokenizer("ViT-B-32")
POOLED = [name for name in TOWERS if name not in ("class token", "ConvNeXt", "timm, averaged patches")]

pooled = pytest.mark.parametrize("name", POOLED)


def pixels(name: str, rows: int = 4, columns: int = 4, count: int = 2) -> Tensor:
    stride = TOWERS[name][1].patch_px
    size = (count, rows * stride, columns * stride, 3)
    return torch.randint(0, 256, size, dtype=torch.uint8, generator=torch.Generator().manual_seed(rows))


@functools.cache
def only_read(name: str) -> nn.Module:
    """A model that no test changes."""
    return TOWERS[name][0]()


def tower_of(name: str, model: nn.Module | None = None) -> tuple[PooledTower, nn.Module]:
    spec = TOWERS[name][1]
    model = model or only_read(name)
    tower = from_open_clip(model, tokenizer, spec).tower
    assert isinstance(tower, PooledTower)
    return tower, model


@pooled
def test_encode_equals_encode_image(name: str) -> None:
    tower, model = tower_of(name)
    side = TOWERS[name][1].size_px // TOWERS[name][1].patch_px
    rgb = pixels(name, side, side)
    with torch.no_grad():
        wanted = model.encode_image(tower.normalised(rgb))
    assert wanted.abs().max() > 0.01
    assert (tower.encode(rgb) - wanted).abs().max() < 1e-5 * max(1, wanted.abs().max())


@pooled
def test_a_model_in_training_mode_is_computed_in_evaluation_mode(name: str) -> None:
    tower, model = tower_of(name)
    training, _ = tower_of(name, copy.deepcopy(model).train())
    assert torch.equal(training.encode(pixels(name)), tower.encode(pixels(name)))


@pooled
def test_hooks_of_the_model_are_not_called(name: str) -> None:
    model = copy.deepcopy(only_read(name))
    calls: list[Any] = []
    for module in model.visual.modules():
        module.register_forward_hook(lambda *given: calls.append(given))
    tower, _ = tower_of(name, model)
    tower.encode(pixels(name))
    assert not calls


@pooled
def test_weights_are_shared_and_not_copied(name: str) -> None:
    """A second model in memory would not be read only, but as large again."""
    tower, model = tower_of(name)
    owned = {parameter.data_ptr() for parameter in model.visual.parameters()}
    body = tower.trunk.body if hasattr(tower.trunk, "body") else tower.trunk
    assert {parameter.data_ptr() for parameter in body.parameters()} <= owned
    assert not any(parameter.requires_grad for parameter in body.parameters())


@pooled
@pytest.mark.parametrize("size", [(4, 4), (3, 6)], ids=["square", "wide"])
def test_gradients_equal_autograd_in_float64(name: str, size: tuple[int, int]) -> None:
    """dc/do of the attention's output, and with it the map, from the whole cosine."""
    _, model = tower_of(name)
    tower, _ = tower_of(name, copy.deepcopy(model).double())
    rgb = pixels(name, *size)
    seen = tower.look(rgb)
    o = seen.output.clone().requires_grad_()
    pool = tower.pool
    projected = pool.scale(pool.out(o)) + (seen.projected - pool.scale(pool.out(seen.output)))
    e = pool.finish(projected)
    gradient = torch.randn(2, 3, e.shape[1], generator=torch.Generator().manual_seed(2)).double()
    found = pool.back(seen, gradient)
    for p in range(3):
        (wanted,) = torch.autograd.grad(e, o, gradient[:, p], retain_graph=True)
        assert torch.allclose(found[:, p], wanted, rtol=1e-9, atol=1e-12)


@pooled
@pytest.mark.parametrize("heads", ["model", "single"])
@pytest.mark.parametrize("similarity", ["raw", "projected"])
def test_grad_eclip_equals_the_formula_in_float64(name: str, heads: str, similarity: str) -> None:
    """The paper's equations with loops over the patches, and autograd over the pool and all behind it."""
    spec = TOWERS[name][1]
    model = only_read(name)
    config = GradEclipConfig(heads=heads, similarity=similarity, blocks=1)
    explainer = GradEclip(config, from_open_clip(model, tokenizer, spec))
    rgb = pixels(name, count=1)
    [maps] = explainer.explain(rgb.numpy(), [["red car", "two dogs"]])
    tower, _ = tower_of(name, copy.deepcopy(model).double())
    pool, tokens = tower.pool, tower.embed(rgb)
    seen = pool.look(tokens, (4, 4), 1 if heads == "single" else None)
    texts = explainer.texts(["red car", "two dogs"]).double()
    wanted = []
    for text in texts:
        o = seen.output[0].clone().requires_grad_()
        asking = seen.projected - pool.scale(pool.out(seen.output))
        e = pool.finish(pool.scale(pool.out(o[None])) + asking)[0]
        cosine = F.cosine_similarity(e, text, dim=0)
        (w,) = torch.autograd.grad(cosine, o)
        query, keys = seen.query[0], seen.keys[0]
        if similarity == "projected":
            query, keys = pool.out(query), pool.out(keys)
        s = torch.stack([query @ key / (query.norm() * key.norm()) for key in keys])
        weight = (s - s.min()) / (s.max() - s.min())
        wanted.append(
            (
                (weight * torch.stack([w @ value for value in seen.values[0]])).clamp(min=0).detach(),
                float(cosine.detach()),
            )
        )
    peak = max(float(heat.max()) for heat, _ in wanted)
    assert peak > 0
    for heat_map, (heat, cosine) in zip(maps, wanted, strict=True):
        assert (
            torch.from_numpy(heat_map.values).flatten() - heat
        ).abs().max() < 1e-4 * peak  # float32 over a whole trunk
        assert heat_map.similarity == pytest.approx(cosine, abs=1e-5)  # the same


def test_positions_of_a_resnet_are_resized_bilinearly() -> None:
    """Equal to open_clip's own model of that size with the resized table."""
    tower, model = tower_of("ResNet")
    other = tiny_resnet(image_size=192)
    state = model.state_dict()
    table = state["visual.attnpool.positional_embedding"]
    grid = table[1:].T.reshape(1, -1, 4, 4)
    grid = F.interpolate(grid, size=(6, 6), mode="bilinear", align_corners=False)
    state["visual.attnpool.positional_embedding"] = torch.cat([table[:1], grid.flatten(2)[0].T])
    other.load_state_dict(state)
    rgb = pixels("ResNet", 6, 6)
    with torch.no_grad():
        wanted = other.encode_image(tower.normalised(rgb))
    assert torch.allclose(tower.encode(rgb), wanted, atol=1e-5)


@pooled
def test_sixteen_bits_agree_roughly(name: str) -> None:
    spec = TOWERS[name][1]
    model, rgb = only_read(name), pixels(name, count=1).numpy()
    low = from_open_clip(model, tokenizer, spec, precision=torch.bfloat16)
    assert low.tower.dtype == torch.bfloat16
    [a], [b] = (
        GradEclip(GradEclipConfig(), clip).explain(rgb, [["dog"]])[0]
        for clip in (low, from_open_clip(model, tokenizer, spec))
    )
    assert abs(a.similarity - b.similarity) < 0.05
    assert a.values.max() > 0


def linear_body(name: str) -> nn.Module:
    """The trunk of a convolutional tower with means for kernels, so that it only blurs what it is given."""
    _, model = tower_of(name)
    visual = copy.deepcopy(model.visual)
    with torch.no_grad():
        for part in list(visual.modules()):
            if isinstance(part, nn.Conv2d):
                part.weight.fill_(1 / part.weight[0].numel())
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                part.weight.fill_(1)
                part.bias.zero_()
                part.running_mean.zero_()
                part.running_var.fill_(1 - part.eps)
            for child, inner in part.named_children():
                if isinstance(inner, nn.MaxPool2d):  # of equal numbers it would take the first
                    size = (inner.kernel_size, inner.stride, inner.padding)
                    setattr(part, child, nn.AvgPool2d(*size, count_include_pad=False))
    body = visual.trunk if hasattr(visual, "trunk") else visual
    if body is visual:
        body.attnpool = nn.Identity()
    return body.eval().requires_grad_(False)


CONVOLUTIONS = {"ResNet": -0.5, "timm, positions": -8.5, "timm, SAME, rotary": 15.5}
"""Towers with a grid of features -> pixels by which their tokens lie beside the centres of their cells.

The blocks of resnet10t average 2 x 2 features in their shortcuts, which moves nothing, and convolve them with padding
beside that, which does: the sum lies in between."""


@pytest.mark.parametrize(("name", "shift_px"), CONVOLUTIONS.items())
def test_tokens_are_where_their_receptive_fields_are(name: str, shift_px: float) -> None:
    """The centre of what a token looks at, from the gradient of that token with respect to the pixels."""
    tower, _ = tower_of(name)
    assert tower.placement.shift_px == shift_px
    side = 24 * 32
    image = torch.full((1, 3, side, side), 0.01, requires_grad=True)
    linear_body(name)(image)[0, :, 12, 11].sum().backward()
    weights = image.grad[0].sum(dim=0)
    assert (weights >= 0).all()
    centres = torch.arange(side) + 0.5
    y, x = (float((sums @ centres) / sums.sum()) for sums in (weights.sum(dim=1), weights.sum(dim=0)))
    assert (y, x) == pytest.approx((12.5 * 32 + shift_px, 11.5 * 32 + shift_px), abs=0.5)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_maps_of_convolutions_are_drawn_where_the_light_is(name: str) -> None:
    """A bright spot in the image, seen through a trunk that only blurs, and drawn again at the size of the image."""
    tower, _ = tower_of(name)
    side = 16 * 32
    image = torch.zeros(1, 3, side, side)
    image[:, :, 280:300, 200:220] = 1
    features = linear_body(name)(image)[0].sum(dim=0).numpy()
    drawn = resize_shifted(features, (side, side), tower.placement.shift_cells)
    centres = np.arange(side) + 0.5
    found = [float(sums @ centres / sums.sum()) for sums in (drawn.sum(axis=1), drawn.sum(axis=0))]
    assert found == pytest.approx([290, 210], abs=1.5)


@pytest.mark.parametrize(("rows", "columns"), [(4, 4), (3, 7)])
def test_a_transformer_of_timm_takes_other_sizes_as_its_own_option_does(rows: int, columns: int) -> None:
    tower, model = tower_of("SigLIP")
    rgb = pixels("SigLIP", rows, columns)
    other = timm.create_model("test_vit", global_pool="map", num_classes=0, dynamic_img_size=True)
    other.load_state_dict(model.visual.trunk.state_dict())
    with torch.no_grad():
        wanted = other.eval()(tower.normalised(rgb))
    assert torch.allclose(tower.encode(rgb), wanted, atol=1e-5)


def test_pixels_that_fill_no_patch_are_left_out_of_the_input() -> None:
    """ViT-SO400M-14-SigLIP-384: timm cuts off what does not fill a patch of 14 px, so that a token less is seen."""
    assert plan_of(open_clip.get_model_config("ViT-SO400M-14-SigLIP-384")) == TowerPlan(
        kind="latent_pool", size_px=378, stride_px=14
    )
