"""Captions of other photographs are noticed without a setting."""

import json
from pathlib import Path

import pytest

from pipeline.config import RunConfig
from pipeline.photographs import CAPTIONS, FOLDER
from tests.pipeline.commands.evaluated import run_aloud
from tests.pipeline.light import rows_of


@pytest.mark.parametrize(("shift", "least", "most"), [(0, 0, 3), (3, 20, 32)], ids=["own", "foreign"])
def test_eight_photographs_need_no_setting(shift: int, least: int, most: int, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in CAPTIONS.read_text(encoding="utf-8").splitlines()]
    captions = [line["caption"] for line in lines]
    moved = [{**line, "caption": captions[(place + shift) % 8]} for place, line in enumerate(lines)]
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in moved))
    place = {"kind": "jsonl", "path": str(tmp_path / "captions.jsonl"), "image_root": str(FOLDER)}
    config = RunConfig.model_validate(
        {"input": place, "model": {"name": "photo"}, "output": {"path": str(tmp_path / "out")}}
    )
    dataset, printed = run_aloud(config)
    share = json.loads((dataset / "dataset.json").read_text())["config"]["regions"]["absent_share"]
    assert f"regions.absent_share is {share}, estimated from 8 captions of the first images: so few" in printed
    assert least <= sum(len(row["absent"]) for row in rows_of(dataset)) <= most
    assert all(len(row["caption_score"]) == 1 for row in rows_of(dataset))
