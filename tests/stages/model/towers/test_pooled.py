"""Towers that pool a trunk's tokens: open_clip's embeddings, maps in float64, a private trunk, places of tokens."""

import copy
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phrasebox.stages.explain import EXPLAINERS, kinds_for
from phrasebox.stages.explain.grad_eclip import GradEclip, GradEclipConfig
from phrasebox.stages.model.load import from_open_clip
from tests.closeness import assert_close
from tests.factories import TOWERS, tiny_resnet
from tests.stages.explain.models import module_of, tokenizer

AVERAGED = ("ConvNeXt", "timm, averaged patches", "MobileCLIP 2, convolutions")
POOLED = [name for name in TOWERS if name not in ("class token", *AVERAGED)]
TEXTS = ["red car", "two dogs"]

pooled = pytest.mark.parametrize("name", POOLED)


def pixels(name: str, rows: int = 4, columns: int = 4, count: int = 2) -> Tensor:
    stride = TOWERS[name][1].patch_px
    size = (count, rows * stride, columns * stride, 3)
    return torch.randint(0, 256, size, dtype=torch.uint8, generator=torch.Generator().manual_seed(rows))


def tower_of(name: str, model: nn.Module | None = None) -> tuple[Any, nn.Module]:
    model = model or module_of(name)
    return from_open_clip(model, tokenizer, TOWERS[name][1]).tower, model


@pytest.mark.parametrize("name", [*POOLED, *AVERAGED])
def test_a_private_tower_embeds_as_open_clip_and_shares_its_weights(name: str) -> None:
    """Whatever the mode and the hooks of the model are. A second model in memory would be as large again."""
    tower, model = tower_of(name)
    side = TOWERS[name][1].size_px // TOWERS[name][1].patch_px
    rgb = pixels(name, side, side)
    with torch.no_grad():
        expected = model.encode_image(tower.normalise(rgb))
    embedding = tower.encode(rgb)
    assert expected.abs().max() > 0.01
    assert_close(embedding, expected)

    calls: list[Any] = []
    training = copy.deepcopy(model).train()
    for module in training.visual.modules():
        module.register_forward_hook(lambda *given: calls.append(given))
    assert_close(tower_of(name, training)[0].encode(rgb), embedding)
    assert not calls

    body = getattr(tower.trunk, "body", tower.trunk)
    parameters = [*getattr(body, "__self__", body).parameters()]
    assert {parameter.data_ptr() for parameter in parameters} <= {
        parameter.data_ptr() for parameter in model.visual.parameters()
    }
    assert not any(parameter.requires_grad for parameter in parameters)


@pooled
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("heads", "similarity"), [("model", "raw"), ("single", "projected")])
def test_grad_eclip_equals_the_formula_in_float64(name: str, heads: str, similarity: str) -> None:
    """The paper's equations with loops over the patches, and autograd over the pool and all behind it."""
    model = module_of(name)
    rgb = pixels(name, count=1)
    config = GradEclipConfig(heads=heads, similarity=similarity, affinity="none")
    explainer = GradEclip(config, from_open_clip(model, tokenizer, TOWERS[name][1]))
    [maps] = explainer.explain(rgb.numpy(), [TEXTS])
    tower, _ = tower_of(name, copy.deepcopy(model).double())
    pool = tower.pool
    tokens = tower.embed(rgb)
    pooling = pool.pool_tokens(tokens, (4, 4), 1 if heads == "single" else None)
    residual = 0 if pooling.residual is None else pooling.residual[:, 0]
    expected = []
    for text in explainer.texts(TEXTS).double():
        o = pooling.output[0].clone().requires_grad_()
        cosine = F.cosine_similarity(pool.finish(pool.scale(pool.out(o[None])) + residual)[0], text, dim=0)
        (w,) = torch.autograd.grad(cosine, o)
        query = pooling.query[0]
        keys = pooling.keys[0]
        if similarity == "projected":
            query = pool.out(query)
            keys = pool.out(keys)
        s = torch.stack([query @ key / (query.norm() * key.norm()) for key in keys])
        weight = (s - s.min()) / (s.max() - s.min())
        heat = (weight * torch.stack([w @ value for value in pooling.values[0]])).clamp(min=0)
        expected.append((heat.detach(), float(cosine.detach())))
    peak = max(float(heat.max()) for heat, _ in expected)
    assert peak > 0
    for heat_map, (heat, cosine) in zip(maps, expected, strict=True):
        assert (torch.from_numpy(heat_map.values).flatten() - heat).abs().max() < 1e-6 * peak
        assert heat_map.similarity == pytest.approx(cosine, abs=1e-6)


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
        expected = other.encode_image(tower.normalise(rgb))
    assert_close(tower.encode(rgb), expected)


@pytest.mark.parametrize(
    ("name", "shift_px"),
    {
        "class token": 0.0,
        "ResNet": -0.5,
        "timm, positions": -8.5,
        "timm, SAME": 15.5,
        "PE-Core": 0.0,
        "MobileCLIP 2, transformer": 0.0,
        "MobileCLIP 2, convolutions": -31.5,
    }.items(),
)
def test_tokens_are_where_their_receptive_fields_are(name: str, shift_px: float) -> None:
    """Pixels by which the gradient of a token lies beside the centre of its cell, where all kernels are means.

    The blocks of resnet10t average 2 x 2 features in their shortcuts, which moves nothing, and convolve them with
    padding beside that, which does: the sum lies in between.
    """
    assert tower_of(name)[0].placement.shift_px == shift_px


@pytest.mark.parametrize(
    ("name", "network", "options"),
    [
        ("SigLIP", "test_vit", {"num_classes": 0}),
        ("PE-Core", "small_pe_core_patch16_64", {"num_classes": 48}),
        ("MobileCLIP 2, transformer", "small_mci_64", {"num_classes": 48}),
    ],
)
@pytest.mark.parametrize(("rows", "columns"), [(4, 4), (3, 7)])
def test_a_transformer_of_timm_takes_other_sizes_as_its_own_option_does(
    name: str, network: str, options: dict[str, int], rows: int, columns: int
) -> None:
    tower, model = tower_of(name)
    rgb = pixels(name, rows, columns)
    pool = model.visual.trunk.global_pool
    other = timm.create_model(network, global_pool=pool, dynamic_img_size=True, **options)
    other.load_state_dict(model.visual.trunk.state_dict())
    with torch.no_grad():
        expected = other.eval()(tower.normalise(rgb))
    assert_close(tower.encode(rgb), expected)


def test_a_convolution_network_takes_other_sizes_as_it_is() -> None:
    name = "MobileCLIP 2, convolutions"
    tower, model = tower_of(name)
    rgb = pixels(name, 3, 5)
    with torch.no_grad():
        expected = model.encode_image(tower.normalise(rgb))
    assert_close(tower.encode(rgb), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in TOWERS if name.startswith(("PE-Core", "MobileCLIP 2"))])
def test_every_explainer_that_fits_has_maps(name: str) -> None:
    clip = from_open_clip(module_of(name), tokenizer, TOWERS[name][1])
    rgb = pixels(name, 3, 5, 1).numpy()
    for kind in kinds_for(clip.tower.kind):
        explainer = EXPLAINERS[kind]
        [maps] = explainer(explainer.config_type(), clip).explain(rgb, [TEXTS])
        for heat_map in maps:
            assert heat_map.values.shape == (3, 5), kind
            assert np.isfinite(heat_map.values).all(), kind
            assert heat_map.values.any() != bool(heat_map.fault), kind
