"""The step of a second round, on a few drawn scenes in place of photographs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.figures.rounds import rounds
from benchmarks.photos.measure import Photographs
from phrasebox.pipeline.demo.scenes import write_scenes
from phrasebox.pipeline.research.finetune.command import finetune
from tests.architecture.source import ROOT


class DrawnPhotographs(Photographs):
    """Scenes under the names of photographs."""

    def images(self, name: str) -> Path:
        return self.source / "images"

    def captions(self, name: str) -> Path:
        return self.source / "captions.jsonl"

    def file(self, name: str) -> Path:
        return self.source / "captions.jsonl"

    def truth(self, name: str) -> Path:
        return self.source / "truth.json"


@pytest.mark.slow
def test_a_second_round_goes_from_a_run_to_tables(tmp_path: Path) -> None:
    write_scenes(tmp_path / "scenes", 70, seed=5)
    pages = rounds(DrawnPhotographs(tmp_path / "scenes", tmp_path / "out", rounds=(16, 70, 8)))
    regions, models = pages["proof"]["tables"]
    assert [row[:2] for row in regions["rows"]] == [
        [part, calibration]
        for calibration in ("none", "fitted")
        for part in ("first run", "second run", "second over first")
    ]
    assert all(
        {len(row) for row in table["rows"]} == {len(table["columns"])} for table in (regions, models)
    )
    first, second, difference = models["rows"]
    for before, after, gain in zip(first[1:], second[1:], difference[1:], strict=True):
        assert gain["value"] == pytest.approx(after["value"] - before["value"], abs=1e-4)
    assert first[1:] != second[1:], "the second run has another model"


def test_no_page_and_no_help_text_suggests_a_second_round() -> None:
    pages = [*ROOT.glob("docs/**/*.md"), *ROOT.glob("*/README.md"), ROOT / "README.md"]
    texts = {path.name: path.read_text("utf-8") for path in pages} | {"--help": finetune.__doc__ or ""}
    assert [
        name for name, text in texts.items() if re.search(r"phrasebox run\b.*--model tuned", text)
    ] == []
