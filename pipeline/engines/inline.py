"""The stages in one plain process. Ray's workers, `eval` and the viewer run stages by its functions, too."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from stages.contract.records import Record, is_among
from stages.contract.schema import records_to_rows
from stages.contract.stage import Device, Stage
from stages.read import Piece, Reader, SkippedRow, read_piece
from stages.write import ShardWriter

if TYPE_CHECKING:  # Ray's workers, which import this module, need none of them
    from pipeline.engines import AnswerT, Job
    from pipeline.steps import Steps

BATCH_ROWS: Final = 32
"""The fewest records of a batch: few enough to show progress, many enough to be worth a message."""


def rows_per_batch(model: Stage, device: Device | None = None) -> int:
    """Return how many records travel together: a multiple of `Stage.forward_batch_size`."""
    size = model.forward_batch_size(device)
    return -(-BATCH_ROWS // size) * size


def rows_per_call(model: Stage, device: Device | None = None) -> int:
    """Return how many records the model gets at once: whole forward batches, see `Stage.batches_per_call`."""
    size = model.forward_batch_size(device)
    return -(-max(BATCH_ROWS, size * model.batches_per_call(device)) // size) * size


def samples_in(pieces: Sequence[Piece]) -> int | None:
    """Return the number of samples in pieces; None if the reader does not know it before reading."""
    counts = [piece.samples for piece in pieces]
    return None if None in counts else sum(count for count in counts if count is not None)


def read_records(
    reader: Reader, piece: Piece, on_end: Callable[[int, Counter[str]], Any]
) -> Iterator[Record]:
    """Yield the records of an input piece.

    on_end: Called after the last record with the number of samples, and of rows without one by
    reason.
    """
    samples = 0
    skipped: Counter[str] = Counter()
    for item in read_piece(reader, piece):
        if isinstance(item, SkippedRow):
            skipped[item.reason] += 1
        else:
            samples += 1
            yield Record.start(item)
    on_end(samples, skipped)


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


@contextmanager
def start(job: Job) -> Iterator[InlineEngine]:
    """Set up the stages of a job for the block, but for the last one."""
    job.report.expected = samples_in(job.pieces)
    job.report.previous_rows = len(job.folder.journal.keys)
    with set_up(job.steps.first_stages):
        yield InlineEngine(job)


@dataclass(frozen=True, slots=True)
class InlineEngine:
    """The engine of this process, see `pipeline.engines.Engine`."""

    job: Job

    def compute_first(self, compute: Callable[[Steps], AnswerT]) -> AnswerT:
        """See `Engine.compute_first`."""
        return compute(self.job.steps)

    def make_rows(self, steps: Steps, first_records: Sequence[Record] = ()) -> None:
        """See `Engine.make_rows`."""
        job = self.job
        keys = job.folder.journal.keys_with(first_records)
        first_stages = job.steps.first_stages
        # A run that is stopped writes the rows that it has, so that the same command does not
        # compute them again.
        with (
            set_up([stage for stage in steps.stages if stage not in first_stages]),
            closing(ShardWriter(job.folder.data, job.output.rows_per_file)) as writer,
        ):
            if first_records:
                self._write([steps.regions_stage], list(first_records), writer)
            records = (record for record in self._read() if not is_among(record.sample.key, keys))
            rows = rows_per_call(steps.model_stage)
            while batch := list(islice(records, rows)):
                self._write(steps.stages, batch, writer)

    def _read(self) -> Iterator[Record]:
        job = self.job
        for number, piece in enumerate(job.pieces):
            yield from read_records(job.reader, piece, partial(job.report.read, number))

    def _write(self, stages: Sequence[Stage], batch: list[Record], writer: ShardWriter) -> None:
        report = self.job.report
        outputs = run_stages(stages, batch, report.stage)
        writer.write(records_to_rows(outputs, self.job.output.columns))
        report.rows(len(outputs), sum(record.error is not None for record in outputs))
        self.job.on_progress()
