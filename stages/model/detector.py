"""Detectors of `transformers` that take words: boxes for each phrase of images, several images at a time.

The architectures are those of transformers' zero-shot object detection, and SAM 3. A detector
scores each of its boxes for each phrase. transformers' own post-processing gives a box to its
best phrase alone, so that of "a man" and "the guy" one would lose its box. Here each phrase
keeps its boxes, without those that overlap a better one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_convert, nms

from phrasebox.stages.contract.geometry import Box
from phrasebox.stages.contract.values import Plane, Rgb
from phrasebox.stages.model.device import DTYPES, to_device
from phrasebox.stages.model.hugging_face import ProcessedModel, identify_model, load_model

NMS_IOU: Final = 0.5  # a box of a phrase that overlaps a better one of the same phrase by more is left out

PHRASES_AT_ONCE: Final = 8  # of SAM 3, which decodes masks for each phrase


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptedImage:
    """An image, and the phrases to look for.

    Attributes:
        rgb: uint8 (H, W, 3), of any size.
        most: Phrase -> the most boxes that it gets; at least one phrase.
    """

    rgb: Rgb
    most: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectedBox:
    """A box of a phrase.

    Attributes:
        box_xyxy: Edges as shares of the image's width and height, 0 .. 1.
        score: The detector's score, 0 .. 1.
        mask: Logits (cells_h, cells_w) over the image, above 0 inside; None for a detector of boxes.
    """

    box_xyxy: Box
    score: float
    mask: Plane | None = None


BoxesByPhrase = dict[str, list[DetectedBox]]


ScoredBoxes = tuple[Tensor, Tensor]
"""Boxes (P, N, 4), x0, y0, x1, y1 as shares of an image, and the scores (P, N) of its P phrases."""


class Detector(ProcessedModel, ABC):
    """A model that finds phrases."""

    @abstractmethod
    def detect(self, images: Sequence[PromptedImage], min_score: float) -> list[BoxesByPhrase]:
        """Return the boxes of each phrase of each image that have this score at least, best first."""

    def _inputs(self, **arguments: Any) -> Any:
        inputs = self._processor(**arguments, return_tensors="pt")
        return {name: to_device(value, self.device) for name, value in inputs.items()}

    def _prompts(self, images: Sequence[PromptedImage], **settings: Any) -> Any:
        """Return the inputs of a model that takes several phrases for each image."""
        texts = [list(image.most) for image in images]
        return self._inputs(images=[image.rgb for image in images], text=texts, **settings)


class BoxDetector(Detector):
    """A detector without masks."""

    @torch.no_grad()
    def detect(self, images: Sequence[PromptedImage], min_score: float) -> list[BoxesByPhrase]:
        """See `Detector.detect`."""
        with self._computing():
            answers = self._answers(images)
        return [
            {
                phrase: _choose(boxes[number], scores[number], None, min_score)[:most]
                for number, (phrase, most) in enumerate(image.most.items())
            }
            for image, (boxes, scores) in zip(images, answers, strict=True)
        ]

    @abstractmethod
    def _answers(self, images: Sequence[PromptedImage]) -> list[ScoredBoxes]:
        """Return the boxes of each image."""


class OwlDetector(BoxDetector):
    """OWL-ViT and OWLv2 (arXiv 2205.06230, 2306.09683): one score for each box and phrase."""

    def _answers(self, images: Sequence[PromptedImage]) -> list[ScoredBoxes]:
        output = self._model(**self._prompts(images, truncation=True))
        is_padded = self._model.config.model_type == "owlv2"  # to a square, below and on the right
        answers = []
        for image, logits, boxes in zip(images, output.logits, output.pred_boxes, strict=True):
            corners = box_convert(boxes.float(), "cxcywh", "xyxy")
            if is_padded:
                height, width = image.rgb.shape[:2]
                side = max(height, width)
                corners = corners * corners.new_tensor([side / width, side / height] * 2)
            answers.append(_for_each_phrase(image, corners, logits))
        return answers


def _for_each_phrase(image: PromptedImage, corners: Tensor, logits: Tensor) -> ScoredBoxes:
    """Boxes (N, 4), and logits (N, at least P) -> the boxes (P, N, 4) and scores (P, N) of the phrases of an image."""
    count = len(image.most)
    return corners.expand(count, -1, -1), logits.float().sigmoid().T[:count]


class OmDetDetector(BoxDetector):
    """OmDet-Turbo (arXiv 2403.06892): one score for each box and phrase, and the task names all phrases."""

    def _answers(self, images: Sequence[PromptedImage]) -> list[ScoredBoxes]:
        output = self._model(**self._prompts(images))
        boxes = box_convert(output.decoder_coord_logits.float(), "cxcywh", "xyxy")
        return [
            _for_each_phrase(image, corners, logits)
            for image, corners, logits in zip(images, boxes, output.decoder_class_logits, strict=True)
        ]


class GroundingDetector(BoxDetector):
    """Grounding DINO and MM-Grounding-DINO (arXiv 2303.05499, 2401.02361).

    All phrases of an image are one text with a full stop behind each phrase. Those that do not
    fit into the model's tokens get another text, and the image is encoded again. A phrase's score
    is the highest of its tokens, as in transformers' post-processing. Images are computed one by
    one: those of other sizes would be padded, and the model sees the padding.
    """

    def _answers(self, images: Sequence[PromptedImage]) -> list[ScoredBoxes]:
        return list(map(self._answer, images))

    def _answer(self, image: PromptedImage) -> ScoredBoxes:
        parts = [*self._split(image.most)]
        inputs = self._inputs(
            images=[image.rgb] * len(parts),
            text=["".join(f"{text}. " for text in part).strip() for part in parts],
            padding=True,
            truncation=True,
            max_length=self._model.config.max_text_len,
        )
        output = self._model(**inputs)
        corners = box_convert(output.pred_boxes.float(), "cxcywh", "xyxy")
        probabilities = output.logits.float().sigmoid()
        spans = [(place, *span) for place, part in enumerate(parts) for span in self._spans(part)]
        boxes = torch.stack([corners[place] for place, _, _ in spans])
        scores = [probabilities[place, :, start:stop].amax(dim=1) for place, start, stop in spans]
        return boxes, torch.stack(scores)

    def _split(self, texts: Iterable[str]) -> Iterator[list[str]]:
        """Yield the phrases of each text that fits into the model's tokens."""
        most = self._model.config.max_text_len - 2  # [CLS] and [SEP]
        part: list[str] = []
        length = 0
        for text in texts:
            count = self._length(text)
            if part and length + count > most:
                yield part
                part = []
                length = 0
            part.append(text)
            length += count
        yield part

    def _spans(self, texts: Sequence[str]) -> Iterator[tuple[int, int]]:
        """Yield the tokens of each phrase, without its full stop."""
        most = self._model.config.max_text_len
        ends = np.cumsum([1, *map(self._length, texts)]).tolist()
        for start, stop in pairwise(ends):
            yield min(start, most - 2), min(stop - 1, most - 1)

    def _length(self, text: str) -> int:
        """Return the number of tokens of a phrase with its full stop."""
        return len(self._processor.tokenizer(f"{text}.", add_special_tokens=False)["input_ids"])


