"""Answers of `chat`, parsed by the code of the models and by supervision: the boxes are the dataset's."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import supervision
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.florence2.processing_florence2 import Florence2PostProcessor
from transformers.models.kosmos2.processing_kosmos2 import (
    Kosmos2Processor,
    clean_text_and_extract_entities_with_bboxes,
)
from transformers.models.paligemma.processing_paligemma import EXTRA_TOKENS
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from pipeline.export.chat.coordinates import Frame, resize_for_qwen
from pipeline.export.chat.objects import MOST_ASPECT
from tests.build.datasets import Json, rows_of
from tests.build.records import HEIGHT, WIDTH
from tests.pipeline.export.datasets import exported, finished
from tests.pipeline.export.test_chat import read, records, turns
from tests.pipeline.export.test_other_readers import mask_of

SIZE = (WIDTH, HEIGHT)
FRAME = Frame(
    width=WIDTH, height=HEIGHT, min_pixels=56 * 56, max_pixels=14 * 14 * 4 * 1280, padding="square"
)

MODELS: dict[str, tuple[Any, Json]] = {
    "qwen3-vl": (supervision.VLM.QWEN_3_VL, {}),
    "qwen2.5-vl": (supervision.VLM.QWEN_2_5_VL, {"input_wh": resize_for_qwen(FRAME)}),
    "paligemma": (supervision.VLM.PALIGEMMA, {}),
}
"""Style -> supervision's model, and what else it wants to know."""


def answers(style: str, task: str, dataset: Path, out: Path) -> list[tuple[str, str]]:
    """Questions and answers of a task, in the order of the dataset."""
    exported("chat", dataset, out, {"style": style, "tasks": [task]})
    return [turns(record)[1:] for record in read(out)]


def truth(dataset: Path, out: Path, task: str) -> list[tuple[list[str], Any]]:
    """The phrases and the boxes x0, y0, x1, y1 px in each answer, from the records of ms-swift, which have pixels."""
    exported("chat", dataset, out, {"style": "ms-swift-json", "tasks": [task]})
    objects = [record["objects"] for record in read(out)]
    return [(entry["ref"][-len(entry["bbox"]) :], np.array(entry["bbox"])) for entry in objects]


def check(detections: Any, labels: list[str], boxes: Any, bins: int) -> None:
    assert detections.data["class_name"].tolist() == labels
    error_px = np.abs(detections.xyxy - boxes)
    assert (error_px <= np.array([WIDTH, HEIGHT] * 2) / bins + 1e-3).all()


def florence(task: str, text: str) -> Any:
    """Detections of an answer by Florence-2's processor and supervision."""
    config = {"phrase_grounding": {}, "description_with_bboxes_or_polygons": {}}
    parser = Florence2PostProcessor(config, SimpleNamespace(all_special_tokens=[]))
    if task == "locate":
        entries = parser(text=text, image_size=SIZE, parse_tasks="description_with_bboxes_or_polygons")
        boxes = entries["description_with_bboxes_or_polygons"]
        result = {
            "bboxes": [entry["bbox"] for entry in boxes],
            "bboxes_labels": [entry["cat_name"] for entry in boxes],
        }
        result = {"<OPEN_VOCABULARY_DETECTION>": result}
    else:
        entries = parser(text=text, image_size=SIZE, parse_tasks="phrase_grounding")["phrase_grounding"]
        pairs = [(box, entry["cat_name"]) for entry in entries for box in entry["bbox"]]
        grounded = {"bboxes": [box for box, _ in pairs], "labels": [label for _, label in pairs]}
        result = {"<CAPTION_TO_PHRASE_GROUNDING>": grounded}
    return supervision.Detections.from_vlm(supervision.VLM.FLORENCE_2, result, resolution_wh=SIZE)


@pytest.mark.parametrize("task", ["locate", "ground"])
@pytest.mark.parametrize(("style", "bins"), [("qwen3-vl", 1000), ("qwen2.5-vl", 56), ("paligemma", 682)])
def test_boxes_and_phrases_are_parsed_back(style, bins, task, demo_dataset: Path, tmp_path: Path) -> None:
    """Within a bin of the coordinates.

    The smallest side of the image is 56 after Qwen's resizing. Of PaliGemma's 1024 bins supervision takes the lower
    edges, big_vision the centres: one and a half.
    """
    written = answers(style, task, demo_dataset, tmp_path / "out")
    expected = truth(demo_dataset, tmp_path / "truth", task)
    assert len(written) == len(expected) > 10
    model, more = MODELS[style]
    for (_, text), (labels, boxes) in zip(written, expected, strict=True):
        check(supervision.Detections.from_vlm(model, text, resolution_wh=SIZE, **more), labels, boxes, bins)


