"""Answers of `chat`, parsed by the code of the models: the boxes are the dataset's."""

import json
import re
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.kosmos2.processing_kosmos2 import (
    clean_text_and_extract_entities_with_bboxes,
)
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from phrasebox.pipeline.export.chat.coordinates import Frame, resize_for_qwen
from phrasebox.pipeline.export.chat.objects import MOST_ASPECT
from tests.build.datasets import rows_of
from tests.build.records import HEIGHT, WIDTH
from tests.pipeline.export.datasets import exported, finished
from tests.pipeline.export.test_chat import read, records, turns
from tests.pipeline.export.test_other_readers import mask_of

SIZE = (WIDTH, HEIGHT)

"""Style -> supervision's model, and what else it wants to know."""


def answers(style: str, task: str, dataset: Path, out: Path) -> list[tuple[str, str]]:
    """Questions and answers of a task, in the order of the dataset."""
    exported("chat", dataset, out, {"style": style, "tasks": [task]})
    return [turns(record)[1:] for record in read(out)]


def test_answers_are_json_whatever_a_phrase_holds(tmp_path: Path) -> None:
    written = answers("qwen3-vl", "ground", finished(tmp_path / "dataset", records()), tmp_path / "out")
    labels = {entry["label"] for _, answer in written for entry in json.loads(answer)}
    assert "dog's bone of an old dog" in labels


def test_kosmos_parses_its_captions(demo_dataset: Path, tmp_path: Path) -> None:
    """A box is within a cell, whose centres its decoder takes for edges."""
    written = answers("kosmos-2", "ground", demo_dataset, tmp_path / "out")
    captions = {" ".join(caption.split()) for row in rows_of(demo_dataset) for caption in row["captions"]}
    exported("chat", demo_dataset, tmp_path / "truth", {"style": "ms-swift", "tasks": ["ground"]})
    for (prefix, text), record in zip(written, read(tmp_path / "truth"), strict=True):
        assert prefix == "<grounding>"
        caption, entities = clean_text_and_extract_entities_with_bboxes(text)
        assert caption in captions
        assert [caption[start:end] for _, (start, end), _ in entities] == record["objects"]["ref"]
        boxes = np.array([box for *_, boxes in entities for box in boxes])
        edges = np.array(record["objects"]["bbox"]) / ([WIDTH, HEIGHT] * 2)
        assert (np.abs(boxes - edges) <= 1 / 32).all()


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
