"""Explainers that mask the image, against images that numpy masked, one at a time, and closed forms."""

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stages.explainers.perturbation.masked import (
    MaskedImage,
    baseline_image,
    blur_image,
    embeddings_and_tokens,
    masked_embeddings,
)
from stages.explainers.perturbation.masks import (
    OcclusionConfig,
    RiseConfig,
    ScoreCam,
    loudest_channels,
    rise_masks,
    tokens_of,
    windows,
)
from stages.shared.model.towers.tower import Tower
from tests.factories import SPEC, TOWERS, tiny_clip
from tests.stages.explain.models import PHRASES, clip_of, image, make_explainer


def tower_and_image(name: str = "class token") -> tuple[Tower, torch.Tensor]:
    return clip_of(name).tower, torch.from_numpy(image(name, 2, 3)[0])


@pytest.mark.parametrize("name", TOWERS)
def test_they_are_the_embeddings_of_images_that_were_masked_before(name: str) -> None:
    tower, rgb = tower_and_image(name)
    masks = torch.tensor([[[1.0, 0, 1], [0, 1, 1]], [[1, 1, 1], [1, 1, 1]], [[0, 0, 0], [0, 0, 0]]])
    embeddings = masked_embeddings(tower, rgb, masks, baseline_image(tower, rgb, "black"), masks_per_step=2)
    side = tower.placement.stride_px
    shown = np.kron(masks.numpy(), np.ones((1, side, side))).astype(np.uint8)
    with torch.no_grad():
        expected = F.normalize(tower.encode(torch.from_numpy(shown[..., None] * rgb.numpy())), dim=-1)
    spread = float((expected[0] - expected[1]).abs().max())
    assert spread > 1e-5
    assert torch.allclose(embeddings, expected, atol=min(spread / 20, 1e-5))


def test_masks_in_pixels_mix_and_are_not_rounded() -> None:
    tower, rgb = tower_and_image()
    mean = baseline_image(tower, rgb, "mean")
    share = torch.rand(3, 16, 24, generator=torch.Generator().manual_seed(1))
    embeddings = masked_embeddings(tower, rgb, share, mean)
    # A mask on the mean colour multiplies the normalised image.
    normalised = tower.normalise(rgb[None]) * share[:, None]
    pixels = (normalised * tower.std[:, None, None] + tower.mean[:, None, None]) * 255
    with torch.no_grad():
        expected = F.normalize(tower.encode(pixels.permute(0, 2, 3, 1)), dim=-1)
    assert torch.allclose(embeddings, expected, atol=1e-5)


def test_halved_weights_have_a_head_in_float32() -> None:
    plain, rgb = tower_and_image()
    tower = clip_of("class token", precision=torch.bfloat16).tower
    embeddings = masked_embeddings(tower, rgb, torch.ones(2, 2, 3), baseline_image(tower, rgb, "mean"))
    assert embeddings.dtype == torch.float32
    assert torch.allclose(embeddings.norm(dim=-1), torch.ones(2), atol=1e-6)
    whole = masked_embeddings(plain, rgb, torch.ones(1, 2, 3), baseline_image(tower, rgb, "mean"))
    assert torch.allclose(embeddings, whole.expand(2, -1), atol=0.03)


@pytest.mark.parametrize("name", ["class token", "ResNet", "ConvNeXt"])
def test_tokens_come_from_the_same_pass(name: str) -> None:
    tower, rgb = tower_and_image(name)
    rgb = rgb[None]
    with torch.no_grad():
        embedding, tokens = embeddings_and_tokens(tower, rgb, block=0)
        assert torch.allclose(embedding, tower.encode(rgb), atol=1e-5)
        tower_tokens = tower.embed(rgb)
    assert tokens is not None
    assert torch.equal(tokens, tower_tokens[:, tower_tokens.shape[1] - 6 :])


def test_a_blur_keeps_what_is_even_and_spreads_a_point_as_a_gaussian() -> None:
    assert torch.allclose(
        blur_image(torch.full((9, 7, 3), 40.0), 2.0), torch.full((9, 7, 3), 40.0), atol=1e-4
    )
    point = torch.zeros(31, 31, 3)
    point[15, 15] = 1
    spread = blur_image(point, 2.0)[..., 0]
    places = torch.arange(31.0) - 15
    assert spread.sum().item() == pytest.approx(1, abs=1e-5)
    assert (spread.sum(dim=0) * places**2).sum().item() == pytest.approx(4, rel=0.05)
    assert spread[15, 17] / spread[15, 15] == pytest.approx(np.exp(-0.5), abs=1e-5)


