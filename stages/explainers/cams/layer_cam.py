"""LayerCAM (Jiang et al., IEEE Transactions on Image Processing 2021): each place's features by its own gradient.

With features x_i, i = 1 .. N, and g_i = dc/dx_i (`stages.explainers.cams.features` says where and of what):

    H_i = ReLU(sum over channels of ReLU(g_i) * x_i)

There is one weight for each channel and place, where Grad-CAM has one for each channel; the paper therefore also reads
early layers, which `layer` does on transformers. Deviation: one layer's map, where the paper also adds up those of
several. Cost: a forward pass, and for each phrase a backward pass through what is behind the features.

Shapes: N patches, D width.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from stages.explainers.cams.features import FeatureCam, FeaturesConfig


class LayerCamConfig(FeaturesConfig):
    """LayerCAM."""

    kind: Literal["layer_cam"] = "layer_cam"


class LayerCam(FeatureCam[LayerCamConfig]):
    """Positive gradients of the cosine at the features, times these. `similarity` is the cosine."""

    config_type = LayerCamConfig

    def weighed(self, features: Tensor, gradient: Tensor) -> Tensor:
        """See `FeatureCam.weighed`."""
        return (gradient.relu() * features).sum(dim=1).relu()
