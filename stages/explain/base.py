"""The base class of explainers, which leaves one method, `maps`, to each method of the field."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import repeat, zip_longest
from typing import ClassVar, Final, Generic, Literal, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from stages.contract.records import HeatMap
from stages.explain import fit_to_tower
from stages.explain.affinity import early_block_of, share_heat
from stages.explain.config import ExplainerConfig
from stages.explain.maps import FAULTS, Maps, at_scale, compute_by_step, cosines_of, highest_cosines, mean_of
from stages.explain.presence import Presence, Signals
from stages.shared.model.clip import ClipModel, TextCache, templates_of
from stages.shared.model.config import TowerKind
from stages.shared.model.device import PendingTransfer, pixels_on

Cost = Literal["forward", "backward", "perturbation"]
"""Cost of maps beside the trunk: `forward` next to nothing, `backward` a backward pass (in
closed form or by autograd) for each phrase, `perturbation` many forward passes for each
image."""

ATTENDING: Final[tuple[TowerKind, ...]] = ("class_token", "attention_pool", "latent_pool")
"""Kinds of towers whose embedding is made by an attention."""

ConfigT = TypeVar("ConfigT", bound=ExplainerConfig)


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingMaps:
    """The heat maps of a batch that a device may still be computing.

    Attributes:
        phrases: Texts of each image's phrases.
        captions: Texts of each image's captions, which get no maps.
        results: What `Maps.replace_faults` returns, and the cosines of phrases and captions. If
            signals were wanted, image embeddings, text embeddings and cosines of patches follow.
            None where no image has a phrase.
        grid_hw: Rows and columns of the maps.
        shift_cells: See `HeatMap`.
    """

    phrases: Sequence[Sequence[str]]
    captions: Sequence[Sequence[str]] = ()
    results: PendingTransfer | None = None
    grid_hw: tuple[int, int] = (0, 0)
    shift_cells: float = 0.0

    def wait(self, presence: Presence | None = None) -> list[list[HeatMap]]:
        """Wait for this batch, and for no later one, and return the heat maps of each image.

        `presence` judges whether phrases are in their images, by the signals; without it
        nothing does. Raise RuntimeError for a fault of the device, which may report it only
        now.
        """
        if self.results is None:
            return [[] for _ in self.phrases]
        maps, cosines, faults, *_ = self.results.wait()
        maps = maps.reshape(*maps.shape[:2], *self.grid_hw)
        places = [(b, p) for b, texts in enumerate(self.phrases) for p in range(len(texts))]
        probabilities = self._probabilities(places, presence)
        heat_maps: list[list[HeatMap]] = [[] for _ in self.phrases]
        for (b, p), probability in zip(places, probabilities, strict=False):
            heat_map = HeatMap(
                text=self.phrases[b][p],
                values=maps[b, p].copy(),  # a view would keep the maps of all images, and on a GPU pinned memory
                similarity=float(cosines[b, p]),
                fault=FAULTS[int(faults[b, p])],
                shift_cells=self.shift_cells,
                presence=probability,
            )
            heat_maps[b].append(heat_map)
        return heat_maps

    def wait_for_captions(self, presence: Presence | None = None) -> list[list[tuple[float, float | None]]]:
        """Return for each caption of each image its cosine, and its presence as `wait` judges it."""
        if self.results is None:
            return [[] for _ in self.phrases]
        maps, _, _, cosines, *_ = self.results.wait()
        places = [(b, maps.shape[1] + c) for b, texts in enumerate(self.captions) for c in range(len(texts))]
        matches: list[list[tuple[float, float | None]]] = [[] for _ in self.phrases]
        for (b, c), probability in zip(places, self._probabilities(places, presence), strict=False):
            matches[b].append((float(cosines[b, c]), probability))
        return matches

    def _probabilities(self, places: list[tuple[int, int]], presence: Presence | None) -> Iterable[float | None]:
        if presence is None or self.results is None or not places:
            return repeat(None)
        *_, cosines, _, texts, local = self.results.wait()
        # All texts in one product: one for each image takes five times as long.
        images, numbers = np.array(places).T
        return presence.probabilities(*(signal[images, numbers] for signal in (texts, cosines, local)))

    def signals(self) -> list[Signals]:
        """Return the signals of each image's phrases for presence, if they were wanted."""
        if self.results is None:
            return []
        *_, cosines, embeddings, texts, local = self.results.wait()

        def of(b: int, first: int, last: int, captions: Signals | None = None) -> Signals:
            # Views would keep pinned memory, as above.
            return Signals(
                embedding=embeddings[b].copy(),
                texts=texts[b, first:last].copy(),
                cosines=cosines[b, first:last].copy(),
                local=local[b, first:last].copy(),
                captions=captions,
            )

        first = cosines.shape[1] - max(map(len, self.captions), default=0)
        return [
            of(b, 0, len(phrases), of(b, first, first + len(captions)))
            for b, (phrases, captions) in enumerate(zip_longest(self.phrases, self.captions, fillvalue=()))
        ]


