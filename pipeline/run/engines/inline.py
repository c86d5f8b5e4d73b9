"""The engine of one plain process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from phrasebox.pipeline.run.engines.trials import FIRST_IMAGES, MOST_DEATHS, Trials, given_up
from phrasebox.pipeline.run.stage_calls import (
    read_records,
    rows_per_call,
    run_stages,
    samples_in,
    set_up,
    take_batch,
)
from phrasebox.pipeline.terminal import counted
from phrasebox.stages.contract.records import Record, is_among
from phrasebox.stages.contract.schema import records_to_rows
from phrasebox.stages.contract.stage import Stage
from phrasebox.stages.write import ShardWriter

if TYPE_CHECKING:
    from phrasebox.pipeline.output.first_images import OnProgress
    from phrasebox.pipeline.run.decisions import Run, Session
    from phrasebox.pipeline.run.engines import AnswerT
    from phrasebox.pipeline.run.steps import AnySteps


@contextmanager
def start(run: Run, session: Session, _: None = None) -> Iterator[InlineEngine]:
    """Set up the stages of a run for the block, but for the last one."""
    folder = session.folder
    session.report.expected = samples_in(run.pieces)
    session.report.previous_rows = len(folder.journal.keys)
    trials = Trials(folder.in_hand, folder.journal.keys)
    if trials.suspects:
        session.report.note(
            f"the process before died with {counted(trials.suspects, 'sample')} in hand: they are computed one by one"
        )
    with ExitStack() as ends:
        ends.callback(trials.take, ())
        ends.enter_context(set_up(run.steps.first_stages))
        yield InlineEngine(run, session, trials)


@dataclass(frozen=True, slots=True)
class InlineEngine:
    """The engine of this process, see `phrasebox.pipeline.run.engines.Engine`."""

    run: Run
    session: Session
    trials: Trials

    def compute_first(self, compute: Callable[[AnySteps, OnProgress], AnswerT]) -> AnswerT | None:
        """See `Engine.compute_first`."""

        before: int | None = None

        def on_progress(done: int, total: int) -> None:
            nonlocal before
            if before is not None and done > before and self.trials.deaths_of(FIRST_IMAGES):
                self.trials.forget(
                    FIRST_IMAGES
                )  # what is computed is kept: the next process goes on behind it
                self.trials.take([FIRST_IMAGES])
            before = done
            self.session.report.look(done, total)
            self.session.update()

        if self.trials.deaths_of(FIRST_IMAGES) >= MOST_DEATHS:
            return None
        self.trials.take([FIRST_IMAGES])
        answer = compute(self.run.steps, on_progress)
        self.trials.forget(FIRST_IMAGES)
        return answer

    def make_rows(self, steps: AnySteps, first_records: Sequence[Record] = ()) -> None:
        """See `Engine.make_rows`."""
        folder = self.session.folder
        keys = folder.journal.keys_with(first_records)
        first_stages = self.run.steps.first_stages
        rows_per_file = self.run.rows_per_file
        # A run that is stopped writes the rows that it has, so that the same command does not
        # compute them again.
        shards = ShardWriter(
            folder.data,
            rows_per_file,
            folder.check_holder,
            origin=folder.origin,
            on_written=folder.note_shard,
        )
        with ExitStack() as ends:
            ends.callback(folder.journal.flush)
            ends.enter_context(set_up([stage for stage in steps.stages if stage not in first_stages]))
            writer = ends.enter_context(closing(shards))
            if first_records:
                self._write(steps.last_stages, list(first_records), writer)
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
        is_suspect = any(self.trials.deaths_of(record.sample.key) for record in batch)
        for group in [[record] for record in batch] if is_suspect else [batch]:
            outputs = self._run_stages(stages, group)
            writer.write(records_to_rows(outputs, self.run.config.output.columns))
            report.rows(len(outputs), sum(record.error is not None for record in outputs))
            self.session.update()

    def _run_stages(self, stages: Sequence[Stage], group: list[Record]) -> list[Record]:
        """Return records after stages; a single one at which processes died, as `MOST_DEATHS` says."""
        sample = group[0].sample
        deaths = self.trials.deaths_of(sample.key)
        if deaths > 1:
            fate = "becomes a row with an error" if deaths >= MOST_DEATHS else "is tried again"
            self.session.report.note(
                f"{deaths} processes died at the sample {sample.sample_id} ({sample.source}): it {fate}"
            )
        if deaths >= MOST_DEATHS:
            detail = f"{deaths} processes died at it, out of memory or by a fault in a library; look at its image"
            return [given_up(group[0], detail)]
        self.trials.take([record.sample.key for record in group])
        return run_stages(stages, group, self.session.report.stage)
