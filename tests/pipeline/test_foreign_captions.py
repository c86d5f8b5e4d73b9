"""Captions of other photographs are noticed without a setting."""

from pathlib import Path

import pytest

from pipeline.photographs import CAPTIONS, FOLDER
from tests.build.datasets import manifest_of
from tests.build.files import read_lines, write_lines
from tests.pipeline.commands.evaluated import config_of, run_aloud
from tests.pipeline.light import rows_of


@pytest.mark.parametrize(("shift", "least", "most"), [(0, 0.0, 0.1), (3, 0.6, 1.0)], ids=["own", "foreign"])
def test_the_bundled_photographs_need_no_setting(
    shift: int, least: float, most: float, tmp_path: Path
) -> None:
    lines = read_lines(CAPTIONS)
    captions = [line.get("captions", line.get("caption")) for line in lines]
    moved = [
        {"id": line["id"], "image": line["image"], "caption": captions[(place + shift) % len(lines)]}
        for place, line in enumerate(lines)
    ]
    write_lines(tmp_path / "captions.jsonl", moved)
    place = {"kind": "jsonl", "path": str(tmp_path / "captions.jsonl"), "image_root": str(FOLDER)}
    dataset, text = run_aloud(config_of(tmp_path, tmp_path / "out", input=place, model={"name": "photo"}))
    rows = rows_of(dataset)
    share = manifest_of(dataset)["config"]["regions"]["absent_share"]
    assert f"regions.absent_share is {share}, estimated from " in text
    absent = sum(len(row["absent"]) for row in rows) / sum(row["phrase_count"] for row in rows)
    assert least <= absent <= most
    assert all(len(row["caption_score"]) == len(row["captions"]) for row in rows)
