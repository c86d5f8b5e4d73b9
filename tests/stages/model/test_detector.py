"""Detectors: the boxes of transformers' own post-processing, whatever the batch, and folders of something else."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from phrasebox.stages.contract.errors import ConfigError, WeightsError
from phrasebox.stages.model.detector import (
    CLASSES,
    DetectedBox,
    Detector,
    PromptedImage,
    identify_detector,
    load_detector,
)
from tests.closeness import assert_close
from tests.messages import expect_error
from tests.stages.model.detectors import KINDS, save_detector

rng = np.random.default_rng(0)
IMAGES = [rng.integers(0, 256, (height, width, 3), np.uint8) for height, width in ((90, 150), (150, 90))]
TEXTS = [["red car", "two dogs"], ["a road"]]


def saved(kind: str, folder: Path) -> tuple[Detector, Any, Any]:
    """An architecture's detector, and transformers' own model and processor."""
    model, processor = save_detector(kind, folder)
    detector = load_detector(str(folder), "cpu", "fp32")
    load_detector.cache_clear()
    return detector, model, processor


def prompted(rgb: np.ndarray[Any, Any], *texts: str, most: int = 100) -> PromptedImage:
    return PromptedImage(rgb=rgb, most=dict.fromkeys(texts, most))


def corners(detections: list[DetectedBox]) -> np.ndarray[Any, Any]:
    return np.array([detection.box_xyxy for detection in detections])


def scores(detections: list[DetectedBox]) -> list[float]:
    return [detection.score for detection in detections]


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_gives_the_boxes_of_its_images_above_a_score(kind: str, tmp_path: Path) -> None:
    detector, _, _ = saved(kind, tmp_path)
    images = [prompted(rgb, *texts) for rgb, texts in zip(IMAGES, TEXTS, strict=True)]
    batch = detector.detect(images, 0.0)
    singles = [detector.detect([image], 0.0)[0] for image in images]
    for ours, expected in zip(batch, singles, strict=True):
        assert ours.keys() == expected.keys()
        for phrase, expected_phrase in zip(ours.values(), expected.values(), strict=True):
            assert len(phrase) > 2
            assert scores(phrase) == sorted(scores(phrase), reverse=True)
            best = min(len(phrase), len(expected_phrase), 3)
            assert_close(scores(phrase)[:best], scores(expected_phrase)[:best], 5e-3)
            np.testing.assert_allclose(corners(phrase)[:1], corners(expected_phrase)[:1], atol=5e-3)
            assert (corners(phrase) >= 0).all()
            assert (corners(phrase) <= 1).all()
            assert all((d.mask is not None) == (kind == "sam3") for d in phrase)
    all_boxes = singles[1]["a road"]
    [one] = detector.detect([prompted(IMAGES[1], "a road", most=1)], 0.0)[0].values()
    assert scores(one) == scores(all_boxes)[:1]
    lowest = scores(all_boxes)[1]
    [two] = detector.detect([prompted(IMAGES[1], "a road")], lowest - 1e-6)[0].values()
    assert scores(two)[:2] == scores(all_boxes)[:2]
    assert min(scores(two)) >= lowest - 1e-6


@pytest.mark.parametrize("kind", ["omdet-turbo", "owlv2", "owlvit"])
def test_the_best_box_is_that_of_transformers(kind: str, tmp_path: Path) -> None:
    detector, model, processor = saved(kind, tmp_path)
    for rgb, texts in zip(IMAGES, TEXTS, strict=True):
        height, width = rgb.shape[:2]
        for text in texts:
            inputs = processor(images=[rgb], text=[[text]], return_tensors="pt")
            with torch.no_grad():
                output = model(**inputs)
            [expected] = processor.post_process_grounded_object_detection(
                output, threshold=0.0, target_sizes=[(height, width)], text_labels=[[text]]
            )
            detections = detector.detect([prompted(rgb, text)], 0.0)[0][text]
            boxes = (expected["boxes"] / torch.tensor([width, height, width, height])).clamp(0, 1)
            flat = (boxes[:, 2:] - boxes[:, :2] <= 0).any(dim=1)
            best = int(expected["scores"].masked_fill(flat, -1).argmax())
            assert_close(detections[0].score, float(expected["scores"][best]), 1e-4)
            np.testing.assert_allclose(detections[0].box_xyxy, boxes[best].tolist(), atol=1e-4)


@pytest.mark.parametrize("kind", ["grounding-dino", "mm-grounding-dino"])
def test_a_phrase_has_the_score_of_its_tokens(kind: str, tmp_path: Path) -> None:
    detector, model, processor = saved(kind, tmp_path)
    inputs = processor(images=IMAGES[:1], text="red car. two dogs.", return_tensors="pt")
    with torch.no_grad():
        probabilities = model(**inputs).logits[0].sigmoid()
    # [CLS] red car . two dogs . [SEP]
    expected = [float(probabilities[:, 1:3].max()), float(probabilities[:, 4:6].max())]
    [answer] = detector.detect([prompted(IMAGES[0], *TEXTS[0])], 0.0)
    np.testing.assert_allclose([scores(phrase)[0] for phrase in answer.values()], expected, atol=0.02)
    # 24 tokens hold seven phrases of three: the others get a text of their own.
    long = "two dogs " * 30
    texts = [f"{colour} {noun}" for colour in ("red", "a", "two") for noun in ("car", "dogs", "road")]
    [many] = detector.detect([prompted(IMAGES[0], *texts, long)], 0.0)
    assert list(many) == [*texts, long]
    assert all(many.values())


def test_another_model_and_pickled_weights_are_rejected(tmp_path: Path) -> None:
    save_detector("owlvit", tmp_path)
    identity = identify_detector(str(tmp_path))
    save_detector("owlvit", tmp_path, seed=1)
    assert identify_detector(str(tmp_path)) != identity
    (tmp_path / "model.safetensors").rename(tmp_path / "model.bin")
    with expect_error(WeightsError):
        identify_detector(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    for name in (str(tmp_path), "owl"):
        with expect_error(ConfigError):
            identify_detector(name)
    assert identify_detector("google/owlv2-base-patch16") == "google/owlv2-base-patch16"


def test_every_zero_shot_detector_of_transformers_is_read() -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION_MAPPING_NAMES

    assert {*MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION_MAPPING_NAMES, "sam3", "sam3_video"} == set(CLASSES)
