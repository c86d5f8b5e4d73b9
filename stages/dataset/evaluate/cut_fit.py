"""Fits the learned rule where heat maps are cut, `regions.rule: fitted`, to images with known boxes."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from stages.dataset.evaluate.scores import Fit

Floats = NDArray[np.float64]

RIDGE: Final = 1e-4
"""Penalty on the squared weights of standardised features, beside a mean over maps of 0 .. 1."""

STEPS: Final = 400
"""Most steps of the optimiser; some 100 suffice."""


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
