from __future__ import annotations

import pytest

from pipeline.plan.forecast import Machine, forecast, texts_in
from pipeline.plan.sample import Costs

COSTS = Costs(
    images=100,
    failed=0,
    phrases=5.0,
    steps={"read": 0.001, "phrases": 0.004, "explain": 0.08, "write": 0.005},
    explain="explain",
    text_s=0.0,
    half_texts=200,
    texts=300,
    last_s=0.005,
    bytes=5000.0,
    memory_bytes=10**9,
    ready_s=5.0,
    processes=2,
    device="cpu, 1 thread",
)


def test_cores_are_the_limit_where_every_worker_has_one() -> None:
    told = forecast(COSTS, 10_000, Machine(cores=2, workers=2, start_s=10.0))
    assert told.limit == "cores"
    assert told.rate == pytest.approx(2 / 0.09)
    assert told.seconds == pytest.approx(10 + 10_000 * 0.09 / 2)
    assert told.core_hours == pytest.approx(2 * told.seconds / 3600)
    assert (told.gpu_hours, told.cores_per_gpu, told.price) == (0, None, None)
    assert told.disk_bytes == 50_000_000
    assert told.memory_bytes == 2 * 10**9


def test_start_and_end_stand_beside_the_images() -> None:
    bare, whole = (
        forecast(COSTS, 10_000, Machine(cores=2, workers=2, **more))
        for more in ({}, {"start_s": 30.0, "first": 32, "end_s": 4.0})
    )
    assert whole.rate == bare.rate
    assert whole.seconds == pytest.approx(bare.seconds + 34 - 32 / bare.rate)
    few = forecast(COSTS, 8, Machine(cores=2, workers=2, start_s=30.0, first=32, end_s=4.0))
    assert few.seconds == 34, "the first images are a part of the start"


@pytest.mark.parametrize(("images", "rows"), [(10_000, 1000), (400, 400)])
def test_one_core_has_the_last_file_to_itself(images: int, rows: int) -> None:
    bare, whole = (forecast(COSTS, images, Machine(cores=4, workers=4, last_file=last)) for last in (0, 1000))
    assert whole.seconds - bare.seconds == pytest.approx(rows * 0.005 * 3 / 4)


def test_workers_that_start_late_take_their_start_from_all_cores() -> None:
    bare, whole = (forecast(COSTS, 10_000, Machine(cores=4, workers=4, late_workers=late)) for late in (0, 2))
    assert whole.seconds - bare.seconds == pytest.approx(2 * 5.0 / 4)


def test_what_the_engine_takes_is_taken_from_the_cores() -> None:
    machine = Machine(cores=2, workers=2, own_cores=0.2, own_s=0.01)
    assert forecast(COSTS, 10_000, machine).rate == pytest.approx(1.8 / (0.09 + 0.01))
    beside_gpus = Machine(cores=2, workers=1, gpus=1, gpu_rate=1000.0, own_cores=0.2, own_s=0.01)
    assert forecast(COSTS, 10_000, beside_gpus).rate == pytest.approx(1.8 / (0.01 + 0.01))


def test_few_workers_leave_cores_idle() -> None:
    told = forecast(COSTS, 10_000, Machine(cores=16, workers=2))
    assert told.limit == "model workers"
    assert told.rate == pytest.approx(2 / 0.08)


def test_gpus_leave_everything_else_to_the_cores() -> None:
    machine = Machine(cores=16, workers=1, gpus=2, gpu_rate=500.0, core_price=0.5, gpu_price=3.0)
    told = forecast(COSTS, 1_000_000, machine)
    assert told.limit == "GPUs"
    assert told.rate == 1000
    assert told.cores_per_gpu == pytest.approx(5.0)
    assert told.price == pytest.approx((16 * 0.5 + 2 * 3.0) * 1000 / 3600)
    assert forecast(COSTS, 1_000_000, Machine(cores=4, workers=1, gpus=2, gpu_rate=500.0)).limit == "cores"


def test_a_gpu_needs_a_speed() -> None:
    with pytest.raises(ValueError, match="of a GPU"):
        forecast(COSTS, 10, Machine(cores=4, workers=1, gpus=1))


def test_different_phrases_grow_with_a_power_of_the_images() -> None:
    """1.5 times as many whenever the images double."""
    for doublings in range(5):
        assert texts_in(COSTS, 100 * 2**doublings) == pytest.approx(300 * 1.5**doublings)


@pytest.mark.parametrize(("half", "whole", "many"), [(0, 0, 0.0), (7, 7, 7.0), (1, 300, 3000.0)])
def test_without_growth_without_phrases_and_never_faster_than_the_images(half: int, whole: int, many: float) -> None:
    from dataclasses import replace

    assert texts_in(replace(COSTS, half_texts=half, texts=whole), 1000) == pytest.approx(many)


def test_every_worker_meets_the_phrases_for_itself() -> None:
    from dataclasses import replace

    costs = replace(COSTS, text_s=0.01)
    one, two = (forecast(costs, 1600, Machine(cores=count, workers=count)) for count in (1, 2))
    assert one.rate == pytest.approx(1 / (0.09 + 0.01 * texts_in(COSTS, 1600) / 1600))
    assert two.rate == pytest.approx(2 / (0.09 + 0.01 * texts_in(COSTS, 800) / 800))
    assert two.rate < 2 * one.rate
