"""A stage runs one batch ahead of its device: a stand-in that says what it is told, and fails when it is asked to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.engines.inline import call_rows
from stages.contract.errors import ResourceError
from stages.contract.records import HeatMap, Record
from stages.explain.base import Explained
from stages.explain.grad_eclip import GradEclipConfig
from stages.explain.stage import AHEAD, ExplainStage, ExplainStageConfig
from stages.shared.model.config import ModelConfig
from tests.stages.explain.test_stage import make_record

OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ...")
LATE = RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported")
BROKEN = RuntimeError("CUDA error: device-side assert triggered")


class TalkingDevice:
    """Takes the place of an explainer.

    Attributes:
        said: What it was told, in order: "launch 0", "wait 0" and so on, by number of the batch.
        sizes: Images of each batch.
        faults: What it was told -> what it raises then.
    """

    def __init__(self, faults: dict[str, RuntimeError] | None = None) -> None:
        self.said: list[str] = []
        self.sizes: list[int] = []
        self.faults = faults or {}
        self.learnt: list[list[str]] = []

    def learn(self, phrases: Sequence[Sequence[str]]) -> None:
        self.learnt.append([text for own in phrases for text in own])

    def hears(self, what: str) -> None:
        self.said.append(what)
        if what in self.faults:
            raise self.faults[what]

    def started(self, images: Sequence[Any], phrases: Sequence[Sequence[str]]) -> UnderWay:
        number = len(self.sizes)
        self.sizes.append(len(images))
        self.hears(f"launch {number}")
        return UnderWay(self, number, images, phrases)


@dataclass
class UnderWay:
    device: TalkingDevice
    number: int
    images: Sequence[Any]
    phrases: Sequence[Sequence[str]]
    embedding: None = None

    def wait(self) -> Explained:
        self.device.hears(f"wait {self.number}")
        maps = [
            [HeatMap(text=text, values=np.ones((1, 1), np.float32), similarity=float(image.sum()), fault="")]
            for image, (text,) in zip(self.images, [own or [""] for own in self.phrases], strict=True)
        ]
        return Explained(maps, None)


def stage_on(device: TalkingDevice, batch_size: int) -> ExplainStage:
    stage = ExplainStage(ExplainStageConfig(model=ModelConfig(batch_size=batch_size)))
    stage._batch_size = batch_size
    stage._explainer = device  # type: ignore[assignment]
    return stage


def records(count: int) -> list[Record]:
    return [make_record(number, (f"dog {number}",)) for number in range(count)]


def assert_answered(answers: list[Record], count: int) -> None:
    """Each record has the map of its own pixels and phrase."""
    assert [[(each.text, each.similarity) for each in answer.heat_maps] for answer in answers] == [
        [(f"dog {number}", float(record.pixels.rgb.sum()))]
        for number, record in enumerate(records(count))
        if record.pixels is not None
    ]


def most_under_way(said: Sequence[str]) -> int:
    """The largest number of batches that were launched and not waited for."""
    found = under_way = 0
    for what in said:
        under_way += 1 if what.startswith("launch") else -1
        found = max(found, under_way)
    return found


def test_the_next_batch_is_launched_before_the_last_one_is_waited_for() -> None:
    device = TalkingDevice()
    assert_answered(stage_on(device, 8).process(records(40)), 40)
    assert device.said == [
        *("launch 0", "launch 1", "wait 0", "launch 2", "wait 1"),
        *("launch 3", "wait 2", "launch 4", "wait 3", "wait 4"),
    ]
    assert device.sizes == [8] * 5, "an image is computed once"
    assert most_under_way(device.said) == AHEAD == 2


def test_nothing_is_under_way_between_calls() -> None:
    device = TalkingDevice()
    stage = stage_on(device, 8)
    for _ in range(2):
        assert_answered(stage.process(records(8)), 8)
    assert device.said == ["launch 0", "wait 0", "launch 1", "wait 1"]


def test_both_sizes_of_a_remainder_are_launched_before_either_is_waited_for() -> None:
    device = TalkingDevice()
    assert_answered(stage_on(device, 16).process(records(19)), 19)
    assert device.said == ["launch 0", "launch 1", "launch 2", "wait 0", "wait 1", "wait 2"]
    assert device.sizes == [16, 16, 4]


def test_phrases_of_a_small_batch_are_learnt_with_those_of_the_next_and_each_once() -> None:
    for batch_size, wanted in ((8, [32, 18]), (64, [50]), (40, [40, 10])):
        device = TalkingDevice()
        stage_on(device, batch_size).process(records(50))
        assert [len(texts) for texts in device.learnt] == wanted
        assert [text for texts in device.learnt for text in texts] == [f"dog {number}" for number in range(50)]


@pytest.mark.parametrize("error", [OUT_OF_MEMORY, LATE], ids=["at once", "late"])
@pytest.mark.parametrize("what", ["launch 0", "wait 0", "launch 1", "wait 1", "launch 2", "wait 2"])
def test_memory_that_is_full_at_launch_or_later_halves_the_batch_once(
    what: str, error: RuntimeError, caplog: pytest.LogCaptureFixture
) -> None:
    device = TalkingDevice({what: error})
    stage = stage_on(device, 8)
    assert_answered(stage.process(records(24)), 24)
    failed = device.said.index(what)
    waited = [each for each in device.said[:failed] if each.startswith("wait")]
    assert device.said.count(what) == 1
    before = [int(each.split()[1]) for each in device.said[: failed + 1] if each.startswith("launch")]
    assert {device.sizes[number] for number in before} == {8}
    assert set(device.sizes[len(before) :]) == {4}, "what was under way is computed again in halves"
    assert sum(device.sizes[len(before) :]) == 24 - 8 * len(waited), "what is answered is not"
    assert most_under_way(device.said[failed + 1 :]) <= AHEAD
    assert [record.message for record in caplog.records] == ["GPU memory is full: going on with batches of 4 images"]


@pytest.mark.parametrize("what", ["launch 0", "wait 0", "launch 1", "wait 1"])
def test_another_fault_is_raised_wherever_it_shows(what: str) -> None:
    device = TalkingDevice({what: BROKEN})
    stage = stage_on(device, 8)
    with pytest.raises(RuntimeError, match="device-side assert"):
        stage.process(records(24))
    assert device.said[-1] == what, "nothing is launched behind it"
    device.faults.clear()
    assert_answered(stage.process(records(24)), 24)


@pytest.mark.parametrize("what", ["launch 1", "wait 0"])
def test_two_images_that_do_not_fit_together_are_computed_one_behind_the_other(what: str) -> None:
    device = TalkingDevice({what: OUT_OF_MEMORY})
    assert_answered(stage_on(device, 1).process(records(3)), 3)
    after = device.said[device.said.index(what) + 1 :]
    assert most_under_way(after) == 1


@pytest.mark.parametrize("what", ["launch", "wait"])
def test_an_image_that_does_not_fit_alone_is_refused(what: str) -> None:
    device = TalkingDevice({f"{what} {number}": OUT_OF_MEMORY for number in range(99)})
    with pytest.raises(ResourceError, match=r"does not hold one image with 1 phrases: .* \(CUDA out of memory"):
        stage_on(device, 4).process(records(9))
    assert device.sizes[-1] == 1


@pytest.mark.parametrize(
    ("variant", "batch_size", "cpu", "cuda"),
    [
        ("recommended", None, 32, 256),
        ("recommended", 24, 48, 96),
        ("authors", None, 32, 32),
    ],
)
def test_a_gpu_gets_several_batches_a_call_and_a_cpu_what_it_got(variant: Any, batch_size: Any, cpu, cuda) -> None:
    config = ExplainStageConfig(model=ModelConfig(batch_size=batch_size), explainer=GradEclipConfig(variant=variant))
    stage = ExplainStage(config)
    assert [call_rows(stage, "cpu"), call_rows(stage, "cuda")] == [cpu, cuda]
