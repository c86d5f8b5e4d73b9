"""`source.kind: detector`: a detector that takes words finds the boxes of each phrase.

Its weights and their licence are its own. CLIP is not loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Final, Literal

import cv2
from pydantic import AfterValidator, Field

from phrasebox.stages.contract.geometry import whole_pixels
from phrasebox.stages.contract.masks import encode_box, encode_mask
from phrasebox.stages.contract.records import Phrase, Pixels, Record, Region, Rle
from phrasebox.stages.contract.stage import Device, Forwards
from phrasebox.stages.contract.values import Json, Sides
from phrasebox.stages.model.config import Precision, about, absolute_model
from phrasebox.stages.sources.source import OtherModel, RegionSource, RegionSourceConfig, region_of_mask

if TYPE_CHECKING:
    from phrasebox.stages.model.detector import BoxesByPhrase, DetectedBox, Detector, PromptedImage
    from phrasebox.stages.model.device import Batches

BATCH_SIZES: Final[dict[Device, int]] = {"cpu": 1, "cuda": 8}
"""Images of one forward pass."""


class DetectorSourceConfig(RegionSourceConfig):
    """A detector, and the boxes that count."""

    kind: Literal["detector"] = "detector"
    detector: Annotated[str, AfterValidator(absolute_model)] = Field(
        description="A folder, or a repository of the hub as IDEA-Research/grounding-dino-base: "
        "Grounding DINO, MM-Grounding-DINO, OWL-ViT, OWLv2, OmDet-Turbo or SAM 3.",
    )
    precision: Precision = Field("fp32", description="Precision of the detector.")
    min_score: float = Field(
        0.2, ge=0.0, le=1.0, description="Boxes with a lower score of the detector are left out."
    )
    max_regions_plural: int = Field(
        20,
        ge=1,
        le=100,
        description="Most boxes of a phrase that names several objects; another phrase has one.",
    )

    def score_settings(self) -> Json:
        """See `RegionSourceConfig.score_settings`. The weights identify the detector, not its folder."""
        return self.model_dump(mode="json", exclude={"detector"})


class DetectorSource(RegionSource[DetectorSourceConfig]):
    """Gives each phrase the boxes that a detector finds for it.

    Phrases are looked for one by one, so two that name the same object have nearly the same
    boxes. A region's mask is that of SAM 3, and the box of other detectors. `similarity` is 0,
    not measured. Presence needs a calibration, see `phrasebox.stages.scores.detected`. Where a GPU's
    memory does not hold a batch of images, the batch is halved for good.
    """

    config_type = DetectorSourceConfig
    looks_for_phrases = True
    regions_come_from = "boxes that a detector finds for each phrase"
    score_means = "the detector's own score, which ranks and is no probability"

    _detector: Detector
    _batches: Batches

    def canvas(self) -> Json:
        """See `RegionSource.canvas`. Most detectors reduce images to a shorter side of 800 pixels."""
        return {"mode": "keep", "patch_px": 1, "shorter_side_max_px": 1024, "max_side_px": 1333}

    @about("source.detector")
    def identify(self) -> OtherModel:
        """See `RegionSource.identify`."""
        from phrasebox.stages.model.detector import identify_detector  # noqa: PLC0415  it imports torch

        return OtherModel(self.config.detector, identify_detector(self.config.detector))

    def forward_batch_size(self, device: Device | None = None) -> int:
        """See `Stage.forward_batch_size`."""
        return self._batches.size if device is None else self.model.batch_size or BATCH_SIZES[device]

    @about("source.detector")
    def setup(self) -> None:
        """Load the detector. Raise WeightsError, or ResourceError without the device."""
        # torch and transformers take seconds to import; only a worker pays for them.
        from phrasebox.stages.model.detector import load_detector  # noqa: PLC0415
        from phrasebox.stages.model.device import Batches  # noqa: PLC0415

        self._detector = load_detector(self.config.detector, self.model.device, self.config.precision)
        size = self.forward_batch_size("cuda" if self._detector.device.type == "cuda" else "cpu")
        self._batches = Batches(size, "detector", "a smaller source.detector")
        self._images = 0

    def teardown(self) -> None:
        """Let the detector go."""
        from phrasebox.stages.model.detector import load_detector  # noqa: PLC0415  as in setup

        load_detector.cache_clear()
        del self._detector

    def take_forwards(self) -> Forwards:
        """See `Stage.take_forwards`."""
        forwards = Forwards(images=self._images, device=str(self._detector.device))
        self._images = 0
        return forwards

    def with_regions(self, records: Sequence[Record]) -> list[Record]:
        """See `RegionSource.with_regions`. Raise ResourceError if memory does not hold one image."""
        answers = list(records)
        images = {
            place: self._prompted(record.phrases, record.pixels)
            for place, record in enumerate(records)
            if record.phrases and record.pixels is not None
        }
        detections = self._batches.compute([*images.values()], self._detect)
        for place, boxes in zip(images, detections, strict=True):
            answers[place] = replace(records[place], regions=tuple(_regions_of(records[place], boxes)))
        return answers

    def _detect(self, images: Sequence[PromptedImage]) -> list[BoxesByPhrase]:
        boxes = self._detector.detect(images, self.config.min_score)
        self._images += len(images)
        return boxes

    def _prompted(self, phrases: Sequence[Phrase], pixels: Pixels) -> PromptedImage:
        from phrasebox.stages.model.detector import PromptedImage  # noqa: PLC0415  as in setup

        plural = self.config.max_regions_plural
        # Captions may repeat a phrase: the first one counts.
        most = {phrase.text: plural if phrase.plural else 1 for phrase in reversed(phrases)}
        return PromptedImage(rgb=pixels.rgb, most=most)


def _regions_of(record: Record, boxes: BoxesByPhrase) -> Iterator[Region]:
    size_hw = (record.height_px, record.width_px)
    masks = {
        text: [_mask_of(detection, size_hw) for detection in phrase_boxes]
        for text, phrase_boxes in boxes.items()
    }
    for index, phrase in enumerate(record.phrases):
        for detection, mask in zip(boxes[phrase.text], masks[phrase.text], strict=True):
            yield region_of_mask(index, mask, detection.score)


def _mask_of(detection: DetectedBox, size_hw: Sides) -> Rle:
    """Return the mask of a detection; its box if it has none, or an empty one."""
    height, width = size_hw
    if detection.mask is not None:
        mask = cv2.resize(detection.mask, (width, height), interpolation=cv2.INTER_LINEAR) > 0
        if mask.any():
            return encode_mask(mask)
    x0, y0, x1, y1 = detection.box_xyxy
    box_px = (x0 * width, y0 * height, x1 * width, y1 * height)
    return encode_box(whole_pixels(box_px, size_hw), size_hw)
