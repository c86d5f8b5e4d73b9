"""The simulated fleet: what its stages give is real enough for the engine, and its processes are told apart."""

from __future__ import annotations

import pytest

from benchmarks.soak.simulated import throughput


@pytest.mark.ray
@pytest.mark.slow
def test_sleeping_workers_are_fed_by_the_real_engine() -> None:
    figure = throughput(2, seconds=0.5, batch=32, side_px=32, hold_s=12.0)
    assert figure["workers"] == 2
    assert 0 < figure["of_ideal"] <= 1.05
    assert {"driver", "ledger", "model worker", "raylet", "tasks"} <= set(figure["cores_by_kind"])
    assert figure["model_worker_mb"] > 20
    assert figure["left_behind"] == []
