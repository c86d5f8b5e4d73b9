"""The base class of explainers, which leaves one method, `maps`, to each method of the field."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, chain, pairwise, repeat
from typing import ClassVar, Final, Generic, Literal, NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from phrasebox.stages.contract.records import HeatMap
from phrasebox.stages.explain import fit_to_tower
from phrasebox.stages.explain.config import ExplainerConfig
from phrasebox.stages.explain.maps import (
    FAULTS,
    PHRASES_PER_STEP,
    Maps,
    at_scale,
    compute_by_step,
    cosines_of,
    highest_cosines,
    mean_of,
    replace_faults,
    share_heat,
)
from phrasebox.stages.model.clip import ClipModel
from phrasebox.stages.model.config import TowerKind
from phrasebox.stages.model.device import PendingTransfer, pixels_on
from phrasebox.stages.model.text_cache import TextCache, templates_of
from phrasebox.stages.model.towers.vision import VisionTower
from phrasebox.stages.scores.presence import ImageSignals, Presence, TextSignals

Cost = Literal["forward", "backward", "perturbation"]
"""Cost of maps beside the trunk: `forward` next to nothing, `backward` a backward pass (in
closed form or by autograd) for each phrase, `perturbation` many forward passes for each
image, or as much time."""

ATTENDING: Final[tuple[TowerKind, ...]] = ("class_token", "attention_pool", "latent_pool")
"""Kinds of towers whose embedding is made by an attention."""

ConfigT = TypeVar("ConfigT", bound=ExplainerConfig)


class Match(NamedTuple):
    """How well an image and a text fit: the cosine of their embeddings, and the presence if it is judged."""

    cosine: float
    presence: float | None

    @property
    def likelihood(self) -> float:
        """The rank of the text in its image: its presence, or its cosine if presence is not judged."""
        return self.cosine if self.presence is None else self.presence


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingMatches:
    """The cosines of a batch that a device may still be computing.

    Attributes:
        phrases: Texts of each image's phrases.
        foreign: Texts of phrases of other images, for each image.
        captions: Texts of each image's captions.
        results: Cosines of all texts of each image, in this order. If signals were wanted, image
            embeddings, text embeddings and cosines of patches follow.
    """

    phrases: Sequence[Sequence[str]]
    foreign: Sequence[Sequence[str]]
    captions: Sequence[Sequence[str]]
    results: PendingTransfer

    def wait(self, presence: Presence | None = None) -> list[dict[str, Match]]:
        """Wait for this batch, and for no later one, and return the matches of each image by text, of whatever kind.

        `presence` judges whether texts are in their images, by the signals; without it nothing
        does. A cosine that is not finite is 0. Raise RuntimeError for a fault of the device,
        which may report it only now.
        """
        cosines, *signals = self.results.wait()
        images = [[*chain(*kinds)] for kinds in self._kinds]
        places = tuple(
            np.array([(b, place) for b, texts in enumerate(images) for place in range(len(texts))]).T
        )
        probabilities: Iterable[float | None] = repeat(None)
        if presence is not None:
            _, embeddings, local = signals
            # All texts in one product: one for each image takes five times as long.
            probabilities = presence.probabilities(embeddings[places], cosines[places], local[places])
        finite = np.where(np.isfinite(cosines), cosines, 0)[places].tolist()
        matches = map(Match, finite, probabilities)
        return [dict(zip(texts, matches, strict=False)) for texts in images]

    def signals(self) -> list[ImageSignals]:
        """Return the signals of each image for presence, if they were wanted."""
        cosines, embeddings, embedded, local = self.results.wait()
        images: list[ImageSignals] = []
        for b, kinds in enumerate(self._kinds):
            # A view would keep the results of all images, and on a GPU pinned memory.
            phrases, foreign, captions = (
                TextSignals(
                    embeddings=embedded[b, start:end].copy(),
                    cosines=cosines[b, start:end].copy(),
                    local=local[b, start:end].copy(),
                )
                for start, end in pairwise(accumulate(map(len, kinds), initial=0))
            )
            images.append(
                ImageSignals(
                    embedding=embeddings[b].copy(), phrases=phrases, foreign=foreign, captions=captions
                )
            )
        return images

    @property
    def _kinds(self) -> Iterable[tuple[Sequence[str], ...]]:
        """The three kinds of texts of each image."""
        return zip(self.phrases, self.foreign, self.captions, strict=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchComparison:
    """The images of a batch, compared with texts before any map is computed.

    Attributes:
        scales: The images' maps at each of `explain.scales`. They hold the device's memory.
        grids_hw: Rows and columns of these maps.
        matches: Cosines of images and texts.
    """

    scales: Sequence[Maps]
    grids_hw: Sequence[tuple[int, int]]
    matches: PendingMatches


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingMaps:
    """The heat maps of a batch that a device may still be computing.

    Attributes:
        phrases: Texts of each image's phrases.
        results: What `replace_faults` returns.
        grid_hw: Rows and columns of the maps.
        shift_cells: See `HeatMap`.
    """

    phrases: Sequence[Sequence[str]]
    results: PendingTransfer
    grid_hw: tuple[int, int]
    shift_cells: float

    def wait(self, matches: Sequence[Mapping[str, Match]]) -> list[list[HeatMap]]:
        """Wait for this batch, and return the heat maps of each image, with its matches by text.

        Raise RuntimeError as `PendingMatches.wait`.
        """
        maps, faults = self.results.wait()
        maps = maps.reshape(*maps.shape[:2], *self.grid_hw)
        return [
            [
                HeatMap(
                    text=text,
                    values=maps[b, p].copy(),  # as in `PendingMatches.signals`
                    similarity=matches[b][text].cosine,
                    fault=FAULTS[int(faults[b, p])],
                    shift_cells=self.shift_cells,
                    presence=matches[b][text].presence,
                )
                for p, text in enumerate(texts)
            ]
            for b, texts in enumerate(self.phrases)
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
        at_cells: True if a value belongs to the pixels of its cell. Otherwise it belongs to a
            token, which in some towers looks beside its cell (`Placement.shift_px`).
        claim: A known claim of a patent on the method, for people; it is in no default.
        early_block: With a class token, the number, from 0, of the block before which
            `Maps.tokens` are. None where the last tokens are compared, or nothing is.
        one_by_one: True if maps hold so much memory that a run compares one image at a time.
    """

    config_type: ClassVar[type[ExplainerConfig]]
    towers: ClassVar[tuple[TowerKind, ...]] = (*ATTENDING, "average_pool")
    needs: ClassVar[str] = "tokens that stand for places"
    cost: ClassVar[Cost] = "backward"
    at_cells: ClassVar[bool] = False
    claim: ClassVar[str] = ""
    one_by_one: bool = False
    early_block: int | None = None

    def __init__(self, config: ConfigT, model: ClipModel) -> None:
        self.config = fit_to_tower(type(self), config, model.tower.kind, model.name)
        self.model = model
        if isinstance(model.tower, VisionTower) and config.affinity != "none":
            self.early_block = max(1, round(config.affinity_depth * len(model.tower.blocks))) - 1
        self.texts = TextCache(model, templates_of(config.templates))

    @abstractmethod
    def maps(self, rgb: Tensor) -> Maps:
        """Return the maps of whole images, uint8 (B, height, width, 3), for phrases that are named later.

        An image's maps do not depend on the other images of the batch.
        """

    def explain(self, rgb: NDArray[np.uint8], phrases: Sequence[Sequence[str]]) -> list[list[HeatMap]]:
        """Return one heat map for each of the unique phrase texts of each image.

        Values are float32 (height / stride, width / stride), >= 0 and finite, not normalised.
        The images are whole, uint8 (B, height, width, 3). Raise ValueError if their number is
        not that of the phrase lists, or a side is not a multiple of the tower's stride.
        """
        if not any(phrases):
            return [[] for _ in phrases]
        comparison = self.compare(list(rgb), phrases)
        return self.launch(comparison, phrases).wait(comparison.matches.wait())

    def compare(
        self,
        images: Sequence[NDArray[np.uint8]],
        texts: Sequence[Sequence[str]],
        captions: Sequence[Sequence[str]] = (),
        *,
        foreign: Sequence[Sequence[str]] = (),
        with_signals: bool = False,
    ) -> BatchComparison:
        """Start to compare images of one size with texts, without waiting for the device; a CPU computes here.

        At least one image has texts. What the model's context does not hold of `captions` is cut
        off. `foreign`: phrases of other images. `with_signals`: whether presence will be judged or
        fitted. Raise ValueError as `explain` does.
        """
        if len(images) != len(texts):
            raise ValueError(f"expected as many phrase lists as images, got {len(texts)} and {len(images)}")
        placement = self.model.tower.placement
        placement.grid_hw(*images[0].shape[:2])  # Sides that do not fit would be resized
        captions = captions or [()] * len(images)
        foreign = foreign or [()] * len(images)
        all_texts = [[*chain(*kinds)] for kinds in zip(texts, foreign, captions, strict=True)]
        embedded = self.texts.embed_padded(all_texts, PHRASES_PER_STEP)
        rgb = pixels_on(images, self.model.device)
        shares = [scale / self.config.scales[0] for scale in self.config.scales]
        resized = [at_scale(rgb, share, placement.stride_px) for share in shares]
        scales = [self.maps(pixels) for pixels in resized]
        cosines = self._mean_cosines(scales, embedded)
        results = [cosines]
        if with_signals:
            embeddings = torch.stack([F.normalize(maps.embedding, dim=-1) for maps in scales]).mean(dim=0)
            local = [
                cosines
                if maps.embed_patches is None
                else compute_by_step(embedded, partial(highest_cosines, maps.embed_patches()))
                for maps in scales
            ]
            results += [F.normalize(embeddings, dim=-1), embedded, torch.stack(local).mean(dim=0)]
        return BatchComparison(
            scales=scales,
            grids_hw=[placement.grid_hw(*pixels.shape[1:3]) for pixels in resized],
            matches=PendingMatches(
                phrases=texts, foreign=foreign, captions=captions, results=PendingTransfer(results)
            ),
        )

    @torch.no_grad()
    def launch(self, comparison: BatchComparison, phrases: Sequence[Sequence[str]]) -> PendingMaps:
        """Start to compute the maps of each image's phrases, some of its texts, without waiting for the device."""
        texts = self.texts.embed_padded(phrases, PHRASES_PER_STEP)
        scales = comparison.scales
        grids_hw = comparison.grids_hw
        values = [self._heat(maps, texts, grid_hw) for maps, grid_hw in zip(scales, grids_hw, strict=True)]
        shift_cells = 0.0 if self.at_cells else self.model.tower.placement.shift_cells
        mean = values[0] if len(values) == 1 else mean_of(values, grids_hw, shift_cells)
        constant = [maps.constant for maps in scales if maps.constant is not None]
        results = replace_faults(mean, self._mean_cosines(scales, texts), constant)
        return PendingMaps(
            phrases=phrases, results=PendingTransfer(results), grid_hw=grids_hw[0], shift_cells=shift_cells
        )

    def _mean_cosines(self, scales: Sequence[Maps], texts: Tensor) -> Tensor:
        cosines = [compute_by_step(texts, partial(cosines_of, maps.embedding)) for maps in scales]
        return torch.stack(cosines).mean(dim=0)

    def _heat(self, maps: Maps, texts: Tensor, grid_hw: tuple[int, int]) -> Tensor:
        """Return the heat of one scale after affinity."""
        heat = maps.heat(texts)
        if self.config.affinity == "none":
            return heat
        if maps.tokens is None:
            raise ValueError(f"expected the patches' tokens, which {self.config.kind} does not return")
        return share_heat(heat, maps.tokens, grid_hw, self.config.affinity_reach)
