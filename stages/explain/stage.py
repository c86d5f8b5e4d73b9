"""STEP 2: heat maps for all phrases of a record."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from stages.contract.errors import ConfigError, ResourceError
from stages.contract.records import HeatMap, Record
from stages.contract.stage import Device, Forwards, Stage
from stages.explain import EXPLAINERS, AnyExplainerConfig
from stages.shared.model.config import ModelConfig

if TYPE_CHECKING:
    from stages.explain.base import Explained, Launched
    from stages.explain.presence import Presence, Signals
    from stages.explain.text.importance import CaptionImportance, WordImportance
    from stages.explain.text.phrases import AskedImportance
    from stages.shared.model.clip import ClipModel


class ExplainStageConfig(BaseModel):
    """Model and explainer of one worker."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: ModelConfig = ModelConfig()
    explainer: AnyExplainerConfig = Field(default_factory=EXPLAINERS.config)

    min_importance: float = Field(default=0.0, ge=0.0, le=1.0)
    """Phrases whose importance is known and below this are left out; see `phrases.min_importance`."""

    keep_pixels: bool = False
    """Leave the pixels in the record, for a later stage that looks at colours."""


BATCH_SIZES: Final[dict[Device, int]] = {"cpu": 8, "cuda": 64}
"""Images of one forward pass by device. On 2 CPU cores larger batches are no faster."""

FEWEST_IMAGES: Final = 4
"""A batch that is not full is filled up to this number of images, or to twice, four times, eight times as many."""

AHEAD: Final = 2
"""Batches that are under way at a time: one that the device computes, and one that waits for it or whose answers the
host makes. More would not make the device busier, and would hold more memory."""

CUDA_BATCHES: Final = 4
"""Batches of a call on a GPU. At a call's ends there is nothing to overlap: the first batch is prepared and the last
one's answers are made while the device waits. With four that is a fourth of the host's work instead of all of it; a
call then holds 256 images, 40 MB of pixels at 224 px. A CPU has nothing to overlap."""

LEARNT_TOGETHER: Final = 32
"""Records whose phrases are embedded in one call, at least. Those of a CPU's batch would not fill its forward passes;
those of a GPU's do, and while they are cut into tokens the device computes the batch before."""

_log = logging.getLogger(__name__)


