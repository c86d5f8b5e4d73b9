"""The image towers that people have, in full size with random weights: open_clip's embeddings, and heat maps.

With every explainer they take hours: `pytest -m real_towers`. With the default explainer of each they are `slow`.
"""

import numpy as np
import open_clip
import pytest
import torch

from phrasebox.stages.explain import EXPLAINERS, kinds_for
from phrasebox.stages.model.load import from_open_clip
from tests.build.datasets import Json
from tests.closeness import assert_close

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1}
"""A small text tower: that of the real models is tested elsewhere, or needs a download."""

NAMES = (
    "RN50", "RN50x4", "convnext_base_w", "convnext_large_d", "ViTamin-S",
    "MobileCLIP-S1", "MobileCLIP-B", "MobileCLIP2-S0", "MobileCLIP2-S2", "MobileCLIP2-B", "MobileCLIP2-S3",
    "MobileCLIP2-S4", "MobileCLIP2-L-14", "ViT-B-16-SigLIP", "ViT-B-16-SigLIP2-384",
    "PE-Core-T-16-384", "PE-Core-S-16-384", "PE-Core-B-16", "PE-Core-L-14-336",
    "EVA02-B-16", "ViT-L-14-CLIPA", "ViT-B-16",
)  # fmt: skip


@pytest.mark.parametrize(
    "explainers",
    [pytest.param(1, marks=pytest.mark.slow), pytest.param(None, marks=pytest.mark.real_towers)],
)
@pytest.mark.parametrize("name", NAMES)
def test_a_real_tower_embeds_as_open_clip_and_is_explained(name: str, explainers: int | None) -> None:
    architecture = open_clip.get_model_config(name)
    torch.manual_seed(0)
    width = architecture["embed_dim"]
    options: Json = {"embed_dim": width, "vision_cfg": architecture["vision_cfg"], "text_cfg": TEXT}
    model = open_clip.CLIP(**options).train()
    clip = from_open_clip(model, open_clip.get_tokenizer("ViT-B-32"))
    side = clip.input.size_px
    stride = clip.input.patch_px
    grid = side // stride
    rgb = np.random.default_rng(0).integers(0, 256, (1, side, side, 3), dtype=np.uint8)
    for kind in kinds_for(clip.tower.kind)[:explainers]:
        explainer = EXPLAINERS[kind]
        [maps] = explainer(explainer.config_type(), clip).explain(rgb, [["a red car", "two dogs"]])
        for heat_map in maps:
            assert heat_map.values.shape == (grid, grid)
            assert np.isfinite(heat_map.values).all()
            assert heat_map.values.any() != bool(heat_map.fault)
    pixels = clip.tower.normalise(torch.from_numpy(rgb))
    with torch.no_grad():
        expected = model.eval().encode_image(pixels)
    assert_close(clip.tower.encode(torch.from_numpy(rgb)), expected)
