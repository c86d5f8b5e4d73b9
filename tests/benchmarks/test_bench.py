"""Every line of `make bench`, with as little to measure as there can be."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from benchmarks import bench
from benchmarks.figures.speed import BENCH


def check_lines(printed: str, count: int) -> None:
    lines = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    names = [line["name"] for line in lines if "_bf16_" not in line["name"]]  # measured where it is fast
    assert len(set(names)) == len(names) == count
    assert all(isinstance(line["value"], float) and line["unit"] and line["against"] for line in lines)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        pytest.param("heat_maps", 4, marks=pytest.mark.slow),
        ("regions", 3),
        ("phrases", 1),
        pytest.param("whole_run", 2, marks=pytest.mark.slow),
    ],
)
def test_a_figure_is_measured_in_its_smallest_size(
    name: str, count: int, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.main(["--only", name, "--smallest"])
    check_lines(capsys.readouterr().out, count)


@pytest.mark.ray
@pytest.mark.slow
def test_engines_and_loaders_are_measured_in_their_smallest_size() -> None:
    command = [sys.executable, "-m", "benchmarks.bench", "--only", "engines", "--smallest"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    check_lines(done.stdout, 7)


def test_the_page_has_a_title_for_each_size_that_is_measured() -> None:
    sizes = bench.Sizes()
    names = {f"heatmaps_{count}_vs_encode_image" for count in sizes.phrases}
    models = [model.lower().replace("-", "_") for model in sizes.models]
    names |= {f"run_vs_encode_{captions}_{model}" for captions in (1, 5) for model in models}
    assert names <= BENCH.keys()
