"""The attention of any open_clip model, from the model's own forward pass in float64, with gradients at it.

Every image tower of open_clip and timm attends through torch's one function, so that function is stood in for by its
definition while the model runs; nothing of `stages` is involved.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from tests.closeness import assert_close
from tests.factories import TOWERS
from tests.stages.explain.models import PHRASES, image, module_of

Floats = NDArray[np.float64]


@dataclass
class Captured:
    """One forward pass of one image.

    `attention` holds (H, queries, T) for every attention in order, `queries`, `keys`, `values` (H, ., d) likewise, and
    `outputs` the outputs of the modules that were asked for. All are in the graph of `embedding`, (E,). `visual` is the
    model's image tower in float64.
    """

    attention: list[Tensor] = field(default_factory=list)
    queries: list[Tensor] = field(default_factory=list)
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    visual: Any = None
    embedding: Tensor = field(default_factory=lambda: torch.zeros(0))

    def cosine(self, text: Tensor) -> Tensor:
        return F.normalize(self.embedding, dim=-1) @ text.double()

    def gradients(self, text: Tensor, tensors: list[Tensor]) -> list[Tensor]:
        return list(torch.autograd.grad(self.cosine(text), tensors, retain_graph=True))


def capture(model: nn.Module, pixels: Tensor, *watched: str) -> Captured:
    """Normalised pixels (3, height, width) of one image; names of modules of `model.visual` to watch."""
    exact: Any = copy.deepcopy(model).double().eval().requires_grad_(True)
    captured = Captured(visual=exact.visual)

    def attend(q: Tensor, k: Tensor, v: Tensor, attn_mask: Any = None, *_: Any, **__: Any) -> Tensor:
        assert attn_mask is None
        attention = torch.softmax(q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5, dim=-1)
        captured.attention.append(attention)
        captured.queries.append(q)
        captured.keys.append(k)
        captured.values.append(v)
        return attention @ v

    for name in watched:
        exact.visual.get_submodule(name).register_forward_hook(
            lambda _, __, output: captured.outputs.append(output)
        )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", attend)
        captured.embedding = exact.encode_image(pixels[None].double())[0]
    return captured


def cells_of(tower: str) -> int:
    """Cells of the grid of a tower's own input."""
    return (TOWERS[tower][1].size_px // TOWERS[tower][1].patch_px) ** 2


def assert_formula(
    explainer: Any,
    expect: Callable[[Captured, Tensor], Any],
    *watched: str,
    tower: str = "class token",
    model: nn.Module | None = None,
) -> None:
    """Maps of an image, and its cosines, are those that `expect` computes with a unit text from a captured pass.

    The texts are the phrases and their opposites, so that what a formula cuts off is seen, too.
    """
    side = TOWERS[tower][1].size_px // TOWERS[tower][1].patch_px
    rgb = torch.from_numpy(image(tower, side, side))
    pixels = explainer.model.tower.normalise(rgb)[0]
    captured = capture(model or module_of(tower), pixels, *watched)
    phrases = explainer.texts(PHRASES)
    texts = torch.cat([phrases, -phrases, torch.zeros(4, phrases.shape[1])])
    maps = explainer.maps(rgb)
    expected = np.stack([expect(captured, text)[-side * side :] for text in texts[:4]])
    assert np.ptp(expected) > 1e-6
    actual = maps.heat(texts[None])[0, :4].detach().numpy()
    assert_close(actual, expected)
    cosines = F.normalize(maps.embedding, dim=-1) @ phrases.T
    assert cosines[0].tolist() == pytest.approx(
        [captured.cosine(text).item() for text in phrases], abs=1e-6
    )
