from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from pipeline.demo import count_hits, run_demo
from stages.write.validate import validate


@pytest.mark.timeout(300)
def test_demo_finds_most_things_and_draws_them(tmp_path) -> None:
    printed = io.StringIO()
    hits = run_demo(tmp_path, 24, 5, Console(file=printed, width=120), engine="inline")
    assert hits.phrases >= 24
    assert hits.hit / hits.phrases > 0.5
    assert "hit (box IoU at least 0.5)" in printed.getvalue()
    assert list(validate(tmp_path / "dataset")) == []
    assert len(list((tmp_path / "overlays").glob("*.png"))) == 24
    sheet = np.asarray(Image.open(tmp_path / "overlays.png"))
    assert sheet.shape[1] > 600
    again = run_demo(tmp_path, 24, 5, Console(file=io.StringIO()), engine="inline")
    assert again == hits


def test_hits_are_counted_once_a_phrase_and_image() -> None:
    truth = {
        "images": [{"id": 1, "file_name": "a"}, {"id": 2, "file_name": "b"}],
        "annotations": [
            {"image_id": 1, "phrase": "two dogs", "mentioned": True, "bbox": [0, 0, 10, 10]},
            {"image_id": 1, "phrase": "two dogs", "mentioned": True, "bbox": [50, 0, 10, 10]},
            {"image_id": 1, "phrase": "red car", "mentioned": True, "bbox": [20, 20, 10, 10]},
            {"image_id": 1, "phrase": "cat", "mentioned": False, "bbox": [0, 0, 1, 1]},
            {"image_id": 2, "phrase": "red car", "mentioned": True, "bbox": [0, 0, 4, 4]},
        ],
    }
    rows = [
        {
            "file_name": "a",
            "annotations": [
                {"phrase": "two dogs", "score": 0.9, "bbox": [50, 0, 10, 5]},
                {"phrase": "two dogs", "score": 0.2, "bbox": [80, 80, 1, 1]},
                {"phrase": "red car", "score": 0.9, "bbox": [20, 20, 10, 2]},
            ],
        },
        {"file_name": "b", "annotations": []},
    ]
    hits = count_hits(rows, truth)
    assert (hits.phrases, hits.found, hits.hit) == (3, 2, 1)
    assert sorted(hits.ious or []) == pytest.approx([0.0, 0.2, 0.5])
