"""Several processes that train one model as if they were one process.

Each rank computes the features of its part of the batch, all ranks exchange them, and each computes the loss of the
whole batch, in which its own features alone carry gradients. The sum of the ranks' gradients is then the gradient of
that loss. A value that is no feature of an image or text, such as a temperature, carries a gradient on the first rank
only (`once`).
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

from stages.contract.errors import PhraseboxError


@dataclass(frozen=True, slots=True)
class RankGroup:
    """This process among those that train together: its number, 0 .. size - 1, and how many there are."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the rank that writes files and messages."""
        return self.rank == 0

    def everyone(self, own: Tensor) -> Tensor:
        """Return the rows of all ranks, in order; their numbers may differ. Only own rows have gradients."""
        if self.size == 1:
            return own
        counts: list[int] = self.objects(len(own))
        sent = own.detach().new_zeros((max(counts), *own.shape[1:]))
        sent[: len(own)] = own.detach()
        parts = [torch.empty_like(sent) for _ in counts]
        dist.all_gather(parts, sent)
        cut = [part[:count] for part, count in zip(parts, counts, strict=True)]
        cut[self.rank] = own
        return torch.cat(cut)

    def objects(self, own: Any) -> list[Any]:
        """Return an object of each rank."""
        if self.size == 1:
            return [own]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, own)
        return found

    def items(self, own: list[Any]) -> list[Any]:
        """Return the items of all ranks' lists in one list."""
        return [item for part in self.objects(own) for item in part]

    def broadcast(self, own: Any) -> Any:
        """Return the leading rank's object, on every rank."""
        if self.size == 1:
            return own
        sent = [own]
        dist.broadcast_object_list(sent)
        return sent[0]

    @contextmanager
    def together(self) -> Iterator[None]:
        """Raise on every rank the PhraseboxError that a rank raises in the block: otherwise the others would wait.

        The block itself exchanges nothing.
        """
        failure: PhraseboxError | None = None
        try:
            yield
        except PhraseboxError as error:
            failure = error
        failures = [each for each in self.objects(failure) if each is not None]
        if failures:
            raise failure or failures[0]

    def once(self, value: Tensor) -> Tensor:
        """Return a value that is equal on all ranks, with its gradient on the first rank alone."""
        return value if self.leads else value.detach()

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Give each parameter the sum of its gradients over all ranks."""
        if self.size == 1:
            return
        under_way = []
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            under_way.append(dist.all_reduce(parameter.grad, async_op=True))
        for reduction in under_way:
            reduction.wait()


@contextmanager
def joined(device: torch.device) -> Iterator[RankGroup]:
    """Join the group of processes that is initialised, as Ray Train does it, or that torchrun's variables describe.

    The latter is left at the end of the block. If there is neither, this process is alone.
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
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(minutes=10))
    try:
        yield RankGroup(dist.get_rank(), size)
    finally:
        dist.destroy_process_group()
