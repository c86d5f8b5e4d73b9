"""The engine of one plain process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.stage_calls import read_records, rows_per_call, run_stages, samples_in, set_up, take_batch
from stages.contract.records import Record, is_among
from stages.contract.schema import records_to_rows
from stages.contract.stage import Stage
from stages.write import ShardWriter

if TYPE_CHECKING:
    from pipeline.decisions import Run, Session
    from pipeline.engines import AnswerT
    from pipeline.steps import Steps


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
        rows_per_file = self.run.config.output.rows_per_file
        # A run that is stopped writes the rows that it has, so that the same command does not
        # compute them again.
        with (
            set_up([stage for stage in steps.stages if stage not in first_stages]),
            closing(ShardWriter(folder.data, rows_per_file, folder.check_holder)) as writer,
        ):
            if first_records:
                self._write([steps.regions_stage], list(first_records), writer)
            records = (record for record in self._read() if not is_among(record.sample.key, keys))
            rows = rows_per_call(steps.model_stage)
            while batch := take_batch(records, rows):
                self._write(steps.stages, batch, writer)
                del batch  # its images, before the next ones are read

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
