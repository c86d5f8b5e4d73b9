"""Grad-CAM and Grad-CAM++: the papers' sums over float64 features of open_clip's own modules."""

import numpy as np
import pytest
from torch import Tensor

from tests.stages.explain.models import clip_of, make_explainer, module_of
from tests.stages.explainers.captured import Captured, Floats, assert_formula, cells_of

SCALE = 1 / 0.07  # of a model of open_clip before its training

PLACES = {
    "class token": "transformer.resblocks.3.ln_1",
    "timm, class token": "trunk.blocks.4",
    "ResNet": "layer4",
    "EVA02": "trunk.blocks.10",
    "SigLIP": "trunk.norm",
    "ConvNeXt": "trunk.norm_pre",
}
"""Tower -> the module whose output has the features, with or without tokens that are no patches."""


def weights_of(kind: str, x: Floats, g: Floats) -> Floats:
    """Features and gradients (N, D) -> the weight of each channel (D,), as the papers write it."""
    if kind == "grad_cam":
        return g.sum(axis=0) / len(g)
    s = np.where(g > 0, SCALE * g, 1)
    alpha = s**2 / (2 * s**2 + np.maximum(x.sum(axis=0), 0) * s**3)
    return np.where(g > 0, alpha * s, 0).sum(axis=0)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("kind", ["grad_cam", "grad_cam_plus_plus"])
def test_the_formulas(name: str, kind: str) -> None:
    def expect(captured: Captured, text: Tensor) -> Floats:
        gradients = captured.gradients(text, captured.outputs)
        x, g = (
            (part[0].flatten(1).T if part.dim() == 4 else part[0, -cells_of(name) :]).detach().numpy()
            for part in (*captured.outputs, *gradients)
        )
        return np.maximum(x @ weights_of(kind, x, g), 0)

    explainer = make_explainer(kind, clip_of(name, seed=1))
    assert_formula(explainer, expect, PLACES[name], tower=name, model=module_of(name, seed=1))