class Explainer(ABC, Generic[ConfigT]):
    """Makes heat maps of phrases with a CLIP model, which it only reads. `HeatMap.similarity` is the cosine.

    Raises ConfigError for a model with a tower of another kind, and for settings that make no
    sense for its tower.

    Attributes:
        config_type: Class of the settings, with a literal `kind`.
        towers: Kinds of towers that the method is defined on.
        needs: A property that these towers have and others lack, for messages.
        cost: See `Cost`.
        follows_phrases: False where all phrases of an image get the same map.
        at_cells: True if a value belongs to the pixels of its cell. Otherwise it belongs to a
            token, which in some towers looks beside its cell (`Placement.shift_px`).
        claim: A known claim of a patent on the method, for people; it is in no default.
        early_block: See `early_block_of`: the block before which `Maps.tokens` are, with a
            class token.
    """

    config_type: ClassVar[type[ExplainerConfig]]
    towers: ClassVar[tuple[TowerKind, ...]] = (*ATTENDING, "average_pool")
    needs: ClassVar[str] = "tokens that stand for places"
    cost: ClassVar[Cost] = "backward"
    follows_phrases: ClassVar[bool] = True
    at_cells: ClassVar[bool] = False
    claim: ClassVar[str] = ""

    def __init__(self, config: ConfigT, model: ClipModel) -> None:
        self.config = fit_to_tower(type(self), config, model.tower.kind, model.name)
        self.model = model
        self.early_block = early_block_of(self.config, model.tower)
        self.texts = TextCache(model, templates_of(config.templates))

    @abstractmethod
    def maps(self, rgb: Tensor, texts: Tensor) -> Maps:
        """Compute the maps of a batch. An image's maps do not depend on the other images of the batch.

        Args:
            rgb: uint8 (B, height, width, 3), whole images.
            texts: float32 (B, P, E), unit text embeddings; P is a multiple of
                `phrases_per_step`. Rows of zeros fill up images that have fewer phrases.
        """

    def learn(self, phrases: Sequence[Sequence[str]]) -> None:
        """Embed the phrases of images that come next: many texts in one call fill its forward passes."""
        self.texts.learn([text for texts in phrases for text in texts])

    def explain(self, rgb: NDArray[np.uint8], phrases: Sequence[Sequence[str]]) -> list[list[HeatMap]]:
        """Return one heat map for each of the unique phrase texts of each image.

        Values are float32 (height / stride, width / stride), >= 0 and finite, not normalised.
        The images are whole, uint8 (B, height, width, 3). Raise ValueError if their number is
        not that of the phrase lists, or a side is not a multiple of the tower's stride.
        """
        return self.launch(list(rgb), phrases).wait()

    def launch(
        self,
        images: Sequence[NDArray[np.uint8]],
        phrases: Sequence[Sequence[str]],
        captions: Sequence[Sequence[str]] = (),
        *,
        with_signals: bool = False,
    ) -> PendingMaps:
        """Start to compute the results of `explain` for images of one size, without waiting for the device.

        A CPU computes them here. `captions` are further texts that get cosines and no maps; what
        the model's context does not hold is cut off. `with_signals`: whether presence will be
        judged or fitted. Raise ValueError as `explain` does.
        """
        if len(images) != len(phrases):
            raise ValueError(f"expected as many phrase lists as images, got {len(phrases)} and {len(images)}")
        if not any(phrases):
            return PendingMaps(phrases=phrases)
        placement = self.model.tower.placement
        grid_hw = placement.grid_hw(*images[0].shape[:2])
        texts = self.texts.embed_padded(phrases, self.config.phrases_per_step)
        count = texts.shape[1]
        if any(captions):
            texts = torch.cat([texts, self.texts.embed_padded(captions, 1)], dim=1)
        shift_cells = 0.0 if self.at_cells else placement.shift_cells
        rgb = pixels_on(images, self.model.device)
        grids = []
        scales = []
        for scale in self.config.scales:
            resized = at_scale(rgb, scale / self.config.scales[0], placement.stride_px)
            grids.append(placement.grid_hw(*resized.shape[1:3]))
            scales.append(self._explain_scale(resized, texts, count, with_signals=with_signals))
        maps_of_scales, cosines, local = zip(*scales, strict=True)
        maps = maps_of_scales[0] if len(scales) == 1 else mean_of(maps_of_scales, grids, shift_cells)
        mean_cosines = torch.stack(cosines).mean(dim=0)
        results = [*maps.replace_faults(mean_cosines[:, :count]), mean_cosines]
        if with_signals:
            results += [F.normalize(maps.embedding, dim=-1), texts, torch.stack(local).mean(dim=0)]
        return PendingMaps(
            phrases=phrases,
            captions=captions,
            results=PendingTransfer(results),
            grid_hw=grid_hw,
            shift_cells=shift_cells,
        )

    def _explain_scale(
        self, rgb: Tensor, texts: Tensor, count: int, *, with_signals: bool
    ) -> tuple[Maps, Tensor, Tensor]:
        """Return the maps after affinity, the cosines, and the highest of single patches, or the cosines again.

        The first `count` of the texts get maps. Other results are dropped: they would fill the
        memory of the next scale. Arguments as `maps`.
        """
        step = self.config.phrases_per_step
        maps = self.maps(rgb, texts[:, :count])
        cosines = compute_by_step(texts, step, partial(cosines_of, maps.embedding))
        local = cosines
        if with_signals and maps.embed_patches is not None:
            local = compute_by_step(texts, step, partial(highest_cosines, maps.embed_patches()))
        values = maps.values
        if self.config.affinity != "none":
            if maps.tokens is None:
                raise ValueError(f"expected the patches' tokens, which {self.config.kind} does not return")
            grid_hw = self.model.tower.placement.grid_hw(*rgb.shape[1:3])
            values = share_heat(values, maps.tokens, grid_hw, self.config.affinity_reach)
        return Maps(values=values, embedding=maps.embedding, constant=maps.constant), cosines, local
