"""A short soak: one run that loses its driver, two kinds of workers and a node, and is told to stop once."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.soak import soak as soaked
from benchmarks.soak.soak import KINDS, Soak, schedule, soak

WRITES_SHARDS = """
import pathlib, sys, time
folder = pathlib.Path(sys.argv[1], "data")
folder.mkdir(parents=True)
for number in range(8):
    (folder / f"{number}.parquet").touch()
    time.sleep(0.2)
"""


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_that_is_hurt_gives_the_rows_of_a_quiet_one(tmp_path: Path) -> None:
    kinds = ("driver", "SIGTERM", "model worker", "write task", "node")
    counts = soak(400, 5, seed=1, folder=tmp_path, kinds=kinds)
    assert counts["faults_by_kind"] == dict.fromkeys(counts["faults_by_kind"], 1)
    assert set(counts["faults_by_kind"]) == set(kinds)
    assert counts["driver_starts"] == 3


def test_every_kind_of_fault_comes_as_often_as_the_others() -> None:
    order = schedule(24, KINDS, random.Random(1))
    assert len(order) == 24
    assert {order.count(kind) for kind in KINDS} <= {24 // len(KINDS), 24 // len(KINDS) + 1}


def test_a_fault_that_never_happened_fails_the_soak(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soaked, "SEARCH_SECONDS", 0.1)
    command = [sys.executable, "-c", WRITES_SHARDS, str(tmp_path / "out")]
    cluster: Any = None
    run = Soak(cluster, command, tmp_path / "out", ["write task"], random.Random(1), lambda _: None)
    with pytest.raises(AssertionError, match=r"never injected: \['write task'\]"):
        run.run()