class ExplainStage(Stage):
    """Fills `heat_maps`, one per unique phrase text, and with `explain.importance` the importance of each phrase.

    Phrases below `min_importance` are left out with their maps, before maps are contrasted with each other.

    No map depends on how many images arrived together, although the bits of a product depend on its shape: the last
    batch of a call is filled up with blank images. It is filled up to 4, 8, 16 or more images, at most half a batch,
    where the device computes the same bits for that many images as for a full batch. The worker finds that out by
    computing both, once for each number, beginning with its second batch. Until it knows, and where the bits differ,
    the batch is filled up entirely. Images that keep their aspect ratio differ in size and are computed one by one,
    without any filling.

    While the device computes a batch, the host makes the answers of the one before and prepares the next.

    Where a GPU's memory does not hold a batch, the batch is halved for the rest of the worker's life.

    Args:
        config: The model and the explainer.
        model: One that is already loaded, instead of the one that the configuration names.
        presence: Tells whether phrases are in their images; without one nothing is known of it.

    Attributes:
        embeddings: Where somebody puts a list, the embeddings of the images, float32 (E,) in any scale, are added to
            it, if the explainer hands them out.
    """

    name: ClassVar[str] = "explain"

    def __init__(
        self, config: ExplainStageConfig, model: ClipModel | None = None, presence: Presence | None = None
    ) -> None:
        self.config = config
        self.presence = presence
        self.embeddings: list[NDArray[np.float32]] | None = None
        self._loaded = model
        self._importance: WordImportance | None = None
        self._batch_size, self._images, self._computed, self._device = 0, 0, 0, ""
        self._same_bits: dict[int, bool] = {}
        self._has_computed = False
        self._ahead = AHEAD
        self._one_by_one = config.explainer.image_size == "keep"
        if self._one_by_one and config.model.batch_size not in (None, 1):
            raise ConfigError(
                f"model.batch_size: {config.model.batch_size} images of different sizes do not fit into one batch; "
                "explain.image_size=keep computes them one by one, so leave model.batch_size out"
            )

    def batch_rows(self, device: Device | None = None) -> int:
        """See `Stage.batch_rows`: the images of one forward pass."""
        if device is None:
            return self._batch_size
        return 1 if self._one_by_one else self.config.model.batch_size or BATCH_SIZES[device]

    def call_batches(self, device: Device | None = None) -> int:
        """See `Stage.call_batches`."""
        on = device or ("cpu" if self._explainer.model.device.type == "cpu" else "cuda")
        return CUDA_BATCHES if on == "cuda" else 1

    def setup(self) -> None:
        """Load the model. Raises WeightsError, ConfigError or ResourceError."""
        # torch and open_clip take seconds to import; only the workers that need them pay for it.
        from stages.shared.model.load import load  # noqa: PLC0415

        explainer = EXPLAINERS[self.config.explainer.kind]
        model = self._loaded or load(self.config.model)
        self._batch_size = self.batch_rows("cuda" if model.device.type == "cuda" else "cpu")
        self._device = getattr(model, "device_name", str(model.device))
        self._explainer = explainer(self.config.explainer, model)
        self._explainer.presence = self.presence
        if self.config.explainer.importance != "none":
            from stages.explain.text.importance import WordImportance  # noqa: PLC0415

            self._importance = WordImportance(self.config.explainer, model)

    def process(self, batch: Sequence[Record]) -> list[Record]:
        """See `Stage.process`. Pixels are dropped unless a later stage needs them: they are the bulk of a record."""
        from stages.shared.model.device import is_out_of_memory  # noqa: PLC0415

        keep = self.config.keep_pixels
        out = [record if keep or record.pixels is None else replace(record, pixels=None) for record in batch]
        todo = [i for i, record in enumerate(out) if record.error is None and record.phrases and batch[i].pixels]
        under_way: deque[_Part] = deque()
        learnt = 0
        while todo or under_way:
            try:
                if todo and len(under_way) < self._ahead:
                    places = todo[: self._batch_size]
                    if places[-1] >= learnt:
                        coming = todo[: max(len(places), LEARNT_TOGETHER)]
                        self._explainer.learn(_texts_of([out[i] for i in coming]))
                        learnt = coming[-1] + 1
                    under_way.append(self._started(places, [batch[i] for i in places]))
                    todo = todo[len(places) :]
                else:
                    first = under_way[0]
                    for place, answer in zip(first.places, self._finished(first), strict=True):
                        out[place] = replace(answer, pixels=out[place].pixels)
                    del first
                    under_way.popleft()
                continue
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                why = str(error).partition("\n")[0]
            # Outside the handler: the error holds the frames, and they hold the tensors. A batch that is under way may
            # be what fills the memory, and what fails when it is waited for may be the next one's fault.
            todo = [place for part in under_way for place in part.places] + todo
            under_way.clear()
            self._take_less(len(batch[todo[0]].phrases), why)
        return out

    def words(self, record: Record, captions: Sequence[str]) -> list[CaptionImportance]:
        """How important the words of captions are for the image of a record, which has pixels.

        Raises ConfigError where that is not defined on the model's text tower.
        """
        import torch  # noqa: PLC0415

        from stages.explain.text.importance import WordImportance  # noqa: PLC0415

        if record.pixels is None:
            raise ValueError(f"expected the pixels of {record.sample.sample_id!r}")
        model = self._explainer.model
        importance = WordImportance(self.config.explainer, model)
        with torch.no_grad():
            embedding = model.tower.encode(torch.from_numpy(record.pixels.rgb[None]))
        return importance(captions, embedding.float().expand(len(captions), -1))

    def without_presence(self) -> ExplainStage:
        """The same stage, not set up, that does not tell whether phrases are in their images."""
        return ExplainStage(self.config, self._loaded)

    def on_device(self, device: Device) -> ExplainStage:
        """Return the same stage, not set up, that computes on a device or raises."""
        model = self.config.model.model_copy(update={"device": device})
        return ExplainStage(self.config.model_copy(update={"model": model}), self._loaded, self.presence)

    def without_importance(self) -> ExplainStage:
        """The same stage, not set up, for phrases that are not those of the captions: it leaves none of them out."""
        explainer = self.config.explainer.model_copy(update={"importance": "none"})
        config = self.config.model_copy(update={"explainer": explainer, "min_importance": 0.0})
        return ExplainStage(config, self._loaded, self.presence)

    def signals(self, batch: Sequence[Record]) -> list[Signals]:
        """What the presence of the phrases of records is judged by, with its bits as they come.

        Args:
            batch: At most `batch_rows` records with pixels of one size and at least one phrase each.
        """
        pixels = np.stack([record.pixels.rgb for record in batch if record.pixels is not None])
        return self._explainer.signals(pixels, _texts_of(batch))

    def take_forwards(self) -> Forwards:
        """See `Stage.take_forwards`."""
        forwards = Forwards(images=self._images, computed=self._computed, device=self._device)
        self._images = self._computed = 0
        return forwards

    def teardown(self) -> None:
        """Let the model go."""
        del self._explainer
        self._importance = None

    def _take_less(self, phrases: int, why: str) -> None:
        """Go on with smaller batches where the GPU's memory did not suffice, then with one at a time.

        Args:
            phrases: Of the image whose turn it is, for the message.
            why: What the device said.

        Raises:
            ResourceError: The memory does not suffice for one image alone.
        """
        import torch  # noqa: PLC0415

        torch.cuda.empty_cache()
        if self._batch_size > 1:
            self._batch_size //= 2
            self._same_bits.clear()
            _log.warning("GPU memory is full: going on with batches of %d images", self._batch_size)
        elif self._ahead > 1:
            self._ahead = 1
        else:
            raise ResourceError(
                f"the GPU's memory does not hold one image with {phrases} phrases: lower "
                f"phrases.max_phrases or explain.image_size, or use a larger GPU ({why})"
            )

    def _started(self, places: list[int], records: list[Record]) -> _Part:
        """Let the device compute at most a batch of records whose pixels have one size."""
        images, texts = [record.pixels.rgb for record in records if record.pixels is not None], _texts_of(records)
        full, fewer = self._batch_size, max(FEWEST_IMAGES, 1 << (len(records) - 1).bit_length())
        same = fewer <= full // 2 and self._same_bits.get(fewer)
        launched = self._filled(images, texts, fewer if same else full)
        trial = self._filled(images, texts, fewer) if same is None and self._has_computed else None
        self._has_computed = True
        asked = None
        if self._importance is not None:
            from stages.explain.text.phrases import started_importance  # noqa: PLC0415

            assert launched.embedding is not None, f"{self.config.explainer.kind} hands out embeddings"  # noqa: S101
            asked = started_importance(records, launched.embedding, self._importance)
        return _Part(
            places=places, records=records, launched=launched, trial=trial, trial_images=fewer, importance=asked
        )

    def _finished(self, part: _Part) -> list[Record]:
        """Wait for the device, and give the records their heat maps."""
        found = part.launched.wait()
        if part.trial is not None:
            images = len(part.records)
            self._same_bits[part.trial_images] = _bits(part.trial.wait(), images) == _bits(found, images)
        if self.embeddings is not None and found.embedding is not None:
            self.embeddings.extend(found.embedding[: len(part.records)].float().cpu().numpy())
        answers = [
            replace(record, heat_maps=tuple(maps))
            for record, maps in zip(part.records, found.heat_maps[: len(part.records)], strict=True)
        ]
        if part.importance is not None:
            from stages.explain.text.phrases import without_unimportant  # noqa: PLC0415

            answers = part.importance.wait(answers)
            answers = [without_unimportant(answer, self.config.min_importance) for answer in answers]
        self._images += len(part.records)
        contrast = self.config.explainer.contrast
        return [replace(answer, heat_maps=tuple(contrasted(answer.heat_maps, contrast))) for answer in answers]

    def _filled(self, images: Sequence[NDArray[np.uint8]], texts: Sequence[list[str]], size: int) -> Launched:
        """Start the images in one batch of `size` images; blank ones make up for those missing."""
        missing = size - len(images)
        launched = self._explainer.started([*images, *[np.zeros_like(images[0])] * missing], [*texts, *[[]] * missing])
        self._computed += size
        return launched


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """A batch that the device may still be computing.

    Attributes:
        places: of its records in the call.
        records: with their pixels.
        launched: its heat maps.
        trial: the same images in a batch of `trial_images`, where it is not known yet whether that gives the same bits.
        trial_images: see `trial`.
        importance: of its phrases; None where nobody asked.
    """

    places: list[int]
    records: list[Record]
    launched: Launched
    trial: Launched | None
    trial_images: int
    importance: AskedImportance | None