@pytest.mark.parametrize("task", ["locate", "ground"])
def test_florence_parses_its_answers(task: str, demo_dataset: Path, tmp_path: Path) -> None:
    """Its processor rounds boxes down to pixels, and labels to ASCII."""
    written = answers("florence-2", task, demo_dataset, tmp_path / "out")
    expected = truth(demo_dataset, tmp_path / "truth", task)
    for (_, text), (labels, boxes) in zip(written, expected, strict=True):
        ascii_labels = [label.encode("ascii", "ignore").decode() for label in labels]
        check(florence(task, text), ascii_labels, boxes, bins=min(SIZE))


def test_kosmos_parses_its_captions(demo_dataset: Path, tmp_path: Path) -> None:
    """A box is within a cell, whose centres its decoder takes for edges; and its processor writes the same text."""
    processor = Kosmos2Processor.__new__(Kosmos2Processor)
    processor.num_patch_index_tokens = 1024
    written = answers("kosmos-2", "ground", demo_dataset, tmp_path / "out")
    captions = [caption for row in rows_of(demo_dataset) for caption in row["captions"]]
    exported("chat", demo_dataset, tmp_path / "truth", {"style": "ms-swift", "tasks": ["ground"]})
    for (prefix, text), record in zip(written, read(tmp_path / "truth"), strict=True):
        assert prefix == "<grounding>"
        caption, entities = clean_text_and_extract_entities_with_bboxes(text)
        assert caption in {" ".join(caption.split()) for caption in captions}
        assert [caption[start:end] for _, (start, end), _ in entities] == record["objects"]["ref"]
        edges = np.array(record["objects"]["bbox"])
        detections = supervision.Detections.from_vlm(
            supervision.VLM.KOSMOS_2, (caption, entities), resolution_wh=SIZE
        )
        assert (np.abs(detections.xyxy - edges) <= np.array([WIDTH, HEIGHT] * 2) / 32).all()
        phrases = iter(edges / ([WIDTH, HEIGHT] * 2))
        boxes = [[tuple(next(phrases).tolist()) for _ in entity[2]] for entity in entities]
        bare = re.sub("<object>.*?</object>", "", text)
        again = processor._insert_patch_index_tokens(bare, boxes)
        assert "".join(again.split()) == "".join(text.split())


def test_paligemmas_tokens_are_its_own(demo_dataset: Path, tmp_path: Path) -> None:
    for _, text in answers("paligemma", "locate", demo_dataset, tmp_path / "out"):
        for token in text.replace("><", "> <").split():
            assert token in EXTRA_TOKENS or "<" not in token


def test_molmo_points_into_the_masks(demo_dataset: Path, tmp_path: Path) -> None:
    """The ring has a hole in the middle of its box."""
    entries = (entry for row in rows_of(demo_dataset) for entry in row["annotations"])
    [ring] = (mask_of(entry["segmentation"]["counts"]) for entry in entries if entry["phrase"] == "ring")
    [text] = (
        text
        for _, text in answers("molmo", "locate", demo_dataset, tmp_path / "out")
        if 'alt="ring"' in text
    )
    x, y = re.findall(r'[xy]="([0-9.]+)"', text)
    assert ring[int(float(y) * HEIGHT / 100), int(float(x) * WIDTH / 100)]


sides = st.integers(1, 3000)


@given(sides, sides, st.integers(784, 20_000), st.integers(20_000, 2_000_000))
def test_images_are_resized_as_qwens_processor_does(width: int, height: int, least: int, most: int) -> None:
    frame = Frame(width=width, height=height, min_pixels=least, max_pixels=most, padding="none")
    if max(width, height) <= MOST_ASPECT * min(width, height):
        expected = smart_resize(height, width, min_pixels=least, max_pixels=most)
        assert resize_for_qwen(frame) == expected[::-1]


@pytest.mark.parametrize("style", ["qwen3-vl", "ms-swift-json"])
def test_answers_are_json_whatever_a_phrase_holds(style: str, tmp_path: Path) -> None:
    dataset = finished(tmp_path / "dataset", records())
    exported("chat", dataset, tmp_path / "out", {"style": style, "tasks": ["locate", "ground"]})
    labels = set()
    for record in read(tmp_path / "out"):
        answer = turns(record)[2]
        objects: Json = record.get("objects", {"ref": [], "bbox": []})
        for ref in objects["ref"][len(objects["ref"]) - answer.count("<ref-object>") :]:
            answer = answer.replace("<ref-object>", ref, 1)
        labels |= {entry["label"] for entry in json.loads(answer.replace("<bbox>", "[0, 0, 1, 1]"))}
    assert '5" size; x' in labels
