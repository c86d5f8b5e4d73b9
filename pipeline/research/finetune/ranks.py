"""Several processes that train one model as if they were one process.

Each rank computes the features of its part of the batch, all ranks exchange them, and each rank
computes the loss of the whole batch. Only the rank's own features have gradients in it, so the
sum of all ranks' gradients is the gradient of the loss. A value that is no feature of an image
or text, such as a temperature, has a gradient on the first rank only (`with_one_gradient`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from phrasebox.stages.contract.errors import PhraseboxError


@dataclass(frozen=True, slots=True)
class RankGroup:
    """This process in the group that trains together.

    Attributes:
        rank: Its number, 0 .. size - 1.
        size: Number of processes.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_leader(self) -> bool:
        """Whether this is the rank that writes files and messages."""
        return self.rank == 0

    def gather_rows(self, rows: Tensor) -> Tensor:
        """Return the rows of all ranks, in order; ranks may have different numbers.

        Only this rank's have gradients.
        """
        if self.size == 1:
            return rows
        counts: list[int] = self.gather_objects(len(rows))
        padded_rows = rows.detach().new_zeros((max(counts), *rows.shape[1:]))
        padded_rows[: len(rows)] = rows.detach()
        parts = [torch.empty_like(padded_rows) for _ in counts]
        dist.all_gather(parts, padded_rows)
        parts_of_ranks = [part[:count] for part, count in zip(parts, counts, strict=True)]
        parts_of_ranks[self.rank] = rows
        return torch.cat(parts_of_ranks)

    def gather_objects(self, value: Any) -> list[Any]:
        """Return an object of each rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def gather_items(self, items: list[Any]) -> list[Any]:
        """Return the items of all ranks' lists in one list."""
        return [item for part in self.gather_objects(items) for item in part]

    def broadcast(self, value: Any) -> Any:
        """Return the leading rank's object, on every rank."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]

    @contextmanager
    def share_errors(self) -> Iterator[None]:
        """Raise the PhraseboxError of the block on every rank: otherwise the other ranks would wait for ever.

        The block itself exchanges nothing.
        """
        failure: PhraseboxError | None = None
        try:
            yield
        except PhraseboxError as error:
            failure = error
        failures = [error for error in self.gather_objects(failure) if error is not None]
        if failures:
            raise failure or failures[0]

    def with_one_gradient(self, value: Tensor) -> Tensor:
        """Return a value, equal on all ranks, that has a gradient on the first rank only."""
        return value if self.is_leader else value.detach()

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Give each parameter the sum of its gradients over all ranks."""
        if self.size == 1:
            return
        reductions = []
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            reductions.append(dist.all_reduce(parameter.grad, async_op=True))
        for reduction in reductions:
            reduction.wait()


@contextmanager
def join_group(device: torch.device) -> Iterator[RankGroup]:
    """Join the initialised group of processes (Ray Train), or the group of torchrun's environment variables.

    A group of torchrun is destroyed at the end of the block. Without a group, this process is
    the only rank.
    """
    if dist.is_available() and dist.is_initialized():
        yield RankGroup(dist.get_rank(), dist.get_world_size())
        return
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield RankGroup()
        return
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))  # what `cuda` without a number means
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        timeout=timedelta(minutes=10),
    )
    try:
        yield RankGroup(dist.get_rank(), size)
    finally:
        dist.destroy_process_group()
