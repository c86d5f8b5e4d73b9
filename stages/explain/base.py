"""The base class of explainers, which leaves one method, `maps`, to each method of the field."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from typing import ClassVar, Final, Generic, Literal, TypeVar

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from stages.contract.records import HeatMap
from stages.explain import fitted
from stages.explain.affinity import Affinity
from stages.explain.config import ExplainerConfig
from stages.explain.maps import FAULTS, Maps, at_scale, mean_of
from stages.explain.presence import Presence, Signals
from stages.shared.model.clip import ClipModel, TextCache, templates_of
from stages.shared.model.config import TowerKind
from stages.shared.model.device import OnTheWay, pixels_on

Cost = Literal["forward", "backward", "perturbation"]
"""Cost of maps beside the trunk: `forward` next to nothing, `backward` a backward pass (in closed form or by autograd)
for each phrase, `perturbation` many forward passes for each image."""

ATTENDING: Final[tuple[TowerKind, ...]] = ("class_token", "attention_pool", "latent_pool")
"""Kinds of towers whose embedding is made by an attention."""

ConfigT = TypeVar("ConfigT", bound=ExplainerConfig)


@dataclass(frozen=True, slots=True, kw_only=True)
class Launched:
    """A batch that a device may still be computing. `results` is None where no image has a phrase."""

    phrases: Sequence[Sequence[str]]  # of each image
    results: OnTheWay | None = None  # of `Maps.checked`, and the parts of `Signals` if the explainer looks closer
    grid_hw: tuple[int, int] = (0, 0)  # rows and columns of the maps
    shift_cells: float = 0.0  # see `HeatMap`
    presence: Presence | None = None  # see `Explainer`

    def wait(self) -> list[list[HeatMap]]:
        """Wait for this batch, and for none that was started later, and return the heat maps of each image.

        Raise RuntimeError for a fault of the device, which may report it only now.
        """
        if self.results is None:
            return [[] for _ in self.phrases]
        maps, cosines, faults, *signals = self.results.wait()
        maps = maps.reshape(*maps.shape[:2], *self.grid_hw)
        places = [(b, p) for b, texts in enumerate(self.phrases) for p in range(len(texts))]
        likely: Iterator[float | None] = repeat(None)
        if self.presence is not None:
            # All phrases in one product: one for each image takes five times as long.
            images, numbers = np.array(places).T
            likely = iter(self.presence.probabilities(*(signal[images, numbers] for signal in signals[1:])))
        answers = []
        for b, texts in enumerate(self.phrases):
            own = [
                HeatMap(
                    text=text,
                    values=maps[b, p].copy(),  # a view would keep the maps of all images, and on a GPU pinned memory
                    similarity=float(cosines[b, p]),
                    fault=FAULTS[int(faults[b, p])],
                    shift_cells=self.shift_cells,
                    presence=next(likely),
                )
                for p, text in enumerate(texts)
            ]
            answers.append(own)
        return answers

    def signals(self) -> list[Signals]:
        """Return what the presence of each image's phrases is judged by, of an explainer that looks closer."""
        if self.results is None:
            return []
        embeddings, *parts = self.results.wait()[3:]
        answers = []
        for b, n in enumerate(map(len, self.phrases)):
            texts, cosines, local = (part[b, :n].copy() for part in parts)  # views would keep pinned memory, as above
            answers.append(Signals(embedding=embeddings[b].copy(), texts=texts, cosines=cosines, local=local))
        return answers


class Explainer(ABC, Generic[ConfigT]):
    """Heat maps for phrases from a CLIP model, which it only reads. `HeatMap.similarity` is the cosine.

    A value of a map belongs to a token, which in some towers looks beside its cell (`Placement.shift_px`), or, with
    `at_cells`, to the pixels of its cell. `presence` judges whether phrases are in their images, if that is wanted;
    `looks_closer` is whether `maps` also returns the meaning of the patches alone, which presence is judged by, so that
    `Launched.signals` has its answers.

    Raises ConfigError for a model with a tower of another kind, and for settings that make no sense for its tower.
    """

    config_type: ClassVar[type[ExplainerConfig]]  # with a literal `kind`
    towers: ClassVar[tuple[TowerKind, ...]] = (*ATTENDING, "average_pool")  # that the method is defined on
    needs: ClassVar[str] = "tokens that stand for places"  # these towers have it and others lack it
    cost: ClassVar[Cost] = "backward"
    follows_phrases: ClassVar[bool] = True  # False where all phrases of an image get the same map
    at_cells: ClassVar[bool] = False
    claim: ClassVar[str] = ""  # a known claim of a patent on the method, for people; it is in no default

    def __init__(self, config: ConfigT, model: ClipModel) -> None:
        self.config = fitted(config, model.tower.kind, model.name)
        self.model = model
        self.affinity = Affinity(self.config, model.tower)
        self.texts = TextCache(model, templates_of(config.templates))
        self.presence: Presence | None = None
        self.looks_closer = False

    @abstractmethod
    def maps(self, rgb: Tensor, texts: Tensor) -> Maps:
        """Compute the maps of a batch. An image's maps do not depend on the other images of the batch.

        Args:
            rgb: uint8 (B, height, width, 3), whole images.
            texts: float32 (B, P, E), unit text embeddings; P is a multiple of `phrases_per_step`. Rows of zeros fill up
                images that have fewer phrases.
        """

    def learn(self, phrases: Sequence[Sequence[str]]) -> None:
        """Embed the phrases of images that come next: many texts in one call fill its forward passes."""
        self.texts.learn([text for own in phrases for text in own])

    def explain(self, rgb: NDArray[np.uint8], phrases: Sequence[Sequence[str]]) -> list[list[HeatMap]]:
        """Return one heat map for each of the unique phrase texts of each image.

        Values are float32 (height / stride, width / stride), >= 0 and finite, not normalised. The images are whole,
        uint8 (B, height, width, 3). Raise ValueError if their number is not that of the phrase lists, or a side is not
        a multiple of the tower's stride.
        """
        return self.started(list(rgb), phrases).wait()

    def started(self, images: Sequence[NDArray[np.uint8]], phrases: Sequence[Sequence[str]]) -> Launched:
        """Let the device compute all that `explain` returns for images of one size, and do not wait for it.

        A CPU computes all of it here. Raise ValueError as `explain` does.
        """
        if len(images) != len(phrases):
            raise ValueError(f"expected as many phrase lists as images, got {len(phrases)} and {len(images)}")
        if not any(phrases):
            return Launched(phrases=phrases)
        placement = self.model.tower.placement
        grid_hw = placement.grid_hw(*images[0].shape[:2])
        padded = self.texts.padded(phrases, self.config.phrases_per_step)
        rgb = pixels_on(images, self.model.device)
        self.looks_closer = self.looks_closer or self.presence is not None
        found = self._found(rgb, padded)
        results = [*found.checked()]
        if self.looks_closer:
            if found.embedding is None:
                raise ValueError(f"expected the images' embeddings, which {self.config.kind} does not return")
            embedding = F.normalize(found.embedding.float(), dim=-1)
            results += [embedding, padded, found.cosines, found.cosines if found.local is None else found.local]
        return Launched(
            phrases=phrases,
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
                assert own.tokens is not None, f"{self.config.kind} returns its tokens"  # noqa: S101
                own = replace(own, values=self.affinity(own.values, own.tokens, grid_hw))
            found.append(own)
            grids.append(grid_hw)
        return found[0] if len(found) == 1 else mean_of(found, grids, 0.0 if self.at_cells else placement.shift_cells)
