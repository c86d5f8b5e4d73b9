"""What all explainers have in common that look at masked copies of an image.

They ask how far a cell's pixels bring the image's unit embedding u(mask) towards the phrase t. Most of them answer with
one vector for each cell: where the method is linear in the score, as RISE, occlusion and Shapley values are, its
attribution of the vector u, taken times t, is its attribution of the cosine u . t. So one set of masked embeddings and
one set of vectors serve every phrase of the image:

    H_i = ReLU(d_i . t)        d_i: (E,), attribution of the unit embedding to cell i

A negative attribution says that a cell speaks against the phrase. It is cut to 0, because heat is not negative.

Of a transformer's last block only the class token is computed, and masked images go through the tower in groups: 512
masks cost the drawn model 340 to 510 times `encode_image`, whatever the number of phrases (one core of a shared
machine), of which making the masks and adding up is 1 to 3 %.

Masks depend on the image, its grid and a seed alone, and images are computed one at a time, so that the map of one
does not depend on the others. Images without phrases are not masked.

Shapes: P phrases, N cells of the tower's grid, E embedding.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, TypeVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from stages.explain.base import Explainer, Maps, cosines_of
from stages.explain.config import ExplainerConfig
from stages.explainers.perturbation.baseline import BaselineName, baseline_image
from stages.explainers.perturbation.masked import MASKS_PER_STEP, embeddings_and_tokens, masked_embeddings
from stages.shared.model.towers.tower import Tower

Attribution = Callable[[Tensor], Tensor]
"""Unit text embeddings (P, E) -> attribution (P, N) of their cosines to the cells."""


class PerturbationConfig(ExplainerConfig):
    """Settings of explainers that mask the image."""

    contrast: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0

    baseline: BaselineName = "mean"
    """What is seen where the image is hidden. `mean`: the mean colour of the model's normalisation. `blur`: the image,
    blurred. `black`: zeros."""

    blur: Annotated[float, Field(gt=0.0, le=1.0)] = 0.05
    """With `baseline: blur`: its standard deviation as a share of the shorter side."""

    masks_per_step: Annotated[int, Field(ge=2, le=4096)] = MASKS_PER_STEP
    """Masked images in one forward pass."""


PerturbationT = TypeVar("PerturbationT", bound=PerturbationConfig)


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskedImage:
    """One image that can be masked.

    Attributes:
        tower: What sees it.
        rgb: uint8 (height, width, 3).
        baseline: (height, width, 3), what is seen where it is hidden.
        masks_per_step: Masks in one forward pass.
        whole: float32 (E,), the unit embedding without a mask.
    """

    tower: Tower
    rgb: Tensor
    baseline: Tensor
    masks_per_step: int
    whole: Tensor

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.rgb.shape[0], self.rgb.shape[1]

    @property
    def grid_hw(self) -> tuple[int, int]:
        """Rows and columns of cells."""
        return self.tower.placement.grid_hw(*self.size_hw)

    def embeddings(self, masks: Tensor) -> Tensor:
        """Masks as `masked_embeddings` takes them -> float32 (len(masks), E), of unit length."""
        return masked_embeddings(self.tower, self.rgb, masks, self.baseline, self.masks_per_step)


class Perturbation(Explainer[PerturbationT]):
    """An explainer that masks the image. `similarity` is the cosine of image and phrase."""

    towers = ("class_token", "attention_pool", "latent_pool", "average_pool")
    needs = "an image that can be masked"
    cost = "perturbation"
    at_cells = True

    @abstractmethod
    def attribution(self, image: MaskedImage) -> Attribution:
        """Look at an image under masks; what comes back says for any phrases what each cell does for them."""

    @torch.no_grad()
    def maps(self, rgb: Tensor, texts: Tensor) -> Maps:
        """See `Explainer.maps`."""
        config, tower = self.config, self.model.tower
        rows, columns = tower.placement.grid_hw(rgb.shape[1], rgb.shape[2])
        embeddings, tokens = [], []
        values = texts.new_zeros(*texts.shape[:2], rows * columns)
        for number, (picture, own) in enumerate(zip(rgb, texts, strict=True)):
            embedding, seen = embeddings_and_tokens(tower, picture[None], self.affinity.block)
            embeddings.append(embedding)
            tokens.append(seen)
            if not own.any():
                continue
            image = MaskedImage(
                tower=tower,
                rgb=picture,
                baseline=baseline_image(tower, picture, config.baseline, config.blur),
                masks_per_step=config.masks_per_step,
                whole=F.normalize(embedding[0], dim=-1),
            )
            attribution = self.attribution(image)
            # Every product has one shape, however many phrases a neighbour has: a map's bits depend on it.
            steps = own.split(config.phrases_per_step)
            values[number] = F.relu(torch.cat([attribution(step) for step in steps]))
        embedding = torch.cat(embeddings)
        kept = (
            None if any(each is None for each in tokens) else torch.cat([each for each in tokens if each is not None])
        )
        return Maps(values, cosines_of(embedding, texts), None, kept, embedding)


def along(directions: Tensor) -> Attribution:
    """The attribution of a method that is linear in the score, from that of the unit embedding: (N, E)."""
    exact = directions.float()
    return lambda texts: texts @ exact.mT
