"""Fits the learned rule where heat maps are cut, `regions.rule: fitted`, to images with known boxes: how large things
usually are, and with what weights a cut is chosen."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluate.scores import Fit

Floats = NDArray[np.float64]

RIDGE: Final = 1e-4
"""Penalty on the squared weights of standardised features, beside a mean over maps of 0 .. 1."""

SHRINK: Final = 3.0
"""Things of usual size that each head noun is taken to have been seen with beside those that it was."""

STEPS: Final = 400
"""Most steps of the optimiser; some 100 suffice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenThing:
    """What a phrase of an image names, and how large it is there.

    Attributes:
        image: Number of the image.
        head: The phrase's head noun.
        log_size: The logarithm of the share of the image that its true boxes cover, their mean.
    """

    image: int
    head: str
    log_size: float


class UsualSizes:
    """The usual size of what each head noun names, see `FittedCut.usual`.

    Args:
        seen: In any order; one or more.
    """

    def __init__(self, seen: Iterable[SeenThing]) -> None:
        self._of_head: dict[str, dict[int, list[float]]] = {}
        things = list(seen)
        mean = fmean(each.log_size for each in things)
        for each in things:
            self._of_head.setdefault(each.head, {}).setdefault(each.image, []).append(each.log_size - mean)

    def all(self) -> dict[str, float]:
        """Of all heads, rounded: more digits would only fill the file."""
        return {head: round(_shrunk(images.values()), 3) for head, images in sorted(self._of_head.items())}

    def without(self, image: int, heads: Iterable[str]) -> dict[str, float]:
        """Of some heads, as images other than this one tell it: what a rule knows of an image that is new to it."""
        return {
            head: _shrunk(sizes for other, sizes in self._of_head.get(head, {}).items() if other != image)
            for head in heads
        }


def _shrunk(images: Iterable[Sequence[float]]) -> float:
    sizes = [size for own in images for size in own]
    return math.fsum(sizes) / (len(sizes) + SHRINK)


def fit_cut(features: Floats, right: NDArray[np.bool_]) -> Fit:
    """The weights with which most maps are cut so that their region is right.

    What is maximised is the share of right regions if each cut were drawn with the probability softmax(worth): the
    expected reward of a policy, which unlike a likelihood gives up maps that no cut makes right. L-BFGS from zero, in
    float64, so that the same data give the same weights.

    A bias would change nothing, since it is the same for all cuts of a map.

    Args:
        features: (n, cuts, k), what is seen of each cut of each map; NaN where nothing lies above a cut.
        right: (n, cuts), whether the region that the cut gives is right.

    Raises:
        ValueError: No cut, or every cut of every map is right.
    """
    import torch  # noqa: PLC0415  it takes seconds to import, and only this function needs it

    seen = np.isfinite(features.sum(axis=-1))
    if not right[seen].any() or right[seen].all():
        raise ValueError("expected right and wrong cuts")
    mean, scale = features[seen].mean(axis=0), features[seen].std(axis=0)
    scale = np.where(scale > 1e-9 * np.maximum(1.0, np.abs(mean)), scale, 1.0)
    cut = seen.any(axis=1)
    x = torch.from_numpy(np.where(seen[..., None], (features - mean) / scale, 0.0)[cut])
    closed = torch.from_numpy(np.where(seen, 0.0, -np.inf)[cut])
    reward = torch.from_numpy((right & seen).astype(np.float64)[cut])
    weight = torch.zeros(features.shape[2], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        taken = torch.softmax(x @ weight + closed, dim=1)
        value = RIDGE * (weight @ weight) - (taken * reward).sum(dim=1).mean()
        value.backward()
        return value

    optimiser.step(loss)
    return Fit(bias=0.0, weight=weight.detach().numpy(), mean=mean, scale=scale)
