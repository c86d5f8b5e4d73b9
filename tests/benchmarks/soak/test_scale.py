"""The programs of `make scale`, with as little to measure as there can be."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.soak import counting
from tests.build.datasets import Json


def lines_of(module: str, *options: str) -> list[Json]:
    """What a program prints."""
    done = subprocess.run(
        [sys.executable, "-m", module, *options], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_end_of_a_run_with_two_shards(capsys: pytest.CaptureFixture[str]) -> None:
    counting.main(["--phrases", str(2 * counting.AT_ONCE)])
    line = json.loads(capsys.readouterr().out)
    assert line["phrases"] == 2 * counting.AT_ONCE
    assert set(line["seconds"]) == {"add", "tally", "resolve_id_collisions", "write_categories"}
    assert line["peak_mb"] > 0


@pytest.mark.slow
def test_a_take_over_of_a_few_shards_in_object_storage() -> None:
    (line,) = lines_of("benchmarks.soak.resuming", "--shards", "40", "--files", "3")
    assert line["rows"] == 40_000
    assert line["take_over"]["requests"] > line["again"]["requests"] > 0


@pytest.mark.ray
@pytest.mark.slow
def test_memory_and_start_of_a_few_images_and_tars(tmp_path: Path) -> None:
    options = ("--images", "60", "--tars", "40", "--rows", "0", "--out", str(tmp_path))
    memory, tars = lines_of("benchmarks.soak.scale", *options)
    assert (memory["name"], memory["images"]) == ("memory", 60)
    assert {"driver", "ledger", "model worker"} <= memory.keys()
    assert (tars["name"], tars["rows"], tars["resume_of_last"]) == ("tars", 40, 20)
    assert tars["first_shard_s"] > 0
