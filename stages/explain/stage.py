"""Step 4: heat maps for all phrases of a record."""

from __future__ import annotations

import logging
import math
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, ClassVar, Final

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from phrasebox.stages.contract.errors import ConfigError, ResourceError
from phrasebox.stages.contract.records import HeatMap, Record
from phrasebox.stages.contract.stage import Device, Forwards, Stage
from phrasebox.stages.explain import EXPLAINERS, AnyExplainerConfig
from phrasebox.stages.model.config import ModelConfig, ModelDescription

if TYPE_CHECKING:
    from phrasebox.stages.explain.base import Match, PendingMaps, PendingMatches
    from phrasebox.stages.model.clip import ClipModel
    from phrasebox.stages.scores.presence import ImageSignals, Presence


class ExplainStageConfig(BaseModel):
    """Model and explainer of one worker."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: ModelConfig = ModelConfig()
    description: ModelDescription | None = Field(
        default=None, description="The model to load; None: one in memory."
    )
    explainer: AnyExplainerConfig = Field(default_factory=EXPLAINERS.config)
    keep_pixels: bool = Field(
        default=False, description="Leave the pixels in the record for a stage that looks at colours."
    )
    caption_score: bool = Field(
        default=True,
        description="Compare whole captions with their image. Those with signals are in any case.",
    )


BATCH_SIZES: Final[dict[Device, int]] = {"cpu": 8, "cuda": 64}
"""Images of one forward pass by device. On 2 CPU cores larger batches are no faster."""

AHEAD: Final = 2  # pending batches: the device computes one while the host makes the maps of the other

CUDA_BATCHES: Final = 4
"""Batches of a call on a GPU. The device waits while a call's first batch is prepared and the
last one's answers are made: with four that is a fourth of the host's work instead of all of it.
A CPU has nothing to overlap."""

RECORDS_AHEAD: Final = 32
"""Records whose phrases are embedded in one call. Those of a CPU's batch would not fill its
forward passes."""

_log = logging.getLogger(__name__)


class ExplainStage(Stage):
    """Fills `heat_maps`, one per unique phrase text, `caption_scores` and `caption_presences`.

    Phrases beyond the record's limit are dropped before maps are computed (`limit_phrases`).
    While the device computes a batch, the host makes the maps of the one before and prepares
    the next. Images that keep their aspect ratio differ in size and are computed one by one.
    Where a GPU's memory does not hold a batch, the batch is halved for the rest of the worker's
    life.

    Attributes:
        presence: Judges whether phrases are in their images; None: nothing does.
        signals: Collects the signals of each image that gets maps, by the key of its sample. None:
            nothing is collected.
        foreign: Key of a sample -> texts of phrases of other images. They get signals, and no maps.
        upcoming: Records of later calls. The next call embeds their texts with its own, which may
            be too few to fill the forward passes.

    Args:
        model: A model that is already loaded; None: the one of the configuration.
    """

    name: ClassVar[str] = "explain"

    def __init__(
        self, config: ExplainStageConfig, model: ClipModel | None = None, presence: Presence | None = None
    ) -> None:
        self.config = config
        # Here and not in setup: a worker that was sent this code has no metadata of packages to look it up in.
        self._explainer_type = EXPLAINERS[config.explainer.kind]
        self.presence = presence
        self.signals: dict[int, ImageSignals] | None = None
        self.foreign: Mapping[int, Sequence[str]] = {}
        self.upcoming: Sequence[Record] = ()
        self._loaded_model = self._model = model
        self._batch_size = 0
        self._images = 0
        self._device = ""
        self._ahead = AHEAD
        self._one_by_one = config.explainer.image_size == "keep"
        if self._one_by_one and config.model.batch_size not in (None, 1):
            raise ConfigError(
                f"{config.model.batch_size} images of different sizes do not fit into one batch; "
                "explain.image_size=keep computes them one by one, so leave model.batch_size out",
                key="model.batch_size",
            )

    def forward_batch_size(self, device: Device | None = None) -> int:
        """See `Stage.forward_batch_size`: the images of one forward pass."""
        if device is None:
            return self._batch_size
        return 1 if self._one_by_one else self.config.model.batch_size or BATCH_SIZES[device]

    def batches_per_call(self, device: Device | None = None) -> int:
        """See `Stage.batches_per_call`."""
        on = device or ("cpu" if self._explainer.model.device.type == "cpu" else "cuda")
        return CUDA_BATCHES if on == "cuda" else 1

    @property
    def precision(self) -> str:
        """The precision of the model, which is set up."""
        from phrasebox.stages.model.device import DTYPES  # noqa: PLC0415  as in setup

        dtype = self._explainer.model.tower.dtype
        return next(name for name, precision in DTYPES.items() if precision == dtype)

    def setup(self) -> None:
        """Load the model. Raise WeightsError, ConfigError or ResourceError."""
        # torch and open_clip take seconds to import; only the workers that need them pay for it.
        from phrasebox.stages.model.load import load  # noqa: PLC0415

        model = self._loaded_model
        if model is None:
            settings = self.config.model
            description = self.config.description
            if description is None:
                raise ConfigError("no model is described, and none is in memory", key="model.name")
            model = load(
                description, device=settings.device, precision=settings.precision, threads=settings.threads
            )
        self._model = model
        self._batch_size = self.forward_batch_size("cuda" if model.device.type == "cuda" else "cpu")
        self._device = getattr(model, "device_name", str(model.device))
        self._explainer = self._explainer_type(self.config.explainer, model)

    def process(self, batch: Sequence[Record]) -> list[Record]:
        """See `Stage.process`. Pixels are dropped unless a later stage needs them: they are the bulk of a record."""
        from phrasebox.stages.model.device import retry_on_oom  # noqa: PLC0415  as in setup

        keep = self.config.keep_pixels
        out = [
            record if keep or record.pixels is None else replace(record, pixels=None) for record in batch
        ]
        todo = [
            i for i, record in enumerate(out) if record.error is None and record.phrases and batch[i].pixels
        ]
        for number, record in retry_on_oom(
            todo,
            lambda numbers: self._explain([batch[number] for number in numbers]),
            lambda number, reason: self._shrink_batches(len(batch[number].phrases), reason),
        ):
            out[number] = replace(record, pixels=out[number].pixels)
        return out

    def with_presence(self, presence: Presence | None) -> ExplainStage:
        """Return this stage, not set up, with another judge of presence; None: with no judge.

        It takes over the model if this stage is set up.
        """
        return ExplainStage(self.config, self._model, presence)

    def computing(self, **settings: str) -> ExplainStage:
        """See `Stage.computing`."""
        model = self.config.model.model_copy(update=settings)
        return ExplainStage(
            self.config.model_copy(update={"model": model}), self._loaded_model, self.presence
        )

    def take_forwards(self) -> Forwards:
        """See `Stage.take_forwards`."""
        forwards = Forwards(images=self._images, device=self._device)
        self._images = 0
        return forwards

    def teardown(self) -> None:
        """Let the model go."""
        del self._explainer
        self._model = self._loaded_model

    def _shrink_batches(self, phrases: int, reason: str) -> None:
        """Go on with smaller batches where the GPU's memory did not suffice, then with one at a time.

        Raise ResourceError, which names the number of `phrases` of the image, if it does not
        hold one image alone.
        """
        if self._batch_size > 1:
            self._batch_size //= 2
            _log.warning("GPU memory is full: going on with batches of %d images", self._batch_size)
        elif self._ahead > 1:
            self._ahead = 1
        else:
            raise ResourceError(
                f"the GPU's memory does not hold one image with {phrases} phrases: lower "
                f"phrases.max_phrases or explain.image_size, or use a larger GPU ({reason})"
            )

    def _explain(self, records: Sequence[Record]) -> Iterator[Record]:
        """Yield records with their heat maps, in order. The next batches are submitted before one is waited for."""
        size = 1 if self._explainer.one_by_one else self._batch_size
        pending: deque[PendingBatch] = deque()
        for window in _split(records, max(1, RECORDS_AHEAD // size) * size):
            with self._texts_embedded(window):
                for batch in _split(window, size):
                    pending.append(self._submit(batch))
                    if len(pending) == self._ahead:
                        yield from self._collect(pending.popleft())
        while pending:
            yield from self._collect(pending.popleft())

    @contextmanager
    def _texts_embedded(self, records: Sequence[Record]) -> Iterator[None]:
        """Embed the texts of records, and of those that are upcoming, together, and keep them within the block.

        Afterwards captions are set aside: phrases come again, and the captions of a long run
        would fill the memory.
        """
        records = [*records, *self.upcoming]
        self.upcoming = ()
        phrases = dict.fromkeys(chain(*_texts_of(records)))
        captions = [caption for caption in chain(*self._captions_of(records)) if caption not in phrases]
        texts = self._explainer.texts
        try:
            texts.embed_ahead([*phrases, *captions])
            yield
        finally:
            texts.set_aside(captions)

    def _captions_of(self, records: Sequence[Record]) -> list[list[str]]:
        """Return the captions of each record that are compared with its image: none if nothing asks for them."""
        if not self.config.caption_score and self.signals is None:
            return [[] for _ in records]
        return [[caption.strip() for caption in record.sample.captions] for record in records]

    def _submit(self, records: Sequence[Record]) -> PendingBatch:
        """Give a batch to the device, without waiting for its maps.

        Where a record has phrases beyond its limit this waits for the comparison, which chooses them.
        """
        images = [record.pixels.rgb for record in records if record.pixels is not None]
        comparison = self._explainer.compare(
            images,
            _texts_of(records),
            self._captions_of(records),
            foreign=[self.foreign.get(record.sample.key, ()) for record in records],
            with_signals=self.presence is not None or self.signals is not None,
        )
        limited = records
        if any(record.object_numbers for record in records):
            matches = comparison.matches.wait(self.presence)
            limited = list(map(limit_phrases, records, matches))
        return PendingBatch(
            whole=records,
            limited=limited,
            matches=comparison.matches,
            maps=self._explainer.launch(comparison, _texts_of(limited)),
            presence=self.presence,
            contrast=self.config.explainer.contrast,
        )

    def _collect(self, batch: PendingBatch) -> list[Record]:
        """Wait for a batch and count it. Return its records."""
        records = batch.records()
        self._images += len(records)
        if self.signals is not None:
            keys = (record.sample.key for record in records)
            self.signals.update(zip(keys, batch.matches.signals(), strict=True))
        return records


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingBatch:
    """Records of one forward pass whose heat maps a device may still be computing.

    Attributes:
        whole: The records with all their phrases.
        limited: The same records, without the phrases beyond their limit.
        matches: How well the images fit all texts and captions of the whole records.
        maps: Of the phrases of the limited records.
        presence: Judges whether texts are in their images; None: nothing does.
        contrast: See `subtract_others`.
    """

    whole: Sequence[Record]
    limited: Sequence[Record]
    matches: PendingMatches
    maps: PendingMaps
    presence: Presence | None
    contrast: float

    def records(self) -> list[Record]:
        """Wait for this batch, and return the limited records with heat maps, and caption scores by all phrases.

        Raise RuntimeError as `PendingMatches.wait`.
        """
        matches = self.matches.wait(self.presence)
        maps = self.maps.wait(matches)
        scored = (
            with_caption_scores(limited, record, matches_of_record) if captions else limited
            for limited, record, matches_of_record, captions in zip(
                self.limited, self.whole, matches, self.matches.captions, strict=True
            )
        )
        return [
            replace(record, heat_maps=tuple(subtract_others(maps_of_record, self.contrast)))
            for record, maps_of_record in zip(scored, maps, strict=True)
        ]


def _split(records: Sequence[Record], size: int) -> list[Sequence[Record]]:
    return [records[start : start + size] for start in range(0, len(records), size)]


def _texts_of(records: Sequence[Record]) -> list[list[str]]:
    return [list(dict.fromkeys(phrase.text for phrase in record.phrases)) for record in records]


def limit_phrases(record: Record, matches: Mapping[str, Match]) -> Record:
    """Return a record whose phrases have at most `phrase_limit` different texts, by the matches of its texts.

    The likeliest text of every object comes first, then the second likeliest, and so on.
    """
    if not record.object_numbers:
        return record
    object_of = {
        phrase.text: number for phrase, number in zip(record.phrases, record.object_numbers, strict=True)
    }
    likeliest_first = sorted(object_of, key=lambda text: -matches[text].likelihood)
    repeats: Counter[int] = Counter()
    rank: dict[str, int] = {}
    for text in likeliest_first:
        rank[text] = repeats[object_of[text]]
        repeats[object_of[text]] += 1
    chosen = set(sorted(likeliest_first, key=rank.__getitem__)[: record.phrase_limit])
    phrases = tuple(phrase for phrase in record.phrases if phrase.text in chosen)
    dropped = record.dropped_phrases + len(record.phrases) - len(phrases)
    return replace(record, phrases=phrases, dropped_phrases=dropped, object_numbers=())


def with_caption_scores(limited: Record, record: Record, matches: Mapping[str, Match]) -> Record:
    """Return a limited record with the scores and presences of its captions, by all phrases of the whole record.

    The score is the mean of the cosines of a caption and of its phrases, the noun-level score of
    arXiv 2502.20034 (there of nouns): a single wrong noun weighs more than in the caption's
    cosine alone.
    """
    scores: list[float | None] = []
    presences: list[float | None] = []
    for index, caption in enumerate(map(str.strip, record.sample.captions)):
        texts = {phrase.text for phrase in record.phrases if phrase.caption_index == index}
        total = matches[caption].cosine + math.fsum(matches[text].cosine for text in texts)
        scores.append(round(total / (1 + len(texts)), 6) if caption else None)
        presences.append(matches[caption].presence if caption else None)
    return replace(limited, caption_scores=tuple(scores), caption_presences=tuple(presences))


def subtract_others(maps: Sequence[HeatMap], strength: float) -> list[HeatMap]:
    """Subtract from each map of one image's phrases the highest of the other maps at the same place.

    The maps of all phrases of an image share some heat: on whatever stands out. CLIP Surgery
    (Li et al., arXiv 2304.05653) calls it redundant features and subtracts their mean over the
    classes from the tokens. Here it is done on the finished maps of any explainer, which have
    one shape. With every map divided by its largest value,

        H_i - strength * max over the others of H_j, not below 0            0 <= strength < 1

    times the largest value of map i. Two maps of the same form only become fainter: phrases
    that mean the same object ("car" and "red car") do not erase each other. Maps with a fault,
    and a map without others, stay as they are.
    """
    clear = [index for index, heat_map in enumerate(maps) if not heat_map.fault]
    out = list(maps)
    if strength == 0 or len(clear) < 2:
        return out
    values = np.stack([maps[index].values for index in clear])
    peaks = values.max(axis=(1, 2), keepdims=True)
    shares = values / peaks
    second, first = np.partition(shares, -2, axis=0)[-2:]
    # The highest of the other maps: the second highest where a map is the highest itself.
    highest = np.where(shares == first, second, first)
    contrasts = np.maximum(shares - np.float32(strength) * highest, 0) * peaks
    for index, contrast in zip(clear, contrasts, strict=True):
        out[index] = replace(maps[index], values=contrast)
    return out
