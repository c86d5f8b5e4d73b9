import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from phrasebox.pipeline.commands.cli import app
from phrasebox.pipeline.commands.demo import SCALES, run_demo, run_photographs
from phrasebox.pipeline.config.run_config import RunConfig, load_config
from phrasebox.pipeline.dataset.validate import validate
from phrasebox.pipeline.demo.photographs import TRUTH
from phrasebox.stages.contract.errors import WeightsError
from phrasebox.stages.truth import read_truth
from tests.build.files import read_json


def test_demo_finds_most_things_and_draws_them(tmp_path) -> None:
    printed = io.StringIO()
    evaluation = run_demo(tmp_path, 24, 5, Console(file=printed, width=120))
    metrics = evaluation.figures.metrics
    assert evaluation.figures.counts.targets >= 24
    assert metrics["box_recall"].value > 0.5
    assert metrics["pointing"].value > metrics["text_point"].value + 0.3
    assert f"{metrics['pointing'].value:.3f}" in printed.getvalue()
    assert read_json(tmp_path / "evaluation.json") == evaluation.to_json()
    assert list(validate(tmp_path / "dataset")) == []
    assert np.asarray(Image.open(tmp_path / "overlays.png")).shape[1] > 600


def test_it_ends_with_three_lines_and_opens_the_viewer(tmp_path, monkeypatch) -> None:
    """Of the scenes, where the photographs are left out."""
    opened: list[Path] = []
    monkeypatch.setattr("phrasebox.pipeline.commands.demo.run_photographs", lambda *_: None)
    monkeypatch.setattr(
        "phrasebox.pipeline.commands.demo.inspect", lambda dataset, open_browser: opened.append(dataset)
    )
    result = CliRunner().invoke(app, ["demo", "--out", str(tmp_path), "--scenes", "6", "--open"])
    assert result.exit_code == 0, result.output
    table, _, legend = result.output.rpartition("all figures: ")
    for word in ("pointing", "off centre", "recall ANY", "MERGED", "above text alone", "±"):
        assert word in table
        assert f"{word}: " in legend
    assert "README" not in legend, "there are no photographs"
    assert [line[:3] for line in result.output.splitlines()[-3:]] == ["1. ", "2. ", "3. "]
    assert opened == [tmp_path / "dataset"]


@pytest.mark.slow
def test_the_photographs_follow_where_their_model_is_there(tmp_path) -> None:
    """The embedded model stands in for it: what it makes of photographs is not the point here."""
    printed = io.StringIO()
    evaluation = run_photographs(tmp_path, Console(file=printed, width=120), model="demo")
    assert evaluation is not None
    counts = evaluation.figures.counts
    assert (counts.images, counts.targets_not_among_phrases) == (len(read_truth(TRUTH).images), 0)
    for row in ("the dataset", "text alone", "middle of the image"):
        assert row in printed.getvalue()
    assert read_json(tmp_path / "evaluation.json") == evaluation.to_json()
    with Image.open(tmp_path / "overlays.png") as sheet:
        assert sheet.width > 1000


def test_without_their_model_one_line_says_so(tmp_path, monkeypatch) -> None:
    def missing(name: str) -> None:
        raise WeightsError(f"model.safetensors is missing from the weights {name!r}")

    monkeypatch.setattr("phrasebox.pipeline.demo.photographs.find_weights", missing)
    printed = io.StringIO()
    assert run_photographs(tmp_path, Console(file=printed, width=200)) is None
    told = "the photographs are left out: model.safetensors is missing from the weights 'photo'\n"
    assert printed.getvalue() == told
    assert list(tmp_path.iterdir()) == []


def test_the_demo_and_the_presets_have_the_same_settings() -> None:
    presets = Path(__file__).parents[3] / "configs"
    drawings, photographs = (load_config(presets / f"{name}.yaml", []) for name in ("demo", "photos-fine"))
    source = {"input": drawings.input, "model": {"name": "demo"}}
    sections = {"explain", "regions"}
    assert RunConfig(**source).model_dump(include=sections) == drawings.model_dump(include=sections)
    assert photographs.explain.scales == SCALES
