"""One trunk for all explainers."""

import numpy as np
import torch

from pipeline.research.compare.faithfulness import image_embeddings
from pipeline.research.compare.maps import CachedTrunk, with_trunk_cache
from stages.explainers.cams import Cam, CamConfig
from stages.explainers.dense import MaskClip, MaskClipConfig
from stages.shared.model.load import from_open_clip
from tests.factories import TOWERS

RNG = np.random.default_rng(0)


@torch.no_grad()
def test_explainers_share_the_trunk_and_get_the_same_maps() -> None:
    make, spec = TOWERS["ConvNeXt"]
    model = from_open_clip(make(), spec=spec)
    cached_model = with_trunk_cache(model)
    trunk = cached_model.tower.trunk  # type: ignore[attr-defined]  # an averaged tower
    assert isinstance(trunk, CachedTrunk)
    calls: list[int] = []
    inner = trunk.trunk
    trunk.trunk = lambda pixels: (calls.append(len(pixels)), inner(pixels))[1]
    first, second = (RNG.integers(0, 256, (2, 128, 128, 3), dtype=np.uint8) for _ in range(2))
    phrases = [["a cat"], ["a dog"]]
    for number, rgb in enumerate((first, second), start=1):
        for make_one, config in ((Cam, CamConfig()), (MaskClip, MaskClipConfig())):
            maps = make_one(config, cached_model).explain(rgb, phrases)
            expected = make_one(config, model).explain(rgb, phrases)
            for a, b in zip(maps, expected, strict=True):
                assert a[0].values.tobytes() == b[0].values.tobytes()
        image_embeddings(cached_model, rgb)
        assert calls == [2] * number
    for _ in range(2):  # some explainers take the images one by one
        for rgb in second:
            image_embeddings(cached_model, rgb[None])
    assert calls == [2, 2, 1, 1]
