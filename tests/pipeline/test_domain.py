"""A calibration is used on pictures like those that it was fitted on, and on no others in silence."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from pipeline.config import RunConfig
from pipeline.domain import outside_domain
from pipeline.graph import build_graph
from pipeline.run import run
from stages.model.scenes import write_scenes
from stages.read import plan_shards

CAPTIONS = (
    "a man in a grey coat walks along the street",
    "two children and their dog on the grass",
    "an old woman sells fish at the market",
    "a boat on the lake before the mountains",
)


def config_of(folder: Path, out: Path, **values: Any) -> RunConfig:
    source = {"kind": "jsonl", "path": str(folder / "captions.jsonl"), "image_root": str(folder / "images")}
    return RunConfig.model_validate(
        {"input": source, "engine": {"kind": "inline"}, "output": {"path": str(out)}, **values}
    )


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    write_scenes(folder, 24, 43)
    return folder


@pytest.fixture(scope="module")
def clouds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures without outlines, and captions of photographs."""
    folder = tmp_path_factory.mktemp("clouds")
    (folder / "images").mkdir()
    rng = np.random.default_rng(5)
    lines = []
    for number in range(24):
        coarse = rng.integers(0, 256, (int(rng.integers(4, 12)), 12, 3), dtype=np.uint8)
        picture = cv2.resize(coarse, (320, 240), interpolation=cv2.INTER_CUBIC)
        assert cv2.imwrite(str(folder / "images" / f"{number}.png"), picture)
        lines.append(json.dumps({"image": f"{number}.png", "caption": CAPTIONS[number % 4]}) + "\n")
    (folder / "captions.jsonl").write_text("".join(lines))
    return folder


def finished(config: RunConfig) -> tuple[str, Any, list[dict[str, Any]]]:
    """What a run prints, its manifest and its rows."""
    printed = StringIO()
    dataset = run(config, Console(file=printed, width=300))
    rows = [row for path in sorted((dataset / "data").glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    return printed.getvalue(), json.loads((dataset / "dataset.json").read_text()), rows


def test_drawn_scenes_are_what_the_demo_model_was_calibrated_on(drawn: Path, tmp_path: Path) -> None:
    printed, manifest, _ = finished(config_of(drawn, tmp_path / "out"))
    assert "score:" not in printed
    assert manifest["calibration"] is not None


def test_on_other_pictures_the_scores_rank_and_the_run_says_so(clouds: Path, tmp_path: Path) -> None:
    printed, manifest, rows = finished(config_of(clouds, tmp_path / "out"))
    assert "the pictures are not like those that the calibration was fitted on" in printed
    assert "score: product, which ranks and is no probability: the pictures are not like" in printed
    assert manifest["calibration"] is None
    assert "only ranks" in (tmp_path / "out" / "README.md").read_text()
    uncalibrated = finished(config_of(clouds, tmp_path / "none", regions={"calibration": "none"}))
    assert rows == uncalibrated[2]
    again = StringIO()
    run(config_of(clouds, tmp_path / "out"), Console(file=again, width=300))
    assert "is complete" in again.getvalue()


@pytest.mark.parametrize("is_finished", [True, False], ids=["finished", "unfinished"])
def test_a_run_that_goes_on_keeps_what_was_decided(
    is_finished: bool, clouds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first images may be gone by then, and leave no doubt."""
    config = config_of(clouds, tmp_path / "out", output={"path": str(tmp_path / "out"), "rows_per_file": 8})
    _, _, rows = finished(config)
    if not is_finished:
        run_json = json.loads((tmp_path / "out/dataset.json").read_text())["run"]
        (tmp_path / "out/.phrasebox/run.json").write_text(json.dumps(run_json))
        (tmp_path / "out/dataset.json").unlink()
    (tmp_path / "out/data/00002.parquet").unlink()
    monkeypatch.setattr("pipeline.run.outside_domain", lambda *_: None)
    printed, manifest, again = finished(config)
    assert "going on with the run" in printed
    assert "score: product, which ranks and is no probability: the pictures are not like" in printed
    assert manifest["calibration"] is None
    assert again == rows


def test_a_calibration_that_is_named_is_used_and_doubted(clouds: Path, tmp_path: Path) -> None:
    own = build_graph(config_of(clouds, tmp_path)).after[0].calibration
    assert own is not None
    (tmp_path / "own.json").write_text(own.to_json())
    config = config_of(clouds, tmp_path / "out", regions={"calibration": str(tmp_path / "own.json")})
    printed, manifest, rows = finished(config)
    assert f"{tmp_path / 'own.json'} may be wrong here" in printed
    assert "ranks" not in printed
    assert manifest["calibration"] is not None
    assert rows != finished(config_of(clouds, tmp_path / "none", regions={"calibration": "none"}))[2]


def test_pictures_that_cannot_be_read_leave_no_doubt(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    (tmp_path / "captions.jsonl").write_text(json.dumps({"image": "broken.png", "caption": "a dog"}) + "\n")
    source = {"kind": "jsonl", "path": str(tmp_path / "captions.jsonl"), "image_root": str(tmp_path)}
    graph = build_graph(RunConfig.model_validate({"input": source, "output": {"path": str(tmp_path / "out")}}))
    assert outside_domain(graph, plan_shards(graph.reader)) is None
