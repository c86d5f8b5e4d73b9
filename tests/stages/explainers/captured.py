"""The attention of any open_clip model, from the model's own forward pass in float64, with gradients at it.

Every image tower of open_clip and timm attends through torch's one function, so that function is stood in for by its
definition while the model runs; nothing of `stages` is involved.
"""

import copy
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn


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

    def attend(
        q: Tensor, k: Tensor, v: Tensor, attn_mask: Any = None, dropout_p: float = 0.0, *_: Any, **__: Any
    ) -> Tensor:
        assert attn_mask is None
        assert dropout_p == 0
        attention = torch.softmax(q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5, dim=-1)
        for tensors, value in (
            (captured.attention, attention),
            (captured.queries, q),
            (captured.keys, k),
            (captured.values, v),
        ):
            tensors.append(value)
        return attention @ v

    for name in watched:
        exact.visual.get_submodule(name).register_forward_hook(
            lambda _, __, output: captured.outputs.append(output)
        )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", attend)
        captured.embedding = exact.encode_image(pixels[None].double())[0]
    return captured
