"""The steps of `make figures`: their settings are settings, their tables those of the pages, and they are made once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pipeline.config import load_config
from pipeline.evaluate.compare.figures import FIGURES
from pipeline.evaluate.compare.maps import contenders_of
from pipeline.evaluate.metrics import METRICS
from tests.figures import pages, steps
from tests.figures.settings import GRIDS
from tests.photos.measure import FILES


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: f"{grid.page}-{grid.name}")
def test_a_row_of_settings_is_a_configuration_of_its_own(grid: steps.Grid) -> None:
    assert set(grid.columns) <= METRICS.keys()
    own = ["input.path=x.jsonl", "input.kind=jsonl", f"model.name={grid.model}", *grid.common.split()]
    made = [load_config(None, [*own, *changes.split()]).model_dump_json() for _, changes in grid.rows]
    assert len(set(made)) == len(made)
    assert grid.name in {table["id"] for table in pages.contents(grid.page)["tables"]}


@pytest.mark.parametrize("name", steps.EXPLAINED)
def test_a_comparison_names_explainers_and_figures(name: str) -> None:
    model, kinds, _, figures = steps.EXPLAINED[name]
    assert contenders_of(kinds, "class_token" if model == "demo" else "attention_pool", model)
    assert set(figures) <= FIGURES.keys()
    assert name in {table["id"] for table in pages.contents("explainers")["tables"]}


def test_tables_that_no_step_makes_are_tables() -> None:
    for page, tables in steps.NOT_MADE.items():
        assert set(tables) <= {table["id"] for table in pages.contents(page)["tables"]}


def test_a_step_is_made_once_and_says_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos, measured, asked = tmp_path / "photos", tmp_path / "measured", []
    for name in FILES:
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        (photos / name).touch()
    shutil.copytree(pages.MEASURED, measured)
    monkeypatch.setattr(pages, "MEASURED", measured)

    def counted(own: object) -> steps.Pages:
        asked.append(own)
        made = steps.table("bench", "make bench", ["figure", "value", "against"], [["one", 0.5, "two"]])
        return {"speed": {"tables": [made], "said": [{"about": "a share", "command": None, "values": [0.125]}]}}

    monkeypatch.setitem(steps.STEPS, "speed", counted)
    for _ in range(2):
        steps.make(photos, tmp_path / "out", ["speed"])
    assert len(asked) == 1
    pages.render()
    known = json.loads((measured / "speed.json").read_text("utf-8"))
    made = next(table for table in known["tables"] if table["id"] == "bench")
    assert (made["step"], made["commit"]) == ("speed", steps.commit())
    assert "| one | 0.500 | two |" in (measured / "speed.md").read_text("utf-8")
    assert known["said"][-1]["step"] == "speed"
