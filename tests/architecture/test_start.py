"""What `phrasebox --help` and the light verbs load. A second of import is a second for everyone who asks for help."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture.source import ROOT
from tests.stages.dataset.export.datasets import write_dataset

HEAVY = ("torch", "ray", "open_clip", "spacy", "cv2", "datasets", "pandas", "duckdb", "starlette", "uvicorn", "jinja2")


def loaded(code: str, folder: Path) -> set[str]:
    """Heavy libraries in `sys.modules` after some code, in a fresh process."""
    report = folder / "loaded.json"
    program = (
        "import atexit, json, sys\n"
        f"atexit.register(lambda: open({str(report)!r}, 'w').write(json.dumps(sorted(sys.modules))))\n{code}"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return {name for name in json.loads(report.read_text()) if name in HEAVY}


def as_command(*arguments: str) -> str:
    return f"import sys; sys.argv = ['phrasebox', *{list(arguments)!r}]; from pipeline.cli import main; main()"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        *(
            [verb, "--help"]
            for verb in (
                "run",
                "validate",
                "inspect",
                "stats",
                "phrases",
                "explain",
                "scenes",
                "demo",
                "eval",
                "calibrate",
                "export",
            )
        ),
    ],
    ids=" ".join,
)
def test_asking_loads_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    assert loaded(as_command(*arguments), tmp_path) == set()


def test_planning_a_run_loads_neither_cluster_nor_parser(tmp_path: Path) -> None:
    modules = "pipeline.config, pipeline.output.folder, pipeline.summary, pipeline.graph, pipeline.commands.run"
    assert not loaded(f"import {modules}", tmp_path) & {"ray", "spacy"}


def test_a_configuration_needs_no_model(tmp_path: Path) -> None:
    assert not loaded("import pipeline.config", tmp_path) & {"torch", "open_clip", "ray", "spacy"}
    # The workers that read and finish import this; seconds of it would be seconds of each.
    assert not loaded("import pipeline.engines.ray_data", tmp_path) & {"torch", "open_clip", "spacy"}


def test_validate_needs_no_model(inline_dataset: Path, tmp_path: Path) -> None:
    found = loaded(as_command("validate", str(inline_dataset)), tmp_path)
    assert not found & {"torch", "ray", "open_clip", "spacy"}


def test_looking_at_a_dataset_needs_no_model(inline_dataset: Path, tmp_path: Path) -> None:
    model = {"torch", "ray", "open_clip", "spacy"}
    assert not loaded(as_command("stats", str(inline_dataset)), tmp_path) & {*model, "cv2", "starlette"}
    assert not loaded("import pipeline.viewer.serve, pipeline.viewer.gallery", tmp_path) & model


def test_exports_need_no_model(tmp_path: Path) -> None:
    """Of any format but the one that embeds texts."""
    dataset = write_dataset(tmp_path / "dataset")
    code = (
        "from pathlib import Path\n"
        "from rich.console import Console\n"
        "from pipeline.commands.export import export_dataset\n"
        "from stages.dataset.export import EXPORTERS\n"
        "for name in EXPORTERS:\n"
        f"    if name != 'clipself': export_dataset(Path({str(dataset)!r}), name, Path(name), Console(quiet=True))\n"
    )
    assert not loaded(code, tmp_path) & {"torch", "ray", "open_clip", "spacy", "datasets"}
    assert (tmp_path / "yolo" / "data.yaml").is_file()


def test_the_inline_engine_needs_no_ray(tmp_path: Path) -> None:
    assert "ray" not in loaded(
        "import pipeline.engines.inline, pipeline.commands.explain, pipeline.commands.demo", tmp_path
    )
