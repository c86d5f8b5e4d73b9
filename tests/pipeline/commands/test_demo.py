from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console

from pipeline.commands.demo import REGIONS, run_demo
from pipeline.config import RunConfig, load_config
from stages.write.validate import validate


def test_demo_finds_most_things_and_draws_them(tmp_path) -> None:
    printed = io.StringIO()
    figures = run_demo(tmp_path, 24, 5, Console(file=printed, width=120), engine="inline")
    assert figures["counts"]["targets"] >= 24
    assert figures["metrics"]["box_recall"]["value"] > 0.5
    assert figures["metrics"]["pointing"]["value"] > figures["metrics"]["pointing_plain"]["value"] > 0.6
    assert f"{figures['metrics']['pointing']['value']:.3f}" in printed.getvalue()
    assert json.loads((tmp_path / "evaluation.json").read_text()) == figures
    assert list(validate(tmp_path / "dataset")) == []
    assert len(list((tmp_path / "overlays").glob("*.png"))) == 24
    sheet = np.asarray(Image.open(tmp_path / "overlays.png"))
    assert sheet.shape[1] > 600
    again = run_demo(tmp_path, 24, 5, Console(file=io.StringIO()), engine="inline")
    assert again == figures


def test_the_preset_has_the_demo_s_settings() -> None:
    preset = load_config(Path(__file__).parents[3] / "configs" / "demo.yaml", [], RunConfig)
    assert preset.regions.model_dump(include=set(REGIONS)) == REGIONS
    assert preset.model.name == "demo"
