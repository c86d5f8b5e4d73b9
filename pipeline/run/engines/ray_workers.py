"""The parts that run in Ray's workers: reading input pieces, and stages over Arrow tables.

A worker that dies (killed for its memory, its node gone, a fault in a decoder) costs no row and
stops no run: Ray gives its batch to another worker, again and again. That is a loss where the
batch itself is to blame. One image that crashes the decoder keeps a run of a million from ever
ending, and Ray 2.60 has no limit for it short of failing the run. So the ledger (`ray_ledger`)
notes which batch is in hand. A batch that comes back is taken one sample at a time, which needs
less memory and shows which sample it is. A single sample becomes a row with an error after
`MOST_DEATHS` deaths of its worker.

Weights do not travel: a stage carries the model's description, with the paths or the tag of its
files, and each worker loads them in `Stage.setup`: `phrasebox.stages.model.load.load`, then
`module.module_of`, which calls `load_into` for files and `_open_tag` for a tag.
"""

from __future__ import annotations

import functools
import gc
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow.compute as pc
import ray
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from phrasebox.pipeline.output.journal import shard_entry, shard_stem
from phrasebox.pipeline.output.shards import keys_of
from phrasebox.pipeline.run.engines.ray_code import CodeVersion, reject_other_code
from phrasebox.pipeline.run.engines.ray_exit import leave_at_exit
from phrasebox.pipeline.run.engines.ray_ledger import Event
from phrasebox.pipeline.run.engines.trials import MOST_DEATHS, given_up
from phrasebox.pipeline.run.stage_calls import (
    BATCH_ROWS,
    read_records,
    run_stages,
    samples_in,
    set_up,
    take_batch,
)
from phrasebox.stages.contract.errors import DeviceFault, InputError, PhraseboxError
from phrasebox.stages.contract.records import Record, is_among
from phrasebox.stages.contract.schema import ColumnOption, records_to_rows
from phrasebox.stages.contract.stage import Stage
from phrasebox.stages.contract.tables import RECORD_SCHEMA, records_to_table, table_to_records
from phrasebox.stages.contract.values import Integers
from phrasebox.stages.files.storage import AnyPath
from phrasebox.stages.read import Piece, Reader
from phrasebox.stages.write import ShardWriter

READ_TASKS: Final = 4000
"""Maximum number of read tasks; each reads several input pieces where there are more. A task
costs Ray about 20 ms, and one whose worker dies is done again as a whole."""

MOST_READ_DEATHS: Final = 10
"""Worker deaths in one read task after which the run fails. Reading needs little memory, so
deaths mostly mean lost nodes; the limit only prevents endless retries."""

WAIT_SECONDS: Final = 0.2  # Pause before a sample asks again whether it may be tried


class StageWorker:
    """Stages in an actor: table in, table out.

    Ray may call it from several threads. The stages see one batch at a time. Meanwhile other threads turn
    tables into records and back, and tell the ledger of their batch. If the worker dies, a batch that waited is
    taken one sample at a time, too, but only samples that the stages had are counted.

    Args:
        stages: A reference to the stages, which are fetched here; only then their modules are
            imported.
        ledger: The handle of the `Ledger`.
        code: The driver's.
        environment: Variables for the libraries of the stages, which read them while they are
            loaded. They are set here and not by Ray (`runtime_env`), which would start a
            process of another kind and leave those that it started beforehand idle.
    """

    def __init__(
        self, stages: Any, ledger: Any, code: CodeVersion, environment: Mapping[str, str] | None = None
    ) -> None:
        self.ledger = ledger
        self._lock = threading.Lock()
        # Raised with the first batch: Ray passes on exceptions of constructors as strings only.
        self.refusal: PhraseboxError | None = None
        leave_at_exit()
        gc.disable()  # it would search the imported modules again and again, and find nothing
        try:
            reject_other_code(code)
            os.environ.update(environment or {})
            self.stages: Sequence[Stage] = ray.get(stages)
            for stage in self.stages:
                stage.setup()
        except PhraseboxError as error:
            self.refusal = error
        finally:
            gc.freeze()
            gc.enable()

    def __call__(self, table: Any) -> Any:
        """Answer a batch."""
        if self.refusal is not None:
            raise self.refusal
        records = table_to_records(table)
        return records_to_table(self.process(records), (records, table))

    def process(self, records: list[Record]) -> list[Record]:
        """Return a batch after the stages."""
        return run_with_retries(self.stages, records, self.ledger, turn=self._lock)


