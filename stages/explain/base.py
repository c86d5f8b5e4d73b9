"""What an explainer is: a class that leaves one method, `maps`, to each method of the field."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final, Generic, Literal, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from stages.contract.records import HeatMap
from stages.explain import fitted
from stages.explain.affinity import Affinity
from stages.explain.config import ExplainerConfig
from stages.explain.presence import Presence, Signals
from stages.explain.scales import at_scale, mean_of
from stages.shared.model.clip import ClipModel
from stages.shared.model.config import TowerKind
from stages.shared.model.device import OnTheWay, pixels_on
from stages.shared.model.texts import TextCache, templates_of

FAULTS: Final = ("", "constant", "empty", "non_finite")
"""Why a map is all zeros, by number."""

Cost = Literal["forward", "backward", "perturbation"]

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
        embedding: float32 (B, E), of the images in any scale. None: where it is needed the images are embedded again.
        local: float32 (B, P), the highest cosine of a phrase and what one patch alone would mean; None where nobody
            asked (`Explainer.looks_closer`), or where the method does not know.
    """

    values: Tensor
    cosines: Tensor
    constant: Tensor | None = None
    tokens: Tensor | None = None
    embedding: Tensor | None = None
    local: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Explained:
    """Answers for a batch of B images.

    Attributes:
        heat_maps: of each image, in the order of its phrases.
        embedding: float32 (B, E), of the images in any scale, see `Maps.embedding`; None where no image has a phrase.
    """

    heat_maps: list[list[HeatMap]]
    embedding: Tensor | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Launched:
    """A batch that a device may still be computing.

    Attributes:
        phrases: of each image.
        embedding: see `Explained`; on the device.
        results: maps, cosines and faults as `_checked` gives them, and what presence is judged by, where that is asked
            for; None where no image has a phrase.
        grid_hw: rows and columns of the maps.
        shift_cells: see `HeatMap`.
        presence: see `Explainer`.
    """

    phrases: Sequence[Sequence[str]]
    embedding: Tensor | None
    results: OnTheWay | None
    grid_hw: tuple[int, int] = (0, 0)
    shift_cells: float = 0.0
    presence: Presence | None = None

    def wait(self) -> Explained:
        """Wait for this batch, and for none that was started later, and make its answers.

        Raises:
            RuntimeError: A fault of the device, which may report it only now.
        """
        if self.results is None:
            return Explained([[] for _ in self.phrases], None)
        maps, cosines, faults, *signals = self.results.wait()
        maps = maps.reshape(*maps.shape[:2], *self.grid_hw)
        likely = None if self.presence is None else _judged(self.presence, signals, self.phrases)
        heat_maps = [
            [
                HeatMap(
                    text=text,
                    values=np.ascontiguousarray(maps[b, p]),
                    similarity=float(cosines[b, p]),
                    fault=FAULTS[int(faults[b, p])],
                    shift_cells=self.shift_cells,
                    presence=None if likely is None else likely[b][p],
                )
                for p, text in enumerate(texts)
            ]
            for b, texts in enumerate(self.phrases)
        ]
        return Explained(heat_maps, self.embedding)


