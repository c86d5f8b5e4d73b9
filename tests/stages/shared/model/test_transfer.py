from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from stages.shared.model.device import OnTheWay, pixels_on, to_device

CPU = torch.device("cpu")


def test_on_a_cpu_nothing_is_copied() -> None:
    values = torch.arange(6.0).reshape(2, 3)
    assert to_device(values, CPU) is values
    (arrived,) = OnTheWay([values]).wait()
    assert np.shares_memory(arrived, values.numpy())


def test_pixels_of_one_size_are_stacked() -> None:
    images = [np.random.default_rng(number).integers(0, 256, (2, 5, 3), dtype=np.uint8) for number in range(3)]
    stacked = pixels_on(images, CPU)
    assert stacked.dtype == torch.uint8
    np.testing.assert_array_equal(stacked.numpy(), np.stack(images))
    with pytest.raises(ValueError, match="all input arrays must have the same shape"):
        pixels_on([images[0], images[1][:1]], CPU)
    with pytest.raises(ValueError, match="expected one image or more"):
        pixels_on([], CPU)


class StandIn:
    """A tensor of a GPU or of pinned memory that notes what is done with it."""

    def __init__(self, said: list[str], device: str) -> None:
        self.said, self.device = said, torch.device(device)
        self.shape, self.dtype = (2,), torch.float32

    def detach(self) -> StandIn:
        return self

    def pin_memory(self) -> StandIn:
        self.said.append("pin")
        return self

    def to(self, device: torch.device, *, non_blocking: bool = False) -> StandIn:
        self.said.append(f"to {device}, {'goes on' if non_blocking else 'waits'}")
        return self

    def copy_(self, _: Any, *, non_blocking: bool = False) -> StandIn:
        self.said.append(f"copy, {'goes on' if non_blocking else 'waits'}")
        return self

    def numpy(self) -> np.ndarray:
        self.said.append("read")
        return np.zeros((2, 2, 2, 3), np.uint8)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is done with a GPU, which is a stand-in."""
    said: list[str] = []

    class Event:
        def __init__(self, *, blocking: bool = False) -> None:
            self.sleeps = blocking

        def record(self, stream: str) -> None:
            said.append(f"event on {stream}")

        def synchronize(self) -> None:
            said.append("sleep" if self.sleeps else "spin")

    def empty(shape: Sequence[int], *, dtype: torch.dtype, pin_memory: bool) -> StandIn:
        said.append("pinned" if pin_memory else "ordinary")
        return StandIn(said, "cpu")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"the stream of {device}")
    monkeypatch.setattr(torch, "empty", empty)
    return said


def test_on_a_gpu_copies_use_pinned_memory_and_nobody_waits_before_wait(said: list[str]) -> None:
    copies: Any = [StandIn(said, "cuda:1"), StandIn(said, "cuda:1")]
    under_way = OnTheWay(copies)
    assert said == ["pinned", "copy, goes on", "pinned", "copy, goes on", "event on the stream of cuda:1"]
    del said[:]
    assert len(under_way.wait()) == 2
    assert said == ["sleep", "read", "read"], "one wait for all, and before anything is read"


def test_what_goes_to_a_gpu_goes_from_pinned_memory(said: list[str]) -> None:
    values: Any = StandIn(said, "cpu")
    to_device(values, torch.device("cuda"))
    assert said == ["pin", "to cuda, goes on"]
    del said[:]
    pixels_on([np.zeros((2, 2, 3), np.uint8)] * 2, torch.device("cuda"))
    assert said == ["pinned", "read", "to cuda, goes on"]