class CaptionWorker(StageWorker):
    """Runs the stages before the model. Subclassed only so that Ray's dashboard shows a separate name."""


class ModelWorker(StageWorker):
    """Runs the model's stage, or the regions stage where it holds a segmenter.

    After a fault of its GPU a process can compute no more, but another one on the same GPU
    mostly can. So it dies, and its batch is repeated as after any other death.
    """

    def process(self, records: list[Record]) -> list[Record]:
        """See `StageWorker.process`."""
        try:
            return super().process(records)
        except DeviceFault as error:
            ray.get(self.ledger.finish.remote("", [("note", (f"a worker was started again: {error}",))]))
            os._exit(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardSpec:
    """The place and the form of an attempt's shards.

    Attributes:
        data: The folder of the shards.
        attempt: The number of the attempt.
        rows_per_file: The most rows of a shard.
        columns: The optional columns.
        check_holder: Raises ResumeError if another run has taken the folder over.
        origin: What the shards say of their run.
    """

    data: AnyPath
    attempt: int
    rows_per_file: int
    columns: Sequence[ColumnOption]
    check_holder: Callable[[], None]
    origin: str


def write_shards(
    stages: Sequence[Stage], ledger: Any, rows: int, spec: ShardSpec, table: Any
) -> Iterator[Any]:
    """Run the stages that are left, if any, over a table, `rows` at a time, and write shards.

    Raise OSError. Yield the shards' entries in the journal.
    """
    leave_at_exit()
    sample_ids = pc.struct_field(table["sample"], "sample_id").to_pylist()
    base = shard_stem(sample_ids, spec.attempt)
    written: list[tuple[Any, list[str]]] = []  # shards, with the sample ids of their rows
    writer = ShardWriter(
        spec.data,
        spec.rows_per_file,
        spec.check_holder,
        name=lambda number: f"{base}-{number}.parquet",
        origin=spec.origin,
        on_written=lambda *parts: written.append(parts),
    )
    with set_up(stages), closing(writer):
        for start in range(0, table.num_rows, rows):
            records = run_with_retries(
                stages, table_to_records(table.slice(start, rows)), ledger, are_rows=True
            )
            writer.write(records_to_rows(records, spec.columns))
    for shard, names in written:
        yield shard_entry(shard, keys_of(names))


def run_with_retries(
    stages: Sequence[Stage],
    records: list[Record],
    ledger: Any,
    *,
    are_rows: bool = False,
    turn: AbstractContextManager[Any] | None = None,
) -> list[Record]:
    """Return a batch of records after the stages, computed one by one if a worker died with this batch in hand.

    are_rows: Whether these records become rows next, and are reported as rows. turn: Held while the stages
    compute, but not while the ledger is asked about the batch.
    """
    events: list[Event] = []

    def on_progress(*arguments: Any) -> None:
        events.append(("stage", arguments))

    work = f"{_name_of(stages)}:{records[0].sample.key if records else ''}+{len(records)}"
    deaths = ray.get(ledger.begin.remote(work))
    with turn or nullcontext():
        if deaths:
            answers = [_run_single(stages, record, on_progress, ledger) for record in records]
        else:
            answers = run_stages(stages, records, on_progress)
    if are_rows:
        events.append(("rows", (len(answers), sum(record.error is not None for record in answers))))
    ledger.finish.remote(work, events)
    return answers


def _name_of(stages: Sequence[Stage]) -> str:
    return stages[0].name if stages else "rows"


def _run_single(
    stages: Sequence[Stage], record: Record, on_progress: Callable[..., None], ledger: Any
) -> Record:
    work = f"{_name_of(stages)}:{record.sample.key}"
    while (deaths := ray.get(ledger.begin_sample.remote(work))) is None:
        time.sleep(WAIT_SECONDS)
    if deaths < MOST_DEATHS or record.error is not None:
        (answer,) = run_stages(stages, [record], on_progress)
    else:
        answer = given_up(
            record,
            f"{deaths} workers died at it in {_name_of(stages)}, out of memory or by a fault in a library; look at its "
            "image, or where many samples say so give workers more memory: fewer of them by engine.cpu_workers or "
            "engine.explain_workers",
        )
    ledger.finish.remote(work)
    return answer


class PieceSource(Datasource):  # type: ignore[misc]  # ray is untyped
    """The input's pieces as read tasks, which give small rows without the pixels of images.

    Args:
        reader: The reader of the input.
        pieces: The pieces to read, with their numbers.
        ledger: The handle of the `Ledger`.
        row_keys: A reference to the sorted keys of samples that have a row already, which are
            left out; None if there are none.
    """

    def __init__(
        self, reader: Reader, pieces: Sequence[tuple[int, Piece]], ledger: Any, row_keys: Any = None
    ) -> None:
        super().__init__()
        self._reader = reader
        self._ledger = ledger
        self._row_keys = row_keys
        size = -(-len(pieces) // READ_TASKS)
        self._groups = [pieces[i : i + size] for i in range(0, len(pieces), size)]

    @property
    def tasks(self) -> int:
        """Number of read tasks."""
        return len(self._groups)

    def get_name(self) -> str:
        """Name in Ray's dashboard."""
        return "read"

    def estimate_inmemory_data_size(self) -> int | None:
        """Unknown before reading."""
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[Any]:
        """Return a task for each piece, or for several pieces where there are thousands."""
        return [
            ReadTask(
                functools.partial(_read, self._reader, group, self._ledger, self._row_keys),
                BlockMetadata(
                    num_rows=samples_in([piece for _, piece in group]),
                    size_bytes=None,
                    input_files=None,
                    exec_stats=None,
                ),
                schema=RECORD_SCHEMA,
            )
            for group in self._groups
        ]


def count_samples(reader: Reader, piece: Piece) -> tuple[int, Counter[str]]:
    """Return the samples of an input piece, and its rows that give none by reason."""
    skipped = Counter[str]()
    samples = sum(1 for _ in read_records(reader, piece, skipped))
    return samples, skipped


def _read(reader: Reader, group: Sequence[tuple[int, Piece]], ledger: Any, row_keys: Any) -> Iterator[Any]:
    leave_at_exit()
    ordered_keys: Integers = np.empty(0, np.int64) if row_keys is None else ray.get(row_keys)
    work = f"read:{group[0][0]}"
    if (deaths := ray.get(ledger.begin.remote(work))) >= MOST_READ_DEATHS:
        names = group[0][1].name if len(group) == 1 else f"{group[0][1].name} to {group[-1][1].name}"
        raise InputError(
            f"{deaths} workers died while they read {names}, out of memory or by a fault in a library"
        )
    events: list[Event] = []
    for number, piece in group:
        keys: list[int] = []
        skipped = Counter[str]()
        samples = _note_keys(read_records(reader, piece, skipped), keys)
        records = (record for record in samples if not is_among(record.sample.key, ordered_keys))
        while batch := take_batch(records, BATCH_ROWS):
            yield records_to_table(batch)
        events.append(("read", (number, skipped, np.array(keys, np.int64))))
    ray.get(ledger.finish.remote(work, events))  # before the task ends, and with the last one the run


def _note_keys(records: Iterator[Record], keys: list[int]) -> Iterator[Record]:
    for record in records:
        keys.append(record.sample.key)
        yield record