# Occlusion


def test_a_map_is_what_the_cosine_loses_in_the_mean_over_the_windows() -> None:
    explainer = make_explainer("occlusion", window=0.5, stride=0.5)
    rgb = image(columns=5, seed=3)
    (heat_map,) = explainer.explain(rgb, [["dog"]])[0]
    text = explainer.texts(["dog"])[0]
    mean = np.array(SPEC.mean) * 255

    def cosine(pixels: np.ndarray) -> float:
        with torch.no_grad():
            e = explainer.model.tower.encode(torch.from_numpy(pixels[None]))[0]
        return float(e @ text / e.norm())

    whole = cosine(rgb[0].astype(np.float32))
    losses = [[[] for _ in range(5)] for _ in range(4)]
    for top in range(3):
        for left in range(4):
            hidden = rgb[0].astype(np.float32)
            hidden[8 * top : 8 * top + 16, 8 * left : 8 * left + 16] = mean
            for row, column in np.ndindex(2, 2):
                losses[top + row][left + column].append(whole - cosine(hidden))
    expected = np.array([[np.mean(cell) for cell in row] for row in losses])
    assert (expected > 0.001).any()
    assert (expected < -0.001).any()
    assert np.allclose(heat_map.values, np.maximum(expected, 0), atol=1e-5)
    assert heat_map.similarity == pytest.approx(whole, abs=1e-5)


DEFAULTS = OcclusionConfig()


def test_a_square_image_never_takes_more_than_500_windows() -> None:
    numbers = [len(windows((cells, cells), DEFAULTS.window, DEFAULTS.stride)) for cells in range(1, 65)]
    assert max(numbers) == 484


@pytest.mark.parametrize(
    ("grid_hw", "settings", "number", "side"),
    [
        ((4, 4), (DEFAULTS.window, DEFAULTS.stride), 16, 1),
        ((14, 14), (DEFAULTS.window, DEFAULTS.stride), 169, 2),
        ((14, 21), (DEFAULTS.window, DEFAULTS.stride), 260, 2),
        ((5, 8), (0.6, 1.0), 2 * 3, 3),  # a stride that does not fit ends with the grid
        ((3, 3), (1.0, 1.0), 1, 3),
    ],
)
def test_windows_cover_the_grid(grid_hw, settings, number, side) -> None:
    hidden = windows(grid_hw, *settings)
    assert hidden.shape == (number, *grid_hw)
    assert set(hidden.sum(dim=(1, 2)).tolist()) == {side * side}
    assert (hidden.sum(dim=0) >= 1).all()
    assert hidden[-1, -side:, -side:].all()


@pytest.mark.parametrize(("kind", "beside"), [("occlusion", False), ("score_cam", True)])
def test_heat_of_cells_stands_on_them_where_tokens_look_beside_theirs(kind: str, beside: bool) -> None:
    settings = {"window": 1.0} if kind == "occlusion" else {"channels": 3}
    explainer = make_explainer(kind, "timm, SAME", **settings)
    shift = explainer.model.tower.placement.shift_cells
    assert shift != 0
    assert explainer.explain(image("timm, SAME", 1, 2), [["dog"]])[0][0].shift_cells == beside * shift


# RISE


@pytest.mark.parametrize("centred", [False, True])
def test_the_map_is_the_sum_over_the_masks(centred: bool) -> None:
    explainer = make_explainer("rise", masks=7, centred=centred, masks_per_step=3)
    rgb = torch.from_numpy(image(columns=5, seed=0))
    texts = F.normalize(torch.randn(1, 8, 48, generator=torch.Generator().manual_seed(0)), dim=-1)
    heat = explainer.maps(rgb).heat(texts)
    tower = explainer.model.tower
    masks = torch.cat(list(rise_masks(explainer.config, (32, 40))))
    # The paper multiplies the input as the network takes it.
    masked = tower.normalise(rgb) * masks[:, None]
    pixels = (masked * tower.std[:, None, None] + tower.mean[:, None, None]) * 255
    with torch.no_grad():
        cosines = F.normalize(tower.encode(pixels.permute(0, 2, 3, 1)), dim=-1) @ texts[0].T
    total = torch.einsum("np,nyx->pyx", cosines - centred * cosines.mean(dim=0), masks) / (7 * 0.5)
    expected = total.numpy().reshape(8, 4, 8, 5, 8).mean(axis=(2, 4)).reshape(8, 20)
    assert expected.max() > 0.002
    assert np.allclose(heat[0].numpy(), np.maximum(expected, 0), atol=1e-5)


