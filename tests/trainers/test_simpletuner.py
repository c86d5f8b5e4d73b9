"""SimpleTuner's own reader of NAME.bbox, and its batches."""

from pathlib import Path

import numpy as np

from tests.build.records import HEIGHT, WIDTH
from tests.pipeline.export.datasets import exported
from tests.trainers.scenes import CATS, IMAGES, expected
from tests.trainers.sources import SIMPLETUNER


def test_simpletuner(scenes: Path, tmp_path: Path) -> None:
    """Every box of every image in pixels, best score first, so that its limit leaves out the worst."""
    out, _ = exported("bbox", scenes, tmp_path / "out")
    answer = SIMPLETUNER.load("simple_tuner", out / "train", 3)
    sides = np.array([WIDTH, HEIGHT] * 2)
    read = [
        (label, tuple(np.round(np.array(box) * sides).astype(int).tolist()))
        for entities in answer["entities"]
        for label, box in entities
    ]
    assert sorted(read) == expected()
    assert len(answer["entities"]) == IMAGES
    assert sorted(map(len, answer["entities"])) == [4] * (IMAGES - CATS) + [5] * CATS
    for entities, boxes, lengths in zip(
        answer["entities"], answer["boxes"], answer["lengths"], strict=True
    ):
        assert entities[0][0] == "boy"
        assert np.allclose(boxes, [box for _, box in entities[:3]])
        assert lengths == [len(label) for label, _ in entities[:3]]
    assert np.array(answer["valid"]).all()
    assert np.array(answer["cells"]).all()


def test_simpletuner_s_captions(scenes: Path, tmp_path: Path) -> None:
    """It takes the lines of the text beside the image."""
    out, _ = exported("bbox", scenes, tmp_path / "out", where="head = 'boy'")
    texts = {path.read_text("utf-8") for path in (out / "train").glob("*.txt")}
    assert texts == {"A boy with a dog\na young child and two dogs\na black/white cat\n"}
