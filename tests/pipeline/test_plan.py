"""The arithmetic of a plan."""

from dataclasses import replace

import pytest

from pipeline.config import RunConfig
from pipeline.plan import Costs, Machine, assumptions, forecast, texts_in

COSTS = Costs(
    images=100,
    failed=0,
    phrases=5.0,
    steps={"read": 0.001, "phrases": 0.004, "explain": 0.08, "write": 0.005},
    explain="explain",
    text_s=0.0,
    half_texts=200,
    texts=300,
    bytes=5000.0,
    memory_bytes=10**9,
    device="cpu, 1 thread",
)


@pytest.mark.parametrize(
    ("machine", "limit", "rate"),
    [
        (Machine(cores=2, workers=2), "cores", 2 / 0.09),
        (Machine(cores=16, workers=2), "model workers", 2 / 0.08),
        (Machine(cores=2, workers=2, engine_cores=0.2, engine_s=0.01), "cores", 1.8 / 0.1),
        (Machine(cores=16, workers=1, gpus=2, gpu_rate=500.0), "GPUs", 1000),
        (Machine(cores=4, workers=1, gpus=2, gpu_rate=500.0), "cores", 400),
        (Machine(cores=2, workers=1, gpus=1, gpu_rate=1000.0, engine_cores=0.2, engine_s=0.01), "cores", 1.8 / 0.02),
    ],
)
def test_the_scarcest_resource_limits_the_rate(machine: Machine, limit: str, rate: float) -> None:
    result = forecast(COSTS, 10_000, machine)
    assert (result.limit, result.rate) == (limit, pytest.approx(rate))
    assert result.seconds == pytest.approx(10_000 / rate)
    assert result.core_hours == pytest.approx(machine.cores * result.seconds / 3600)
    assert result.gpu_hours == pytest.approx(machine.gpus * result.seconds / 3600)
    assert result.disk_bytes == 50_000_000
    assert result.memory_bytes == (machine.gpus or machine.workers) * 10**9


def test_gpus_need_cores_and_a_known_speed() -> None:
    result = forecast(COSTS, 1_000_000, Machine(cores=16, workers=1, gpus=2, gpu_rate=500))
    assert result.cores_per_gpu == pytest.approx(5.0)
    with pytest.raises(ValueError, match="of a GPU"):
        forecast(COSTS, 10, Machine(cores=4, workers=1, gpus=1))


@pytest.mark.parametrize(
    ("images", "gpus", "parts", "at_once"),
    [(10_000_000, 64, 1, 1), (25_000_000, 4, 3, 1), (25_000_000, 23, 4, 2), (1_000_000_000, 64, 102, 6)],
)
def test_a_large_input_is_cut_into_parts_that_one_driver_feeds(images, gpus, parts, at_once) -> None:
    result = forecast(COSTS, images, Machine(cores=10_000, workers=1, gpus=gpus, gpu_rate=500.0))
    assert (result.parts, result.side_by_side) == (parts, at_once)
    assert result.part_hours * parts / at_once == pytest.approx(result.seconds / 3600)


@pytest.mark.parametrize(("images", "most", "first"), [(10_000, 32, 32), (8, 32, 8), (1000, 300, 100)])
def test_one_process_computes_the_first_images(images: int, most: int, first: int) -> None:
    """Before all others: 0.09 s for the steps of an image, and three new phrases."""
    costs = replace(COSTS, start_s=30.0, first=most, text_s=0.01)
    result = forecast(costs, images, Machine(cores=2, workers=2))
    assert result.seconds == pytest.approx(30 + first * (0.09 + 3 * 0.01) + (images - first) / result.rate)


@pytest.mark.parametrize(
    ("engine", "workers", "words"),
    [("inline", 1, []), ("ray", 4, ["20 s until Ray has started", "4 model workers that do not slow each other down"])],
)
def test_a_plan_names_its_assumptions(engine: str, workers: int, words: list[str]) -> None:
    config = RunConfig.model_validate({"input": {"path": "captions.jsonl"}, "engine": {"kind": engine}})
    assert "at most 32 images computed before all others" in "; ".join(
        assumptions(config, replace(COSTS, first=32), workers)
    )
    plain = assumptions(config, COSTS, workers)
    assert len(plain) == 1 + len(words)
    assert all(any(word in each for each in plain) for word in words)


def test_different_phrases_grow_with_a_power_of_the_images() -> None:
    """1.5 times as many whenever the images double."""
    for doublings in range(5):
        assert texts_in(COSTS, 100 * 2**doublings) == pytest.approx(300 * 1.5**doublings)


@pytest.mark.parametrize(("half", "whole", "many"), [(0, 0, 0.0), (7, 7, 7.0), (1, 300, 3000.0)])
def test_phrases_never_grow_faster_than_the_images(half: int, whole: int, many: float) -> None:
    assert texts_in(replace(COSTS, half_texts=half, texts=whole), 1000) == pytest.approx(many)


def test_every_worker_meets_the_phrases_for_itself() -> None:
    costs = replace(COSTS, text_s=0.01)
    single, double = (forecast(costs, 1600, Machine(cores=count, workers=count)) for count in (1, 2))
    assert single.rate == pytest.approx(1 / (0.09 + 0.01 * texts_in(COSTS, 1600) / 1600))
    assert double.rate == pytest.approx(2 / (0.09 + 0.01 * texts_in(COSTS, 800) / 800))
    assert double.rate < 2 * single.rate
