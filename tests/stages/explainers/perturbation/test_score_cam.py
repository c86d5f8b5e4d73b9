"""Score-CAM: its formula written out, with each channel's mask made and embedded on its own."""

from __future__ import annotations

import cv2
import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F

from stages.explainers.perturbation.explainer import MaskedImage
from stages.explainers.perturbation.score_cam import ScoreCam, ScoreCamConfig, loudest_channels, tokens_of
from stages.shared.model.load import from_open_clip
from tests.factories import SPEC, TOWERS, tiny_clip

tokenizer = open_clip.get_tokenizer("ViT-B-32")
PHRASES = ["dog", "red car"]


def image_of(rows: int, columns: int, stride: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (1, rows * stride, columns * stride, 3), dtype=np.uint8)


def written_out(explainer: ScoreCam, rgb: np.ndarray, tokens: np.ndarray, *, softmax: bool) -> np.ndarray:
    """Maps (P, rows, columns) of channels (K, rows, columns), one channel after the other."""
    tower, mean = explainer.model.tower, np.array(SPEC.mean) * 255
    texts = explainer.texts(PHRASES)

    def cosines(mask: np.ndarray) -> np.ndarray:
        masked = (mean + mask[..., None] * (rgb[0] - mean)).astype(np.float32)
        with torch.no_grad():
            unit = F.normalize(tower.encode(torch.from_numpy(masked[None])), dim=-1)[0]
        return (texts @ unit).numpy()

    size_wh = (rgb.shape[2], rgb.shape[1])
    stretched = np.stack([(channel - channel.min()) / np.ptp(channel) for channel in tokens])
    nothing = cosines(np.zeros(rgb.shape[1:3]))
    gains = np.stack([cosines(cv2.resize(channel, size_wh)) for channel in stretched]) - nothing
    exponents = np.exp(100 * gains)
    weights = exponents / exponents.sum(axis=0) if softmax else gains
    heat = np.einsum("kp,krc->prc", weights, tokens)
    assert np.abs(np.diff(weights, axis=0)).max() > 1e-4
    return np.maximum(heat, 0)


@pytest.mark.parametrize("weights", ["increase", "softmax"])
def test_the_formula_on_open_clips_own_tokens_before_the_last_block(weights: str) -> None:
    model = tiny_clip()
    explainer = ScoreCam(ScoreCamConfig(channels=1000, weights=weights), from_open_clip(model, tokenizer, SPEC))
    rgb = image_of(4, 4, 8)
    with torch.no_grad():
        x = model.visual._embeds(explainer.model.tower.normalised(torch.from_numpy(rgb)))
        for block in model.visual.transformer.resblocks[:-1]:
            x = block(x)
    wanted = written_out(explainer, rgb, x[0, 1:].T.reshape(-1, 4, 4).numpy(), softmax=weights == "softmax")
    found = np.stack([heat_map.values for heat_map in explainer.explain(rgb, [PHRASES])[0]])
    assert wanted.max() > 1e-3
    assert np.allclose(found, wanted, atol=1e-4 * wanted.max())


def test_masks_lie_where_tokens_look_and_so_does_the_heat() -> None:
    make, spec = TOWERS["timm, SAME, rotary"]
    explainer = ScoreCam(ScoreCamConfig(channels=3), from_open_clip(make(), tokenizer, spec))
    tower, rgb = explainer.model.tower, torch.from_numpy(image_of(2, 3, 32))
    shift = tower.placement.shift_cells
    assert abs(shift) > 0.3
    asked: list[torch.Tensor] = []

    class Watched(MaskedImage):
        def embeddings(self, masks: torch.Tensor) -> torch.Tensor:
            asked.append(masks)
            return super().embeddings(masks)

    image = Watched(tower=tower, rgb=rgb[0], baseline=torch.zeros(64, 96, 3), masks_per_step=2, whole=torch.zeros(48))
    explainer.attribution(image)
    masks = torch.cat([each for each in asked if each.shape[1:] == (64, 96)]).numpy()
    channels = loudest_channels(tokens_of(image), 3).reshape(3, 2, 3).numpy()
    low, high = channels.min(axis=(1, 2), keepdims=True), channels.max(axis=(1, 2), keepdims=True)
    seen = 0
    for row, column in np.ndindex(2, 3):
        y, x = (int((cell + 0.5 + shift) * 32) for cell in (row, column))
        if y < 64 and x < 96:
            assert np.allclose(masks[:, y, x], ((channels - low) / (high - low))[:, row, column], atol=0.08)
            seen += 1
    assert seen >= 2
    assert explainer.explain(rgb.numpy(), [["dog"]])[0][0].shift_cells == shift


def test_a_channel_that_is_the_same_everywhere_hides_everything_and_adds_nothing() -> None:
    explainer = ScoreCam(ScoreCamConfig(channels=3), from_open_clip(tiny_clip(), tokenizer, SPEC))
    even = np.full((1, 8, 8, 3), 90, dtype=np.uint8)
    heat_map = explainer.explain(even, [["dog"]])[0][0]
    assert heat_map.fault == "empty"
