"""The two contrastive losses: captions with images, and images with the phrase bank."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def known_true(claimed: Tensor, denied: Tensor, present: Tensor) -> Tensor:
    """Which captions are true of which images as far as the truth table knows.

    Args:
        claimed, denied: float (captions, columns), 0 or 1.
        present: float (images, columns), 0 or 1.

    Returns:
        bool (images, captions).
    """
    missing = (1.0 - present) @ claimed.T
    wrong = present @ denied.T
    return (missing + wrong) < 0.5


def caption_loss(logits: Tensor, true: Tensor) -> Tensor:
    """InfoNCE between images and their own captions, both ways, without known false negatives.

    Args:
        logits: float (batch, batch), scaled similarities, image by caption; pairs on the diagonal.
        true: bool (batch, batch), captions known to be true of an image; off the diagonal they are left out.

    Returns:
        A scalar: the mean of both directions in nats.
    """
    own = torch.eye(len(logits), dtype=torch.bool)
    masked = logits.masked_fill(true & ~own, float("-inf"))
    target = torch.arange(len(logits))
    return (F.cross_entropy(masked, target) + F.cross_entropy(masked.T, target)) / 2


def bank_loss(logits: Tensor, positive: Tensor) -> Tensor:
    """InfoNCE with several positives: each positive against all negatives, other positives left out.

    Args:
        logits: float (rows, columns), scaled similarities.
        positive: bool (rows, columns). Rows without a positive do not count.

    Returns:
        A scalar: the mean over rows of the mean over a row's positives, in nats; 0 if there is no positive.
    """
    rows = positive.any(dim=1)
    logits, positive = logits[rows], positive[rows]
    if len(logits) == 0:
        return logits.sum()
    negatives = logits.masked_fill(positive, float("-inf")).logsumexp(dim=1, keepdim=True)
    each = torch.logaddexp(logits, negatives) - logits
    weights = positive.float() / positive.sum(dim=1, keepdim=True)
    return (each * weights).sum(dim=1).mean()
