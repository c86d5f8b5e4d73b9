"""`phrasebox models check` as a person types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from pipeline.cli import app
from stages.contract.errors import ConfigError
from tests.stages.model.saved import save_model


def phrasebox(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["models", *map(str, arguments)])


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    picture = tmp_path_factory.mktemp("models") / "new" / "demo.jpg"
    return phrasebox("check", "demo", "--out", picture), picture


def test_the_model_of_drawings_is_not_sane_on_photographs_and_is_told_why(demo: tuple[Result, Path]) -> None:
    result, picture = demo
    assert result.exit_code == 1, result.output
    text = " ".join(result.output.split())
    assert "8 hikers" in text
    assert "photographs are nearest to their own caption" in text
    assert "off the centre" in text
    assert "images/s, with 3.9 phrases each, on cpu" in text
    assert "peak memory" in text
    assert "demo does not look sane on photographs" in text
    assert "trained on drawn scenes" in text
    with Image.open(picture) as sheet:
        assert sheet.width > 2000
        assert sheet.height > 2000


def test_json_has_all_figures_and_nothing_else_is_printed(tmp_path: Path) -> None:
    _, model = save_model(tmp_path)
    result = phrasebox(
        "check", str(model.config), "--weights", str(model.weights), "--json", "--out", tmp_path / "maps.png"
    )
    assert result.exit_code == 1
    figures = json.loads(result.stdout)
    assert figures["sane"] is False
    assert figures["faults"]
    assert len(figures["cosines"]) == 8
    assert figures["pointing"]["of"] == 31
    assert figures["peak_memory_bytes"] > 1e8
    assert figures["weights"] == str(model.weights)
    assert (tmp_path / "maps.png").is_file()


def test_settings_are_those_of_a_run(tmp_path: Path) -> None:
    settings = ["--set", "regions.upsample=guided", "--set", "explain.kind=rollout"]
    result = phrasebox("check", "demo", "--json", "--out", tmp_path / "maps.jpg", *settings)
    assert result.exit_code == 1, result.output
    figures = json.loads(result.stdout)
    assert figures["pointing"]["hits"] == pytest.approx(figures["pointing"]["by_chance"], abs=8)


def test_faults_are_told_before_any_work(tmp_path: Path) -> None:
    for arguments, words in [
        (("ViT-B-16",), "needs weights"),
        (("demo", "--out", str(tmp_path / "maps.doc")), "does not end like a picture"),
        (("no-such-model/laion2b"), "no-such-model"),
    ]:
        result = phrasebox("check", *((arguments,) if isinstance(arguments, str) else arguments))
        assert result.exit_code not in (0, 1) or isinstance(result.exception, ConfigError)
        assert words in f"{result.output}{result.exception}"
