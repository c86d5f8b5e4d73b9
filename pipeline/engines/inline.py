"""The stages in one plain process. Ray's workers, `eval` and the viewer run stages by its functions, too."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from stages.contract.records import Record, is_among
from stages.contract.schema import records_to_rows
from stages.contract.stage import Device, Stage
from stages.read import Piece, Reader, SkippedRow, read_piece
from stages.write import ShardWriter

if TYPE_CHECKING:  # Ray's workers, which import this module, need none of them
    from pipeline.decisions import Run, Session
    from pipeline.engines import AnswerT
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


def read_records(reader: Reader, piece: Piece, skipped: Counter[str]) -> Iterator[Record]:
    """Yield the records of an input piece, and count its rows without a sample in `skipped`, by reason."""
    for item in read_piece(reader, piece):
        if isinstance(item, SkippedRow):
            skipped[item.reason] += 1
        else:
            yield Record.start(item)


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
def start(run: Run, session: Session) -> Iterator[InlineEngine]:
    """Set up the stages of a run for the block, but for the last one."""
    session.report.expected = samples_in(run.pieces)
    session.report.previous_rows = len(session.folder.journal.keys)
    with set_up(run.steps.first_stages):
        yield InlineEngine(run, session)


@dataclass(frozen=True, slots=True)
class InlineEngine:
    """The engine of this process, see `pipeline.engines.Engine`."""

    run: Run
    session: Session

    def compute_first(self, compute: Callable[[Steps], AnswerT]) -> AnswerT:
        """See `Engine.compute_first`."""
        return compute(self.run.steps)

    def make_rows(self, steps: Steps, first_records: Sequence[Record] = ()) -> None:
        """See `Engine.make_rows`."""
        folder = self.session.folder
        keys = folder.journal.keys_with(first_records)
        first_stages = self.run.steps.first_stages
        # A run that is stopped writes the rows that it has, so that the same command does not
        # compute them again.
        with (
            set_up([stage for stage in steps.stages if stage not in first_stages]),
            closing(ShardWriter(folder.data, self.run.config.output.rows_per_file)) as writer,
        ):
            if first_records:
                self._write([steps.regions_stage], list(first_records), writer)
            records = (record for record in self._read() if not is_among(record.sample.key, keys))
            rows = rows_per_call(steps.model_stage)
            while batch := list(islice(records, rows)):
                self._write(steps.stages, batch, writer)

    def _read(self) -> Iterator[Record]:
        for number, piece in enumerate(self.run.pieces):
            samples = 0
            skipped = Counter[str]()
            for record in read_records(self.run.reader, piece, skipped):
                samples += 1
                yield record
            self.session.report.read(number, samples, skipped)

    def _write(self, stages: Sequence[Stage], batch: list[Record], writer: ShardWriter) -> None:
        report = self.session.report
        outputs = run_stages(stages, batch, report.stage)
        writer.write(records_to_rows(outputs, self.run.config.output.columns))
        report.rows(len(outputs), sum(record.error is not None for record in outputs))
        self.session.update()
