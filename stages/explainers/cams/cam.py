"""Class activation maps for towers that average their tokens.

With tokens x_1 .. x_N, their mean m = sum_i x_i / N, and everything behind it as a function of m:

    c   = cos(image embedding, text embedding)
    w   = dc / dm                                     one weight per channel
    H_i = ReLU(w . x_i)

Where the head is one linear layer and the score is not normalised, this is CAM (Zhou et al., CVPR 2016, arXiv
1512.04150), with the text embedding as the class's weights; it is Grad-CAM at the last features (Selvaraju et al., ICCV
2017, arXiv 1610.02391), because the gradient at each token is w / N. Deviation from Grad-CAM: the factor 1 / N alone.
There is no attention that Grad-ECLIP could weigh. The cost is the trunk and products of one vector per phrase.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.explain.base import Explainer, Maps, closest_patch, cosine_gradients
from stages.explain.config import ExplainerConfig
from stages.shared.model.clip import ClipModel
from stages.shared.model.towers.averaged import AveragedTower


class CamConfig(ExplainerConfig):
    """Class activation maps of towers that average their tokens."""

    kind: Literal["cam"] = "cam"


class Cam(Explainer[CamConfig]):
    """The gradient at the mean of the tokens, times each token. `similarity` is the cosine of image and phrase."""

    config_type = CamConfig
    towers = ("average_pool",)
    needs = "tokens that are averaged"
    cost = "backward"

    def __init__(self, config: CamConfig, model: ClipModel) -> None:
        super().__init__(config, model)
        assert isinstance(model.tower, AveragedTower)  # noqa: S101
        self.tower = model.tower.float_head()

    @torch.no_grad()
    def maps(self, rgb: Tensor, texts: Tensor) -> Maps:
        """See `Explainer.maps`."""
        tokens = self.tower.embed(rgb).float()
        mean = tokens.mean(dim=1)
        embedding = self.tower.finish(mean)
        values, cosines = [], []
        # Every product has one shape, however many phrases a neighbour has: a map's bits depend on it.
        for part in texts.split(self.config.phrases_per_step, dim=1):
            gradients, cosine = cosine_gradients(embedding, part)
            values.append(F.relu(self.tower.finish.back(mean, gradients) @ tokens.mT))
            cosines.append(cosine)
        local = None
        if self.looks_closer:
            local = closest_patch(self.tower.finish(tokens), texts, self.config.phrases_per_step)
        return Maps(torch.cat(values, dim=1), torch.cat(cosines, dim=1), None, tokens, embedding, local)
