"""Who reads what, and in which order.

An epoch is one sequence of rows: the row groups, shuffled over all shards. Every consumer, a worker of a rank, reads
one stretch of it: no two lengths differ by more than one row. Within a stretch, windows of rows are shuffled. All of
it follows from the seed, the epoch and the numbers of ranks and workers, and from no random state elsewhere.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import numpy as np
import torch.distributed
from numpy.typing import NDArray

from stages.contract.errors import ConfigError


def place(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Rank and number of ranks: as given, else of torch.distributed if it is initialised, else of the environment's
    RANK and WORLD_SIZE, which torchrun sets, else 0 of 1.

    Raises ConfigError if only one is given, or if they do not fit together.
    """
    if (rank is None) != (world_size is None):
        raise ConfigError(f"expected rank and world_size together, got {rank} and {world_size}")
    if rank is None or world_size is None:
        rank, world_size = _surroundings()
    if not 0 <= rank < world_size:
        raise ConfigError(f"expected 0 <= rank < world_size, got rank {rank} of {world_size}")
    return rank, world_size


def _surroundings() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    rank, world_size = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    if not rank.isdecimal() or not world_size.isdecimal():
        raise ConfigError(f"expected numbers in RANK and WORLD_SIZE, got {rank!r} and {world_size!r}")
    return int(rank), int(world_size)


def stretch(start: int, stop: int, parts: int, part: int) -> tuple[int, int]:
    """Part `part` of `parts` of the positions from `start` to `stop`, all but equally long."""
    size = stop - start
    return start + size * part // parts, start + size * (part + 1) // parts


def shuffled(count: int, *seeds: int) -> NDArray[np.int64]:
    """0 .. count - 1 in an order that follows from the seeds."""
    return np.random.default_rng(seeds).permutation(count)


def cut(sizes: Sequence[int], start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Positions `start` to `stop` of a sequence of pieces as (piece, first, last): rows `first` to `last` of it.

    Beyond its end the sequence begins anew.
    """
    total = sum(sizes)
    offset = start // total * total if total else 0
    while total and offset < stop:
        for number, size in enumerate(sizes):
            first, last = max(0, start - offset), min(size, stop - offset)
            if first < last:
                yield number, first, last
            offset += size