class Explainer(ABC, Generic[ConfigT]):
    """Heat maps for phrases from a CLIP model, which it only reads.

    Attributes:
        config_type: The pydantic model of its settings, with a literal `kind`.
        towers: On which kinds of towers the method is defined; see `TOWER_KINDS`.
        needs: What these have and others lack, as in "transformer blocks with a class token".
        cost: What its maps take beside the trunk: `forward` next to nothing, `backward` a backward pass (in closed
            form or by autograd) for each phrase, `perturbation` many forward passes for each image.
        follows_phrases: False where all phrases of an image get the same map.
        at_cells: True where a value stands for the pixels of its cell; False where it stands for a token, which in
            some towers looks beside its cell (`Placement.shift_px`).
        claim: Who claims a patent on the method, in a sentence for people; such a method runs where it is named, and
            is in no default. Empty: nobody that we know of.
        affinity: What shares the maps' heat out among the tokens.
        presence: Tells whether phrases are in their images; None where nobody asked.
        looks_closer: Whether `maps` also says what the patches alone mean, which presence is judged by.

    Raises ConfigError for a model with a tower of another kind, and for settings that make no sense for its tower.
    """

    config_type: ClassVar[type[ExplainerConfig]]
    towers: ClassVar[tuple[TowerKind, ...]]
    needs: ClassVar[str]
    cost: ClassVar[Cost]
    follows_phrases: ClassVar[bool] = True
    at_cells: ClassVar[bool] = False
    claim: ClassVar[str] = ""

    def __init__(self, config: ConfigT, model: ClipModel) -> None:
        self.config = fitted(config, model.tower.kind, model.name)
        self.model = model
        self.affinity = Affinity(self.config, model.tower)
        self.texts = TextCache(model, templates_of(config.templates))
        self.presence: Presence | None = None
        self.looks_closer = False

    @abstractmethod
    def maps(self, rgb: Tensor, texts: Tensor) -> Maps:
        """Compute the maps of a batch.

        An image's maps must not depend on the other images of the batch.

        Args:
            rgb: uint8 (B, height, width, 3), whole images.
            texts: float32 (B, P, E), unit text embeddings; P is a multiple of `phrases_per_step`. Rows of zeros fill up
                images that have fewer phrases.
        """

    def learn(self, phrases: Sequence[Sequence[str]]) -> None:
        """Embed the phrases of images that come next: many texts in one call fill its forward passes."""
        self.texts.learn([text for own in phrases for text in own])

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
        return self.explained(rgb, phrases).heat_maps

    def explained(self, rgb: NDArray[np.uint8], phrases: Sequence[Sequence[str]]) -> Explained:
        """As `explain`, with the embeddings of the images from the same forward pass. It raises what `explain` does."""
        return self.started(list(rgb), phrases).wait()

    def started(self, images: Sequence[NDArray[np.uint8]], phrases: Sequence[Sequence[str]]) -> Launched:
        """Give the device all that `explained` computes, and do not wait for it.

        Meanwhile the host can make what comes of an earlier batch, or start a later one. On a CPU all is computed here.

        Args:
            images: uint8 (height, width, 3) each, of one size.
            phrases: See `explain`.

        Raises:
            ValueError: See `explain`.
        """
        if len(images) != len(phrases):
            raise ValueError(f"expected as many phrase lists as images, got {len(phrases)} and {len(images)}")
        if not any(phrases):
            return Launched(phrases=phrases, embedding=None, results=None)
        placement = self.model.tower.placement
        grid_hw = placement.grid_hw(*images[0].shape[:2])
        padded = self.texts.padded(phrases, self.config.phrases_per_step)
        rgb = pixels_on(images, self.model.device)
        self.looks_closer = self.presence is not None
        found = self._found(rgb, padded)
        results = [*_checked(found)]
        if self.presence is not None:
            results += [padded, found.cosines, found.cosines if found.local is None else found.local]
        embedding = found.embedding
        if embedding is None and self.config.importance != "none":
            with torch.no_grad():
                embedding = self.model.tower.encode(rgb).float()
        return Launched(
            phrases=phrases,
            embedding=embedding,
            results=OnTheWay(results),
            grid_hw=grid_hw,
            shift_cells=0.0 if self.at_cells else placement.shift_cells,
            presence=self.presence,
        )

    def _found(self, rgb: Tensor, texts: Tensor) -> Maps:
        """The maps of a batch after affinity, as `maps` takes it: the mean over the scales, on the first one's grid."""
        placement, found, grids = self.model.tower.placement, [], []
        for scale in self.config.scales:
            images = at_scale(rgb, scale / self.config.scales[0], placement.stride_px)
            grid_hw = placement.grid_hw(*images.shape[1:3])
            own = self.maps(images, texts)
            if self.config.affinity != "none":
                assert own.tokens is not None, f"{self.config.kind} hands out its tokens"  # noqa: S101
                own = replace(own, values=self.affinity(own.values, own.tokens, grid_hw))
            found.append(own)
            grids.append(grid_hw)
        return found[0] if len(found) == 1 else mean_of(found, grids, 0.0 if self.at_cells else placement.shift_cells)

    def signals(self, rgb: NDArray[np.uint8], phrases: Sequence[Sequence[str]]) -> list[Signals]:
        """What presence is judged by, for images as `explain` takes them; every image has at least one phrase."""
        padded = self.texts.padded(phrases, self.config.phrases_per_step)
        self.looks_closer = True
        found = self._found(pixels_on(list(rgb), self.model.device), padded)
        if found.embedding is None:
            raise ValueError(f"expected the images' embeddings, which {self.config.kind} does not tell")
        local = found.cosines if found.local is None else found.local
        parts = (F.normalize(found.embedding, dim=-1), padded, found.cosines, local)
        embeddings, texts, cosines, closest = (part.float().cpu().numpy() for part in parts)
        return [
            Signals(
                embedding=embeddings[b],
                texts=texts[b, : len(own)],
                cosines=cosines[b, : len(own)],
                local=closest[b, : len(own)],
            )
            for b, own in enumerate(phrases)
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


def closest_patch(parts: Tensor, texts: Tensor, step: int) -> Tensor:
    """Highest cosine (B, P) of a phrase and a patch.

    Args:
        parts: (B, N, E), what each patch alone would mean, in any scale.
        texts: (B, P, E), unit text embeddings; P is a multiple of `step`.
        step: Phrases in one product, which then always has one shape.
    """
    unit = F.normalize(parts.float(), dim=-1).mT
    return torch.cat([(part @ unit).amax(dim=-1) for part in texts.split(step, dim=1)], dim=1)


def _judged(presence: Presence, signals: Sequence[NDArray[Any]], phrases: Sequence[Sequence[str]]) -> list[list[float]]:
    """The probability that each phrase is in its image, from texts (B, P, E), cosines and highest cosines (B, P)."""
    embeddings, cosines, closest = signals
    finite = np.isfinite(cosines) & np.isfinite(closest)
    return [
        [
            presence.probability(text, embeddings[b, p], float(cosines[b, p]), float(closest[b, p]))
            if finite[b, p]
            else 0.0
            for p, text in enumerate(texts_of_image)
        ]
        for b, texts_of_image in enumerate(phrases)
    ]