def test_masks_are_the_same_for_a_size_and_do_not_depend_on_the_steps() -> None:
    masks, larger_steps = (
        torch.cat(list(rise_masks(RiseConfig(masks=50, masks_per_step=step), (24, 40)))) for step in (7, 50)
    )
    assert torch.equal(masks, larger_steps)
    assert masks.shape == (50, 24, 40)
    assert masks.min() >= 0
    assert masks.max() <= 1


def test_every_pixel_is_shown_as_often_as_the_others() -> None:
    masks = torch.cat(list(rise_masks(RiseConfig(masks=6000, masks_per_step=4096), (12, 18))))
    assert torch.allclose(masks.mean(dim=0), torch.tensor(0.5), atol=0.03)


# Score-CAM


def written_out(explainer: ScoreCam, rgb: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Maps (P, rows, columns) of channels (K, rows, columns), one channel after the other."""
    tower = explainer.model.tower
    mean = np.array(SPEC.mean) * 255
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
    assert np.abs(np.diff(gains, axis=0)).max() > 1e-4
    return np.maximum(np.einsum("kp,krc->prc", gains, tokens), 0)


def test_the_formula_on_open_clips_own_tokens_before_the_last_block() -> None:
    model = tiny_clip()
    explainer = make_explainer("score_cam", model, channels=1000)
    rgb = image(seed=3)
    with torch.no_grad():
        x = model.visual._embeds(explainer.model.tower.normalise(torch.from_numpy(rgb)))
        for block in model.visual.transformer.resblocks[:-1]:
            x = block(x)
    expected = written_out(explainer, rgb, x[0, 1:].T.reshape(-1, 4, 4).numpy())
    actual = np.stack([heat_map.values for heat_map in explainer.explain(rgb, [PHRASES])[0]])
    assert expected.max() > 1e-3
    assert np.allclose(actual, expected, atol=1e-4 * expected.max())


def test_masks_of_channels_lie_where_tokens_look() -> None:
    explainer = make_explainer("score_cam", "timm, SAME", channels=3)
    tower = explainer.model.tower
    rgb = torch.from_numpy(image("timm, SAME", 2, 3, seed=3))
    shift = tower.placement.shift_cells
    assert abs(shift) > 0.3
    calls: list[torch.Tensor] = []

    class RecordingImage(MaskedImage):
        def embeddings(self, masks: torch.Tensor) -> torch.Tensor:
            calls.append(masks)
            return super().embeddings(masks)

    image_with_record = RecordingImage(
        tower=tower, rgb=rgb[0], baseline=torch.zeros(64, 96, 3), masks_per_step=2, whole=torch.zeros(48)
    )
    explainer._attribution(image_with_record)
    masks = torch.cat([call for call in calls if call.shape[1:] == (64, 96)]).numpy()
    channels = loudest_channels(tokens_of(image_with_record), 3).reshape(3, 2, 3).numpy()
    low = channels.min(axis=(1, 2), keepdims=True)
    high = channels.max(axis=(1, 2), keepdims=True)
    count = 0
    for row, column in np.ndindex(2, 3):
        y, x = (int((cell + 0.5 + shift) * 32) for cell in (row, column))
        if y < 64 and x < 96:
            assert np.allclose(masks[:, y, x], ((channels - low) / (high - low))[:, row, column], atol=0.08)
            count += 1
    assert count >= 2


def test_a_channel_that_is_the_same_everywhere_hides_everything_and_adds_nothing() -> None:
    even = np.full((1, 8, 8, 3), 90, dtype=np.uint8)
    assert make_explainer("score_cam", channels=3).explain(even, [["dog"]])[0][0].fault == "empty"
