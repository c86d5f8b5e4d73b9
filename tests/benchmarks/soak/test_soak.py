"""A short soak: one run that loses its driver, a model worker and a node of its cluster, and is told to stop once."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.soak.soak import KINDS, schedule, soak


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_that_is_hurt_gives_the_rows_of_a_quiet_one(tmp_path: Path) -> None:
    kinds = ("driver", "SIGTERM", "model worker", "node")
    counts = soak(240, 4, seed=1, folder=tmp_path, kinds=kinds)
    assert counts["faults_by_kind"] == dict.fromkeys(counts["faults_by_kind"], 1)
    assert set(counts["faults_by_kind"]) == set(kinds)
    assert counts["driver_starts"] == 3


def test_every_kind_of_fault_comes_as_often_as_the_others() -> None:
    import random

    order = schedule(24, KINDS, random.Random(1))
    assert len(order) == 24
    assert {order.count(kind) for kind in KINDS} <= {24 // len(KINDS), 24 // len(KINDS) + 1}
