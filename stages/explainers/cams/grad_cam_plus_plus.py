"""Grad-CAM++ (Chattopadhay et al., WACV 2018, arXiv 1710.11063): features weighed by where their gradient is positive.

With features x_i, i = 1 .. N, g_i = s dc/dx_i (`stages.explainers.cams.features` says where and of what), channel by
channel:

    a_i = g_i^2 / (2 g_i^2 + S g_i^3) = 1 / (2 + S g_i)         S = sum over i of x_i; 0 where g_i = 0
    w   = sum over i of a_i ReLU(g_i)                           one weight per channel
    H_i = ReLU(w . x_i)

The paper's score is the exponential of the network's output, whose second and third derivatives are then powers of the
first; its own factor is the same for all patches and is left out. The network's output is taken to be CLIP's logit: the
cosine times `scale`, which decides how much S counts. Without it a_i is one half almost everywhere.

Deviation: S is at least 0. The paper's features come out of a ReLU, so that it cannot be less; of features that can be
negative, as in transformers, the denominator would vanish somewhere. Where features are >= 0 nothing differs. Cost: a
forward pass, and for each phrase a backward pass through what is behind the features.

Shapes: N patches, D width.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from stages.explainers.cams.features import FeatureCam, FeaturesConfig


class GradCamPlusPlusConfig(FeaturesConfig):
    """Grad-CAM++."""

    kind: Literal["grad_cam_plus_plus"] = "grad_cam_plus_plus"

    scale: Annotated[float, Field(gt=0.0)] = 100.0
    """s, what the cosine is multiplied by before it is differentiated; CLIP's logit scale is 100 after training."""


class GradCamPlusPlus(FeatureCam[GradCamPlusPlusConfig]):
    """Positive gradients of the cosine at the features, weighed by the paper's alphas. `similarity` is the cosine."""

    config_type = GradCamPlusPlusConfig

    def weighed(self, features: Tensor, gradient: Tensor) -> Tensor:
        """See `FeatureCam.weighed`."""
        positive = (self.config.scale * gradient).relu()
        total = features.sum(dim=0).relu()
        return (features @ (positive / (2 + total * positive)).sum(dim=0)).relu()
