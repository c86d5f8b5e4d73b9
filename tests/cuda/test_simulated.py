"""The simulated device keeps CUDA's rules: each of these breaks one, and is seen."""

from __future__ import annotations

import numpy as np
import torch

from phrasebox.stages.model.device import PendingTransfer, pick_device, pixels_on, to_device
from tests.cuda.simulated import SimulatedCuda


def test_copies_by_pinned_memory_are_no_waits_and_there_is_one_for_all_answers(cuda: SimulatedCuda) -> None:
    tensor = to_device(torch.arange(3.0), pick_device("cuda"))
    way = PendingTransfer([tensor + 1, pixels_on([np.ones((2, 2, 3), np.uint8)], tensor.device)])
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


def test_a_pinned_buffer_that_changes_under_way_is_a_fault(cuda: SimulatedCuda) -> None:
    for changes in (False, True):
        buffer = torch.zeros(3).pin_memory()
        assert buffer.is_pinned()
        tensor = buffer.to("cuda", non_blocking=True)
        if changes:
            buffer.fill_(7)
        PendingTransfer([tensor]).wait()
        assert bool(cuda.faults) == changes
    cuda.faults.clear()  # else the fixture itself would fail
