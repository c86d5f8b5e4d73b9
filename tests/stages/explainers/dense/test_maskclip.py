"""MaskCLIP: open_clip's own last block with each patch attending to itself, and pools that see one token."""

from __future__ import annotations

from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stages.explainers.dense.maskclip import MaskClip, MaskClipConfig
from stages.shared.model.load import from_open_clip
from stages.shared.model.towers.pooled import PooledTower
from tests.factories import SPEC, TOWERS, tiny_clip

PHRASES = ["red car", "dog"]
tokenizer = open_clip.get_tokenizer("ViT-B-32")


def found(tower: str, **settings: Any) -> tuple[np.ndarray, MaskClip, np.ndarray]:
    """Maps (P, rows, columns) of an image, the explainer, and the image."""
    make, spec = TOWERS[tower]
    explainer = MaskClip(MaskClipConfig(**settings), from_open_clip(make(), tokenizer, spec))
    side = 3 * spec.patch_px
    rgb = np.random.default_rng(2).integers(0, 256, (1, side, side, 3), dtype=np.uint8)
    return np.stack([each.values for each in explainer.explain(rgb, [PHRASES])[0]]), explainer, rgb


def heat_of(dense: Tensor, explainer: MaskClip) -> np.ndarray:
    """The formula on embeddings of the patches (N, E)."""
    cosines = explainer.texts(PHRASES) @ F.normalize(dense, dim=-1).T
    heat: np.ndarray = (cosines - cosines.amin(dim=1, keepdim=True)).unflatten(1, (3, 3)).numpy()
    return heat


@pytest.mark.parametrize("residual", [True, False])
def test_a_class_token_tower_is_open_clip_with_a_patch_attending_to_itself(residual: bool) -> None:
    model = tiny_clip(layers=2, ls_init_value=0.5)
    explainer = MaskClip(MaskClipConfig(residual=residual), from_open_clip(model, tokenizer, SPEC))
    rgb = np.random.default_rng(2).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    with torch.no_grad():
        visual, last = model.visual, model.visual.transformer.resblocks[-1]
        x = visual._embeds(explainer.model.tower.normalised(torch.from_numpy(rgb)))
        x = visual.transformer.resblocks[0](x)
        z = last.ln_1(x)
        itself = torch.full((z.shape[1], z.shape[1]), float("-inf")).fill_diagonal_(0)
        alone = last.ls_1(last.attn(z, z, z, need_weights=False, attn_mask=itself)[0])
        if residual:
            alone = x + alone
            alone = alone + last.ls_2(last.mlp(last.ln_2(alone)))
        dense = (visual.ln_post(alone) @ visual.proj)[0, 1:]
        whole = F.normalize(model.encode_image(explainer.model.tower.normalised(torch.from_numpy(rgb))), dim=-1)
        cosines = explainer.texts(PHRASES) @ F.normalize(dense, dim=-1).T
    maps = explainer.explain(rgb, [PHRASES])[0]
    wanted = (cosines - cosines.amin(dim=1, keepdim=True)).unflatten(1, (4, 4)).numpy()
    assert wanted.max() > 0.1
    for each, heat, text in zip(maps, wanted, explainer.texts(PHRASES), strict=True):
        assert np.allclose(each.values, heat, atol=1e-5)
        assert each.similarity == pytest.approx(float(whole[0] @ text), abs=1e-5)


@pytest.mark.parametrize("name", ["ResNet", "timm, SAME, rotary", "SigLIP"])
def test_a_pool_that_sees_one_token_gives_its_embedding(name: str) -> None:
    maps, explainer, rgb = found(name)
    tower = explainer.model.tower
    assert isinstance(tower, PooledTower)
    tokens = tower.embed(torch.from_numpy(rgb))
    others = tower.pool.others
    with torch.no_grad():
        # The first token asks in some pools, and is looked at too: there it is the patch itself.
        alone = [
            tower.pool.embedding(tower.pool.look(tokens[:, [others + n] * (others + 1)], (1, 1)))[0] for n in range(9)
        ]
    wanted = heat_of(torch.stack(alone), explainer)
    assert wanted.max() > 0.01
    assert np.allclose(maps, wanted, atol=1e-5)


def test_an_averaged_tower_gives_the_head_on_each_token() -> None:
    maps, explainer, rgb = found("ConvNeXt")
    tokens = explainer.model.tower.embed(torch.from_numpy(rgb))
    with torch.no_grad():
        alone = [explainer.model.tower.finish(token) for token in tokens[0]]
    assert np.allclose(maps, heat_of(torch.stack(alone), explainer), atol=1e-5)


def test_an_image_without_differences_has_no_heat_and_says_why() -> None:
    model = tiny_clip(layers=2)
    model.visual.positional_embedding.data.zero_()
    explainer = MaskClip(MaskClipConfig(), from_open_clip(model, tokenizer, SPEC))
    maps = explainer.explain(np.full((1, 32, 32, 3), 90, dtype=np.uint8), [PHRASES])[0]
    assert [each.fault for each in maps] == ["constant", "constant"]