def _texts_of(records: Sequence[Record]) -> list[list[str]]:
    """The unique phrase texts of each record, in order."""
    return [list(dict.fromkeys(phrase.text for phrase in record.phrases)) for record in records]


def _bits(found: Explained, images: int) -> list[list[tuple[bytes, float, float | None, str]] | bytes]:
    """What must be equal in two computations of the same images, which are the first of a batch."""
    maps = [
        [(each.values.tobytes(), each.similarity, each.presence, each.fault) for each in own]
        for own in found.heat_maps[:images]
    ]
    if found.embedding is None:
        return [*maps]
    return [*maps, found.embedding[:images].float().cpu().numpy().tobytes()]


def contrasted(maps: Sequence[HeatMap], strength: float) -> list[HeatMap]:
    """Contrast the maps of one image's phrases: each map minus what the others' maps show at the same place.

    The maps of all phrases of an image share some heat: on whatever stands out, whichever phrase is asked for. CLIP
    Surgery (Li et al., arXiv 2304.05653) calls it redundant features and subtracts their mean over the classes from the
    tokens. Here it is done on the finished maps, so that it works with any explainer. With every map divided by its
    largest value,

        H_i - strength * max over the others of H_j, not below 0

    times the largest value of map i. Two maps of the same form only become fainter: phrases that mean the same thing
    ("car" and "red car") do not erase each other.

    Args:
        maps: Of one shape. Maps with a fault, and a map without others, stay as they are.
        strength: 0 <= strength < 1, so that no map becomes empty.
    """
    clear = [index for index, heat_map in enumerate(maps) if not heat_map.fault]
    out = list(maps)
    if strength == 0 or len(clear) < 2:
        return out
    values = np.stack([maps[index].values for index in clear])
    peaks = values.max(axis=(1, 2), keepdims=True)
    shares = values / peaks
    # The highest of those before and of those behind each map.
    others = np.full_like(shares, -np.inf)
    np.maximum.accumulate(shares[:-1], axis=0, out=others[1:])
    np.maximum(others[:-1], np.maximum.accumulate(shares[:0:-1], axis=0)[::-1], out=others[:-1])
    contrasting = np.maximum(shares - np.float32(strength) * others, 0) * peaks
    for index, own in zip(clear, contrasting, strict=True):
        out[index] = replace(maps[index], values=own)
    return out
