"""Parts of the training: forward passes on some of the patches and on cut texts, optimisers, an average.

The forward passes give the numbers of open_clip's `encode_image` and `encode_text`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from stages.shared.model.towers.take_apart import take_text_apart
from stages.shared.model.towers.vision import resize_positions

CONTEXT_LENGTH: Final = 32
"""Tokens of a text, which the longest captions of scenes do not fill."""


class Settings(BaseModel):
    """Settings of a training, not of a product: they have defaults and no bounds."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def architecture(model_cfg: Mapping[str, Any], tokenizer: SimpleTokenizer, side_px: int) -> dict[str, Any]:
    """Return the arguments of `open_clip.CLIP` for an image side and a tokenizer's vocabulary."""
    vision = {**model_cfg["vision_cfg"], "image_size": side_px}
    text = {**model_cfg["text_cfg"], "vocab_size": int(tokenizer.vocab_size)}
    return {**model_cfg, "vision_cfg": vision, "text_cfg": text}


def positions_at(positions: Tensor, grid: int) -> Tensor:
    """Interpolate a positional embedding (1 + old_grid ** 2, width) for another number of patches per side."""
    old = round((len(positions) - 1) ** 0.5)
    return resize_positions(positions, (old, old), (grid, grid))


def encode_image(model: CLIP, images: Tensor, *, keep: Tensor | None = None) -> Tensor:
    """Return image embeddings of length 1, (batch, embed_dim), of a class-token vision transformer.

    Images are float (batch, 3, side, side), normalised, of the side of the positional embedding. `keep`, int64 (batch,
    kept), holds the patches of each image to look at, row-major; None for all.
    """
    visual = model.visual
    x = visual.conv1(images).flatten(2).mT + visual.positional_embedding[1:]
    if keep is not None:
        x = x.gather(1, keep.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
    first = (visual.class_embedding + visual.positional_embedding[0]).expand(len(x), 1, -1)
    x = visual.transformer(visual.ln_pre(torch.cat([first.to(x.dtype), x], dim=1)))
    return F.normalize(visual.ln_post(x[:, 0]) @ visual.proj, dim=-1)


def encode_text(model: CLIP, tokens: Tensor) -> Tensor:
    """Return text embeddings of length 1, (texts, embed_dim), of tokens (texts, context).

    Texts are only as long as the longest of the batch, which the causal mask makes exact.
    """
    tower = take_text_apart(model)
    length = int(tower.ends_of(tokens).max()) + 1
    return F.normalize(tower.encode(tokens[:, :length]), dim=-1)


def muon_and_adamw(
    named: Iterable[tuple[str, nn.Parameter]], *, matrix_lr: float, matrix_decay: float, other_lr: float
) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices of the transformer blocks, and AdamW for everything else."""
    matrices, others = list[nn.Parameter](), list[nn.Parameter]()
    for name, parameter in named:
        (matrices if ".resblocks." in name and parameter.ndim == 2 else others).append(parameter)
    return [
        torch.optim.Muon(matrices, lr=matrix_lr, weight_decay=matrix_decay),
        torch.optim.AdamW(others, lr=other_lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]


class Optimisers:
    """Optimisers that step together, at a share of the learning rates that they were made with."""

    def __init__(self, optimisers: list[torch.optim.Optimizer]) -> None:
        self._optimisers = optimisers
        self._rates = [group["lr"] for group in self._groups]

    @property
    def _groups(self) -> list[dict[str, Any]]:
        # Asked for each time, as an optimiser has other groups once it has loaded a state.
        return [group for optimiser in self._optimisers for group in optimiser.param_groups]

    def back(self, loss: Tensor) -> None:
        """Compute the gradients of a loss."""
        for optimiser in self._optimisers:
            optimiser.zero_grad(set_to_none=True)
        loss.backward()

    def step(self, share: float) -> None:
        """Change the weights, at a share of the learning rates."""
        for group, rate in zip(self._groups, self._rates, strict=True):
            group["lr"] = rate * share
        for optimiser in self._optimisers:
            optimiser.step()

    def state(self) -> list[Any]:
        """Return what `restore` needs."""
        return [optimiser.state_dict() for optimiser in self._optimisers]

    def restore(self, states: list[Any]) -> None:
        """Restore what the optimisers remember; the learning rates stay those of the configuration."""
        for optimiser, values in zip(self._optimisers, states, strict=True):
            optimiser.load_state_dict(values)

    def forget(self, parameter: nn.Parameter) -> None:
        """Remember nothing of a parameter."""
        for optimiser in self._optimisers:
            optimiser.state.pop(parameter, None)


@torch.no_grad()
def follow(average: nn.Module, module: nn.Module, step: int, most: float) -> None:
    """Move an average of weights on after step number `step`; its decay rises to `most`."""
    decay = min(most, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(average.parameters()), list(module.parameters()), 1 - decay)
