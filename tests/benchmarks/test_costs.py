"""What single parts cost, with as little to measure as there can be."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from phrasebox.pipeline.demo.photographs import CAPTIONS, FOLDER
from tests.architecture.source import ROOT


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "count", "figure"),
    [
        (["host_cost", str(FOLDER), str(CAPTIONS), "--images", "2", "--captions-each", "1"], 2, "all"),
        (["segmenter_cost", "EdgeTAM"], 1, "prompt_ms"),
    ],
)
def test_a_part_is_measured_in_its_smallest_size(options: list[str], count: int, figure: str) -> None:
    command = [sys.executable, "-m", f"benchmarks.{options[0]}", *options[1:]]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == count
    assert all(line[figure] > 0 for line in lines)


@pytest.mark.slow
def test_the_pictures_of_the_pages_are_made(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / ".pictures/make.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"idea.jpg", "inspect.jpg"}
    assert all(path.stat().st_size > 20_000 for path in tmp_path.iterdir())
