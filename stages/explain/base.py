"""What an explainer is: a class that leaves one method, `maps`, to each method of the field."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Final, Generic, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from stages.contract.records import HeatMap
from stages.explain import fitted
from stages.explain.affinity import Affinity
from stages.explain.config import ExplainerConfig
from stages.model.clip import ClipModel, TextCache, templates_of
from stages.model.config import TowerKind

FAULTS: Final = ("", "constant", "empty", "non_finite")
"""Why a map is all zeros, by number."""

ConfigT = TypeVar("ConfigT", bound=ExplainerConfig)


@dataclass(frozen=True, slots=True)
class Maps:
    """What an explainer computes for a batch of B images, P phrases each and N patches.

    Attributes:
        values: float32 (B, P, N), >= 0, not normalised.
        cosines: float32 (B, P), of image and text embedding.
        constant: bool (B,), True where the method cannot tell one patch of the image from another. None if it always
            can.
        tokens: (B, N, D), of the patches, from the same forward pass: what `Explainer.affinity` looks at. None if it
            looks at nothing.
    """

    values: Tensor
    cosines: Tensor
    constant: Tensor | None = None
    tokens: Tensor | None = None


class Explainer(ABC, Generic[ConfigT]):
    """Heat maps for phrases from a CLIP model, which it only reads.

    Attributes:
        config_type: The pydantic model of its settings, with a literal `kind`.
        towers: On which kinds of towers the method is defined; see `TOWER_KINDS`.
        needs: What these have and others lack, as in "transformer blocks with a class token".
        affinity: What shares the maps' heat out among the tokens.

    Raises ConfigError for a model with a tower of another kind, and for settings that make no sense for its tower.
    """

    config_type: ClassVar[type[ExplainerConfig]]
    towers: ClassVar[tuple[TowerKind, ...]]
    needs: ClassVar[str]

    def __init__(self, config: ConfigT, model: ClipModel) -> None:
        self.config = fitted(config, model.tower.kind, model.name)
        self.model = model
        self.affinity = Affinity(self.config, model.tower)
        self.texts = TextCache(model, templates_of(config.templates))

    @abstractmethod
    def maps(self, rgb: Tensor, texts: Tensor) -> Maps:
        """Compute the maps of a batch.

        An image's maps must not depend on the other images of the batch.

        Args:
            rgb: uint8 (B, height, width, 3), whole images.
            texts: float32 (B, P, E), unit text embeddings; P is a multiple of `phrases_per_step`. Rows of zeros fill up
                images that have fewer phrases.
        """

    def explain(self, rgb: NDArray[np.uint8], phrases: Sequence[Sequence[str]]) -> list[list[HeatMap]]:
        """One heat map for each phrase of each image.

        Args:
            rgb: uint8 (B, height, width, 3), whole images whose sides are multiples of the tower's stride.
            phrases: The unique phrase texts of each image, none to many.

        Returns:
            The maps of each image in the order of its phrases; values float32 (height / stride, width / stride), >= 0
            and finite, not normalised. `similarity` is the cosine.

        Raises:
            ValueError: The numbers of images and phrase lists differ, or the size does not fit the stride.
        """
        if len(rgb) != len(phrases):
            raise ValueError(f"expected as many phrase lists as images, got {len(phrases)} and {len(rgb)}")
        if not any(phrases):
            return [[] for _ in phrases]
        embeddings = self.texts([text for texts in phrases for text in texts])
        placement = self.model.tower.placement
        grid_hw = placement.grid_hw(rgb.shape[1], rgb.shape[2])
        padded = _pad(embeddings, [len(texts) for texts in phrases], self.config.phrases_per_step)
        found = self.maps(torch.from_numpy(rgb), padded)
        if self.config.affinity != "none":
            assert found.tokens is not None, f"{self.config.kind} hands out its tokens"  # noqa: S101
            found = replace(found, values=self.affinity(found.values, found.tokens, grid_hw))
        maps, cosines, faults = _checked(found)
        maps_np = maps.cpu().numpy().reshape(*maps.shape[:2], *grid_hw)
        cosines_np, faults_np = cosines.cpu().numpy(), faults.cpu().numpy()
        return [
            [
                HeatMap(
                    text=text,
                    values=np.ascontiguousarray(maps_np[b, p]),
                    similarity=float(cosines_np[b, p]),
                    fault=FAULTS[int(faults_np[b, p])],
                    shift_cells=placement.shift_cells,
                )
                for p, text in enumerate(texts)
            ]
            for b, texts in enumerate(phrases)
        ]


def cosines_of(embedding: Tensor, texts: Tensor) -> Tensor:
    """Image embeddings (B, E) in any scale and unit text embeddings (B, P, E) -> cosines (B, P)."""
    return torch.einsum("be,bpe->bp", F.normalize(embedding, dim=-1), texts)


def cosine_gradients(embedding: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
    """Embeddings (B, E), unit texts (B, P, E) -> dc/de (B, P, E) in closed form, and c (B, P).

    dc/de = (t - c e/|e|) / |e|, so that a phrase needs only the backward pass from e.
    """
    norm = embedding.norm(dim=-1, keepdim=True)
    unit = embedding / norm
    cosines = torch.einsum("be,bpe->bp", unit, texts)
    return (texts - cosines[..., None] * unit[:, None]) / norm[:, None], cosines


def _checked(found: Maps) -> tuple[Tensor, Tensor, Tensor]:
    """Maps and cosines without values that are not finite, and the number of each map's fault."""
    finite = found.values.isfinite().all(dim=-1) & found.cosines.isfinite()
    maps = torch.where(finite[..., None], found.values, 0.0)
    empty = maps.amax(dim=-1) <= 0
    faults = torch.where(empty, 2, 0)
    if found.constant is not None:
        faults = torch.where(empty & found.constant[:, None], 1, faults)
    faults = torch.where(finite, faults, 3)
    return maps, torch.where(found.cosines.isfinite(), found.cosines, 0.0), faults


def _pad(embeddings: Tensor, counts: Sequence[int], step: int) -> Tensor:
    """Rows of all images (sum of counts, E) -> (B, P, E) with P a multiple of `step`; missing rows are zero."""
    longest = -(-max(counts) // step) * step
    padded = embeddings.new_zeros(len(counts), longest, embeddings.shape[1])
    for row, own in zip(padded, embeddings.split(list(counts)), strict=True):
        row[: len(own)] = own
    return padded
