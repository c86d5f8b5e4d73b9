"""Contrastive losses with several positives, negatives that do not count, and weights."""

from __future__ import annotations

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

_NEVER: Final = -1e9
"""The logit of what is no negative. Minus infinity would give a row without any negative a gradient that is no number.
"""


def logits_of(scale: Tensor, features: Tensor, texts: Tensor) -> Tensor:
    """Scaled cosines (R, C) of features (R, E) and texts (C, E) of length 1, in float32 whatever autocast is on.

    16 bits are too few for a difference of two cosines that is multiplied by 100.
    """
    with torch.autocast(features.device.type, enabled=False):
        return scale.float() * (features.float() @ texts.float().T)


def contrastive(
    logits: Tensor, positive: Tensor, ignored: Tensor | None = None, weights: Tensor | None = None
) -> Tensor:
    """InfoNCE in both directions: each positive against all negatives of its row, and against those of its column.

    Other positives of the row are left out of the sum below the line, as in supervised contrastive learning (Khosla and
    others, NeurIPS 2020, arXiv 2004.11362, L_out without them), and so is what is ignored.

    Args:
        logits: float (R, C), scaled similarities.
        positive: bool (R, C), the pairs that belong together.
        ignored: bool (R, C), pairs of which nobody knows whether they do: never negatives.
        weights: float (R,), >= 0, of the rows; None for 1 each. A column weighs what its positives do on average.

    Returns:
        A scalar in nats: the mean of both directions; 0 where there is no positive.
    """
    weights = logits.new_ones(len(logits)) if weights is None else weights.to(logits.dtype)
    left_out = positive if ignored is None else positive | ignored
    counts = positive.sum(dim=0).clamp(min=1)
    columns = (positive * weights[:, None]).sum(dim=0) / counts
    rows = _one_way(logits, positive, left_out, weights)
    return (rows + _one_way(logits.T, positive.T, left_out.T, columns)) / 2


def _one_way(logits: Tensor, positive: Tensor, left_out: Tensor, weights: Tensor) -> Tensor:
    counts = positive.sum(dim=1)
    weights = weights * (counts > 0)
    negatives = logits.masked_fill(left_out, _NEVER).logsumexp(dim=1, keepdim=True)
    each = F.softplus(negatives - logits).masked_fill(~positive, 0.0).sum(dim=1) / counts.clamp(min=1)
    return (each * weights).sum() / weights.sum().clamp(min=torch.finfo(weights.dtype).eps)


def same(texts: list[str]) -> Tensor:
    """Which of T texts are equal, bool (T, T)."""
    numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    codes = torch.tensor([numbers[text] for text in texts])
    return codes[:, None] == codes[None, :]
