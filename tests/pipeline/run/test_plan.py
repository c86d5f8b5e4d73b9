"""The arithmetic of a plan."""

from dataclasses import replace

import pytest

from phrasebox.pipeline.run.plan import Costs, Machine, forecast

COSTS = Costs(images=100, host_s=0.01, model_s=0.08, bytes=5000.0, memory_bytes=10**9)


@pytest.mark.parametrize(
    ("machine", "limit", "rate"),
    [
        (Machine(cores=2, workers=2), "cores", 2 / 0.09),
        (Machine(cores=16, workers=2), "model workers", 2 / 0.08),
        (Machine(cores=16, workers=1, gpus=2, gpu_rate=500.0), "GPUs", 1000),
        (Machine(cores=4, workers=1, gpus=2, gpu_rate=500.0), "cores", 400),
    ],
)
def test_the_scarcest_resource_limits_the_rate(machine: Machine, limit: str, rate: float) -> None:
    result = forecast(replace(COSTS, start_s=30.0), 10_000, machine)
    assert (result.limit, result.rate) == (limit, pytest.approx(rate))
    assert result.seconds == pytest.approx(30 + 10_000 / rate)
    assert result.disk_bytes == 50_000_000
    assert result.memory_bytes == (machine.gpus or machine.workers) * 10**9


@pytest.mark.parametrize(
    ("images", "gpus", "parts", "at_once"),
    [(10_000_000, 64, 1, 1), (25_000_000, 4, 3, 1), (25_000_000, 23, 4, 2), (1_000_000_000, 64, 102, 6)],
)
def test_a_large_input_is_cut_into_parts_that_one_driver_feeds(images, gpus, parts, at_once) -> None:
    result = forecast(COSTS, images, Machine(cores=10_000, workers=1, gpus=gpus, gpu_rate=500.0))
    assert (result.parts, result.side_by_side) == (parts, at_once)
    assert result.part_hours * parts / at_once == pytest.approx(result.seconds / 3600)
