"""Grad-CAM (Selvaraju et al., ICCV 2017, arXiv 1610.02391): features weighed by their mean gradient.

With features x_i, i = 1 .. N, and g_i = dc/dx_i (`stages.explainers.cams.features` says where and of what):

    w   = mean over i of g_i                          one weight per channel
    H_i = ReLU(w . x_i)

The paper has convolutional features; for transformers this is the usual reading: the patches at the last block's first
norm, without the class token, as pytorch-grad-cam and CLIP-ES (Lin et al., CVPR 2023, arXiv 2212.09506) take them. The
Grad-ECLIP authors' baseline takes the block's input before the norm, and averages over the class token too. Where
tokens are averaged, the map is `cam` divided by N.

Deviations: the score is the plain cosine, where CLIP-ES takes a softmax over a set of texts. Cost: a forward pass, and
for each phrase a backward pass through what is behind the features.

Shapes: N patches, D width.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from stages.explainers.cams.features import FeatureCam, FeaturesConfig


class GradCamConfig(FeaturesConfig):
    """Grad-CAM."""

    kind: Literal["grad_cam"] = "grad_cam"


class GradCam(FeatureCam[GradCamConfig]):
    """The mean gradient of the cosine at the features, times each of them. `similarity` is the cosine."""

    config_type = GradCamConfig

    def weighed(self, features: Tensor, gradient: Tensor) -> Tensor:
        """See `FeatureCam.weighed`."""
        return (features @ gradient.mean(dim=0)).relu()
