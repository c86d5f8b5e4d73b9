"""Calls of stages in this process: how many records at once, from reading to the last stage."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Final

from phrasebox.stages.contract.records import Record, Sample
from phrasebox.stages.contract.stage import Device, Stage
from phrasebox.stages.read import Piece, Reader, SkippedRow, read_piece
from phrasebox.stages.read.base import BATCH_BYTES

BATCH_ROWS: Final = 32
"""The fewest records of a batch: few enough to show progress, many enough to be worth a message."""


FORWARD_ROWS: Final = 8
"""The fewest records whose loss costs little on a CPU, where a large model takes seconds for each."""


def rows_per_batch(model: Stage, device: Device | None = None) -> int:
    """Return how many records travel together: a multiple of `Stage.forward_batch_size`."""
    size = model.forward_batch_size(device)
    return -(-BATCH_ROWS // size) * size


def rows_per_call(model: Stage, device: Device | None = None) -> int:
    """Return how many records the model gets at once: whole forward batches, see `Stage.batches_per_call`."""
    size = model.forward_batch_size(device)
    return -(-max(BATCH_ROWS, size * model.batches_per_call(device)) // size) * size


def rows_per_forward(model: Stage) -> int:
    """Return how many records to give a model that is set up where each answer counts, and not the speed of a run."""
    size = model.forward_batch_size()
    return -(-FORWARD_ROWS // size) * size * model.batches_per_call()


def samples_in(pieces: Sequence[Piece]) -> int | None:
    """Return the number of samples in pieces; None if the reader does not know it before reading."""
    counts = [piece.samples for piece in pieces]
    return None if None in counts else sum(count for count in counts if count is not None)


def read_records(reader: Reader, piece: Piece, skipped: Counter[str]) -> Iterator[Record]:
    """Yield the records of an input piece, and count its rows without a sample in `skipped`, by reason."""
    for item in read_piece(reader, piece):
        if isinstance(item, SkippedRow):
            skipped[item.reason] += 1
        else:
            yield Record.start(item)


def take_batch(records: Iterator[Record], rows: int) -> list[Record]:
    """Return the next records: `rows` at most, fewer at the end, or where they reach `BATCH_BYTES` together."""
    batch: list[Record] = []
    size = 0
    while len(batch) < rows and size < BATCH_BYTES and (record := next(records, None)) is not None:
        batch.append(record)
        size += bytes_of(record.sample)
    return batch


def bytes_of(sample: Sample) -> int:
    """Return the bytes that a sample holds of its image and, about, of its captions."""
    return len(sample.image.content or b"") + sum(map(len, sample.captions))


@contextmanager
def set_up(stages: Sequence[Stage]) -> Iterator[None]:
    """Set stages up for the block, and tear them down at its end, also after an exception."""
    with ExitStack() as ends:
        for stage in stages:
            stage.setup()
            ends.callback(stage.teardown)
        yield


def run_stages(
    stages: Sequence[Stage], records: list[Record], on_progress: Callable[..., Any] = lambda *_: None
) -> list[Record]:
    """Return a batch of records after stages that are set up, in order. Raise RuntimeError if one does not answer all.

    on_progress: Called after each stage with the arguments of `Report.stage`.
    """
    for stage in stages:
        start = time.perf_counter()
        answers = stage.process(records)
        if len(answers) != len(records):
            raise RuntimeError(f"stage {stage.name} answered {len(answers)} of {len(records)} records")
        on_progress(stage.name, len(records), time.perf_counter() - start, stage.take_forwards())
        records = answers
    return records