class SegmentingDetector(Detector):
    """SAM 3 (arXiv 2511.16719): boxes, masks and the presence of each phrase. The image is encoded once."""

    @torch.no_grad()
    def detect(self, images: Sequence[PromptedImage], min_score: float) -> list[BoxesByPhrase]:
        """See `Detector.detect`."""
        pixels = self._inputs(images=[image.rgb for image in images])["pixel_values"]
        with self._computing():
            encoding = self._model.get_vision_features(pixels)
            return [
                dict(self._detect(encoding, number, image.most, min_score))
                for number, image in enumerate(images)
            ]

    def _detect(
        self, encoding: Any, number: int, most: Mapping[str, int], min_score: float
    ) -> Iterator[tuple[str, list[DetectedBox]]]:
        """Yield the phrases of an image, by its number in the encoding, with their boxes."""
        phrases = list(most)
        for start in range(0, len(phrases), PHRASES_AT_ONCE):
            part = phrases[start : start + PHRASES_AT_ONCE]
            levels = {
                name: tuple(
                    level[number : number + 1].expand(len(part), -1, -1, -1) for level in encoding[name]
                )
                for name in ("fpn_hidden_states", "fpn_position_encoding")
            }
            words = self._inputs(text=part, padding="max_length", truncation=True)
            output = self._model(vision_embeds=replace(encoding, **levels), **words)
            scores = output.pred_logits.float().sigmoid() * output.presence_logits.float().sigmoid()
            boxes = output.pred_boxes.float()
            for place, phrase in enumerate(part):
                chosen = _choose(boxes[place], scores[place], output.pred_masks[place], min_score)
                yield phrase, chosen[: most[phrase]]


CLASSES: Final[dict[str, type[Detector]]] = {
    "grounding-dino": GroundingDetector,
    "mm-grounding-dino": GroundingDetector,
    "omdet-turbo": OmDetDetector,
    "owlv2": OwlDetector,
    "owlvit": OwlDetector,
    "sam3": SegmentingDetector,
    "sam3_video": SegmentingDetector,
}
"""The `model_type` of a `config.json` -> class. Of SAM 3's video model the image's part is used."""


def _choose(boxes: Tensor, scores: Tensor, masks: Tensor | None, min_score: float) -> list[DetectedBox]:
    """Return the detections of a phrase that count, best first.

    Args:
        boxes, scores: (N, 4) xyxy in shares of the image, and (N,).
        masks: Logits (N, cells_h, cells_w).
        min_score: The lowest score that counts.
    """
    inside = boxes.clamp(0, 1)
    has_area = ((inside[:, 2:] - inside[:, :2]) > 0).all(dim=1)
    places = torch.nonzero((scores >= min_score) & has_area & scores.isfinite())[:, 0]
    places = places[nms(inside[places], scores[places], NMS_IOU)]
    logits = [None] * len(places) if masks is None else [*masks[places].float().cpu().numpy()]
    corners = inside[places].cpu().double().tolist()
    return [
        DetectedBox(box_xyxy=(x0, y0, x1, y1), score=round(score, 6), mask=mask)
        for (x0, y0, x1, y1), score, mask in zip(corners, scores[places].tolist(), logits, strict=True)
    ]


def identify_detector(name: str) -> str:
    """Check before any work that a detector can be loaded, and return the identity of its weights.

    Raise as `identify_model`.
    """
    title = "Grounding DINO, OWL-ViT, OWLv2, OmDet-Turbo or SAM 3"
    return identify_model(name, CLASSES, title, "detector")


@lru_cache(maxsize=1)
def load_detector(name: str, device: str, precision: str) -> Detector:
    """Load a detector onto a device; the same one again for the same arguments. Raise as `load_model`."""
    # An extra that takes seconds to import.
    import transformers  # noqa: PLC0415

    kind = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False).model_type
    is_sam = CLASSES[kind] is SegmentingDetector
    model_class = transformers.Sam3Model if is_sam else transformers.AutoModelForZeroShotObjectDetection
    processor_class = transformers.Sam3Processor if is_sam else transformers.AutoProcessor
    model, processor = load_model(name, model_class, processor_class, device)
    return CLASSES[kind](model, processor, DTYPES[precision])
