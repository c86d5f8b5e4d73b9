"""The simulated device keeps CUDA's rules: each of these breaks one, and is seen."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stages.shared.model.device import PendingTransfer, pick_device, pixels_on, to_device
from tests.cuda.simulated import SimulatedCuda


@pytest.mark.parametrize(
    "broken",
    [
        lambda there, here: there + here,
        lambda there, here: here @ there,
        lambda there, here: torch.cat([there, here]),
        lambda there, here: here[there.long()],
        lambda there, here: torch.nn.Linear(3, 3)(there),
    ],
    ids=["sum", "product", "cat", "index on the device of a tensor of the host", "module of the host"],
)
def test_operands_on_two_devices_are_rejected(broken, cuda: SimulatedCuda) -> None:
    here = torch.ones(3, 3)
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        broken(here.to("cuda"), here)


@pytest.mark.parametrize(
    "wait",
    [
        lambda there: there.sum().item(),
        lambda there: bool(there.any()),
        lambda there: there.cpu(),
        lambda there: there.tolist(),
        lambda there: there.nonzero(),
        lambda there: there[there > 0],
        lambda there: there[torch.tensor([0])],
        lambda there: torch.ones(3).to(there.device),
        lambda there: torch.ones(3).to(there.device, non_blocking=True),
        lambda there: torch.tensor([1.0], device=there.device),
        lambda there: torch.ones(3).copy_(there, non_blocking=True),
    ],
    ids=["item", "bool", "cpu", "tolist", "nonzero", "mask", "index", "to", "unpinned to", "tensor", "unpinned copy"],
)
def test_waits_are_counted(wait, cuda: SimulatedCuda) -> None:
    there = torch.ones(3, device="cuda")
    assert not cuda.waits
    wait(there)
    assert sum(cuda.waits.values()) == 1


def test_copies_by_pinned_memory_are_no_waits_and_there_is_one_for_all_answers(cuda: SimulatedCuda) -> None:
    there = to_device(torch.arange(3.0), pick_device("cuda"))
    way = PendingTransfer([there + 1, pixels_on([np.ones((2, 2, 3), np.uint8)], there.device)])
    assert not cuda.waits
    first, second = way.wait()
    assert (first.tolist(), second.sum()) == ([1, 2, 3], 12)
    assert cuda.waits == {"event": 1}
    assert cuda.pins(first)
    assert not cuda.pins(first.copy())
    assert cuda.faults == []


def test_an_answer_that_is_read_before_its_event_is_no_answer(cuda: SimulatedCuda) -> None:
    way = PendingTransfer([torch.ones(3, device="cuda"), torch.zeros(3, dtype=torch.int64, device="cuda")])
    early = [copy.clone() for copy in way._copies]
    assert early[0].isnan().all()
    assert early[1].tolist() == [1, 1, 1]
    assert [each.tolist() for each in way.wait()] == [[1, 1, 1], [0, 0, 0]]
    # The device had made the answer by then: what it is told later does not change it.
    there = torch.ones(3, device="cuda")
    way = PendingTransfer([there])
    there.add_(1)
    assert way.wait()[0].tolist() == [1, 1, 1]


def test_an_event_waits_for_what_was_put_before_it_and_not_for_what_came_later(cuda: SimulatedCuda) -> None:
    first, second = (PendingTransfer([torch.full((2,), value, device="cuda")]) for value in (1.0, 2.0))
    assert first.wait()[0].tolist() == [1, 1]
    assert second._copies[0].isnan().all()
    assert second.wait()[0].tolist() == [2, 2]


def test_a_pinned_buffer_that_changes_under_way_is_a_fault(cuda: SimulatedCuda) -> None:
    for changes in (False, True):
        buffer = torch.zeros(3).pin_memory()
        assert buffer.is_pinned()
        there = buffer.to("cuda", non_blocking=True)
        if changes:
            buffer.fill_(7)
        PendingTransfer([there]).wait()
        assert bool(cuda.faults) == changes
    cuda.faults.clear()  # else the fixture itself would fail
