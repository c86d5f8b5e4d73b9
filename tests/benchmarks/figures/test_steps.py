"""The steps of `make figures`: their settings are settings, their tables those of the pages, and they are made once."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.figures import absent, explainers, pages, photographs, steps
from benchmarks.figures.settings import GRIDS, Grid
from benchmarks.photos.measure import Photographs
from phrasebox.pipeline.config.run_config import load_config
from phrasebox.pipeline.evaluate.absent_figures import WAYS
from phrasebox.pipeline.evaluate.metrics import METRICS, WITHOUT_TEXT
from phrasebox.pipeline.research.compare.figures import FIGURES
from phrasebox.pipeline.research.compare.maps import contenders_of
from phrasebox.stages.explain import EXPLAINERS
from tests.build.files import read_json, write_json
from tests.stages.model.saved import load_model


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: f"{grid.page}-{grid.name}")
def test_a_row_of_settings_is_a_configuration_of_its_own(grid: Grid) -> None:
    assert set(grid.columns) <= METRICS.keys()
    own = ["input.path=x.jsonl", "input.kind=jsonl", f"model.name={grid.model}", *grid.common.split()]
    made = [load_config(None, [*own, *changes.split()]) for _, changes in grid.rows]
    assert len({each.model_dump_json() for each in made}) == len(made)
    model = load_model(made[0].model)
    for each in made:
        EXPLAINERS[each.explain.kind](
            each.explain, model
        )  # which rejects what makes no sense for the model
    assert grid.name in {table["id"] for table in pages.contents(grid.page)["tables"]}


@pytest.mark.parametrize("name", explainers.EXPLAINED)
def test_a_comparison_names_explainers_and_figures(name: str) -> None:
    model, kinds, _, _, figures = explainers.EXPLAINED[name]
    assert contenders_of(kinds, "class_token" if model == "demo" else "attention_pool", model)
    assert set(figures) <= FIGURES.keys()
    assert name in {table["id"] for table in pages.contents("explainers")["tables"]}


def test_the_steps_of_photographs_take_what_eval_says() -> None:
    figure = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 3}
    metrics = dict.fromkeys((*METRICS, *(f"{name}_above_text" for name in WITHOUT_TEXT)), figure)
    answered = dict.fromkeys(("auc", "auc_attribute", "il_mcc", "positive_f1", "cgf1"), figure)
    found = {
        "counts": {"images": 3, "targets": 9, "targets_not_among_phrases": 1},
        "metrics": metrics,
        "groups": {"type": {"people": metrics}},
        "calibration_error": figure,
        "scores": {"score": figure},
        "thresholds": [{"score": 0.5, "share": 0.5, "precision": figure}],
        "pairs": {"there": 9, "random": 9},
        "by": dict.fromkeys(WAYS, answered),
        "saco": dict.fromkeys(("il_mcc", "positive_f1", "cgf1"), figure),
        "ece": figure,
        "ece_there": figure,
        "shares": [{"presence": 0.1, "present": 0.9, "absent": 0.5}],
    }
    gains = [0.1, 0.0, 0.2]
    own = SimpleNamespace(figures=lambda *_, **__: found, gains=lambda *_: gains, links=lambda *_: [])
    made = [step(own)["photographs"] for step in (photographs.photographs, absent.absent)]  # type: ignore[arg-type]
    tables = [table for each in made for table in each["tables"]]
    assert {len(each) for each in made[0]["said"]} == {3}, "about, command, values"
    assert [table["id"] for table in tables] == [
        "regions",
        "by-type",
        "captions",
        "absent",
        "min-presence",
    ]
    for table in tables:
        assert {len(row) for row in table["rows"]} == {len(table["columns"])}
        assert (
            pages.as_markdown(table | {"commit": "1234567"}).count("0.500") > 3
            or table["id"] == "min-presence"
        )
    assert None not in tables[1]["rows"][0]


def test_a_comparison_shows_marks_intervals_and_the_n_of_every_column(tmp_path: Path) -> None:
    figure = {"value": 0.5, "low": -0.1, "high": 0.6}
    row = {
        "explainer": "game",
        "baseline": False,
        "figures": {name: figure | {"n": number} for number, name in enumerate(FIGURES, start=1)},
        "differences": {"pointing": figure | {"mark": "-"}, "box_recall": figure | {"mark": ""}},
        "counts": {"images": 3, "phrases": 9},
        "cost": {"encode_image": 2.0},
        "cosine_agreement": {"correlation": 0.9, "mean_distance": 0.05},
    }
    centre = {**row, "explainer": "centre", "baseline": True, "figures": {"pointing": figure | {"n": 1}}}
    single = {**row, "explainer": "grad_eclip:heads=single"}
    (tmp_path / "compared").mkdir()
    for name in explainers.EXPLAINED:
        write_json(tmp_path / "compared" / f"{name}.json", [row, single, centre])
    made = explainers.explainers(SimpleNamespace(out=tmp_path))["explainers"]  # type: ignore[arg-type]
    said = {each["about"].partition(":")[0]: each["values"] for each in made["said"]}
    assert said["photographs, grad_eclip"] == [0.9, 0.05]
    assert said["scenes, game over grad_eclip"] == [0.5, -0.1, 0.6] * 2
    for table, (*_, figures) in zip(made["tables"], explainers.EXPLAINED.values(), strict=True):
        *rows, n = table["rows"]
        assert n == ["n", *(str(row["figures"][name]["n"]) for name in figures), None]  # type: ignore[index]
        assert {len(line) for line in rows} == {len(table["columns"])}
        shown = pages.as_markdown(table | {"commit": "1234567"})
        assert ("| `game` | 0.500- |" in shown) == ("pointing" in figures)
        assert ("0.500 (-0.100 to 0.600)" in shown) == ("weights_all" in figures), "few images are shuffled"


def test_each_table_is_made_by_a_step() -> None:
    """A step names its tables in one of these forms."""
    files = [*pages.ROOT.glob("configs/proof/*.yaml"), *(pages.ROOT / "benchmarks/figures").glob("*.py")]
    files += (pages.ROOT / "benchmarks/photos" / name for name in ("reviews.py", "moved.py"))
    text = re.sub(r"\(\s+", "(", "".join(path.read_text("utf-8") for path in files))
    forms = ('table("{0}"', '"{0}": (', '"name": "{0}"', '_of_scenes("{0}"')
    forms += ('name="{0}"', "name: {0}\n", '"{0}": []')
    for page in pages.pages():
        ids = {table["id"] for table in pages.contents(page)["tables"]}
        made = {
            each for each in ids if any(form.format(each.removesuffix("-costs")) in text for form in forms)
        }
        assert ids == made, page


def test_a_step_is_made_once_and_says_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos, measured, asked = tmp_path / "photos", tmp_path / "measured", []
    shutil.copytree(pages.MEASURED, measured)
    monkeypatch.setattr(pages, "MEASURED", measured)

    def counted(own: object) -> pages.Pages:
        asked.append(own)
        made = pages.table("bench", "make bench", ["figure", "value", "against"], [["one", 0.5, "two"]])
        return {
            "speed": {"tables": [made], "said": [{"about": "a share", "command": None, "values": [0.125]}]}
        }

    monkeypatch.setitem(steps.STEPS, "speed", counted)
    for _ in range(2):
        steps.make(Photographs(photos, tmp_path / "out"), ["speed"])
    assert len(asked) == 1
    pages.render()
    known = read_json(measured / "speed.json")
    made = next(table for table in known["tables"] if table["id"] == "bench")
    assert (made["step"], made["commit"]) == ("speed", steps.commit())
    assert "| one | 0.500 | two |" in (measured / "speed.md").read_text("utf-8")
    assert known["said"][-1]["step"] == "speed"
