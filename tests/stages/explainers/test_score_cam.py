"""Score-CAM with the features and embeddings of open_clip's own modules, and where its masks lie."""

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from phrasebox.stages.explainers.masked import MaskedImage
from phrasebox.stages.explainers.score_cam import varied_channels
from tests.stages.explain.models import image, make_explainer
from tests.stages.explainers.captured import Captured, Floats, assert_formula

SCALE = 1 / 0.07  # of a model of open_clip before its training


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("weights", ["gains", "softmax"])
def test_the_formula(weights: str) -> None:
    explainer = make_explainer("score_cam", channels=1000, weights=weights)
    pixels = explainer.model.tower.normalise(torch.from_numpy(image()))

    def expect(captured: Captured, text: Tensor) -> Floats:
        channels = captured.outputs[0][0, 1:].T.detach().numpy()
        masks = [np.zeros((32, 32))]
        for channel in channels:
            drawn = cv2.resize(channel.reshape(4, 4), (32, 32))
            masks.append((drawn - drawn.min()) / np.ptp(drawn))
        with torch.no_grad():
            embeddings = captured.visual(pixels * torch.from_numpy(np.stack(masks))[:, None])
        nothing, *cosines = (F.normalize(embeddings, dim=-1) @ text).tolist()
        gains = np.array(cosines) - nothing
        assert np.ptp(gains) > 1e-3
        shares = np.exp(SCALE * np.array(cosines))
        return np.maximum((gains if weights == "gains" else shares / shares.sum()) @ channels, 0)

    assert_formula(explainer, expect, "transformer.resblocks.3.ln_1")


def test_masks_of_channels_lie_where_tokens_look(monkeypatch: pytest.MonkeyPatch) -> None:
    explainer = make_explainer("score_cam", "timm, SAME", channels=3)
    rgb = torch.from_numpy(image("timm, SAME", 2, 3, seed=3))
    shift = explainer.model.tower.placement.shift_cells
    assert abs(shift) > 0.3
    calls: list[Tensor] = []
    embeddings = MaskedImage.embeddings

    def record(masked: MaskedImage, masks: Tensor) -> Tensor:
        calls.append(masks)
        return embeddings(masked, masks)

    monkeypatch.setattr(MaskedImage, "embeddings", record)
    explainer.maps(rgb).heat(explainer.texts(["dog"])[None])
    (masks,) = (call.numpy() for call in calls if call.shape[1:] == (64, 96))
    features = explainer._trace(rgb).features.detach()[0, -6:]
    channels = varied_channels(features, 3).reshape(3, 2, 3).numpy()
    low = channels.min(axis=(1, 2), keepdims=True)
    shares = (channels - low) / (channels.max(axis=(1, 2), keepdims=True) - low)
    count = 0
    for row, column in np.ndindex(2, 3):
        y, x = (int((cell + 0.5 + shift) * 32) for cell in (row, column))
        if y < 64 and x < 96:
            assert np.allclose(masks[:, y, x], shares[:, row, column], atol=0.08)
            count += 1
    assert count >= 2


def test_a_channel_that_is_the_same_everywhere_hides_everything_and_adds_nothing() -> None:
    even = np.full((1, 8, 8, 3), 90, dtype=np.uint8)
    assert make_explainer("score_cam", channels=3).explain(even, [["dog"]])[0][0].fault == "empty"


@pytest.mark.parametrize(("kind", "beside"), [("occlusion", False), ("score_cam", True)])
def test_heat_of_cells_stands_on_them_where_tokens_look_beside_theirs(kind: str, beside: bool) -> None:
    settings = {"window": 1.0} if kind == "occlusion" else {"channels": 3}
    explainer = make_explainer(kind, "timm, SAME", **settings)
    shift = explainer.model.tower.placement.shift_cells
    assert shift != 0
    assert explainer.explain(image("timm, SAME", 1, 2), [["dog"]])[0][0].shift_cells == beside * shift
