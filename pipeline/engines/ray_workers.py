"""What runs in Ray's workers: reading input shards, and stages over Arrow tables.

A worker that dies (killed for its memory, its node gone, a fault in a decoder) costs no row and stops no run: Ray
gives its batch to another one. A batch that comes back is taken one sample at a time, which needs less memory and
shows which sample it is; a sample whose worker died `MOST_DEATHS` times while it was alone in hand becomes a row with
an error.
"""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, Final

import numpy as np
import ray
from numpy.typing import NDArray
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from pipeline.engines.batches import BATCH_ROWS, run_stages
from pipeline.engines.ray_ledger import Told
from pipeline.engines.same_code import Code, refuse_other_code
from stages.contract.errors import InputError, PhraseboxError, RowError
from stages.contract.records import Record
from stages.contract.schema import RECORD_SCHEMA, records_to_rows, records_to_table, table_to_records
from stages.contract.stage import Stage
from stages.read import Reader, Shard, Skipped, read_shard

READ_TASKS: Final = 400
"""At most so many read tasks; each reads several input shards where there are more. A task costs Ray some 20 ms."""

MOST_DEATHS: Final = 3
"""Two could be nodes that happened to leave."""

MOST_READ_DEATHS: Final = 10
"""Of one read task. Reading holds little, so these are rather nodes that leave; but a run must not try for ever."""

WAIT_SECONDS: Final = 0.2


class StageWorker:
    """Stages in an actor: table in, table out."""

    def __init__(self, stages: Sequence[Stage], ledger: Any, code: Code) -> None:
        self.stages = stages
        self.ledger = ledger
        # Kept until there is a batch: Ray reports what a task raises as it is, a failed start only as text.
        self.refusal: PhraseboxError | None = None
        try:
            refuse_other_code(code)
            for stage in stages:
                stage.setup()
        except PhraseboxError as error:
            self.refusal = error

    def __call__(self, table: Any) -> Any:
        """Answer a batch."""
        if self.refusal is not None:
            raise self.refusal
        told = Told(self.ledger)
        answer = answered(self.stages, table_to_records(table), told, self.ledger)
        told.send()
        return records_to_table(answer)


class CaptionWorker(StageWorker):
    """The stages before the model; a name of its own in Ray's dashboard and process list."""


class ModelWorker(StageWorker):
    """The stage that holds the model."""


def finish(stages: Sequence[Stage], ledger: Any, table: Any, *, embed_images: bool) -> Any:
    """The stages after the model, and the rows."""
    told = Told(ledger)
    for stage in stages:
        stage.setup()
    records = answered(stages, table_to_records(table), told, ledger)
    told.rows(len(records), sum(record.error is not None for record in records))
    told.send()
    return records_to_rows(records, embed_images=embed_images)


def answered(stages: Sequence[Stage], records: list[Record], told: Told, ledger: Any) -> list[Record]:
    """The records after the stages; one by one if a worker died with them in hand."""
    first = f"{stages[0].name}:{records[0].sample.id}" if records else ""
    work = f"{first}+{len(records)}"
    if ray.get(ledger.begin.remote(work)):
        answers = [_alone(stages, record, told, ledger) for record in records]
    else:
        answers = run_stages(stages, records, told.stage)
    ledger.end.remote(work)
    return answers


def _alone(stages: Sequence[Stage], record: Record, told: Told, ledger: Any) -> Record:
    work = f"{stages[0].name}:{record.sample.id}"
    while (deaths := ray.get(ledger.begin_alone.remote(work))) is None:
        time.sleep(WAIT_SECONDS)
    if deaths < MOST_DEATHS or record.error is not None:
        (answer,) = run_stages(stages, [record], told.stage)
    else:
        detail = (
            f"{record.sample.source}: {deaths} workers died at it in {stages[0].name}, out of memory or by a fault in "
            "a library; look at its image, or where many samples say so give workers more memory: fewer of them by "
            "engine.cpu_workers or engine.explain_workers"
        )
        error = RowError(reason="worker_died", detail=detail)
        answer = replace(record, error=error, phrases=(), dropped_phrases=0, pixels=None, heat_maps=(), regions=())
    ledger.end.remote(work)
    return answer


class ShardSource(Datasource):  # type: ignore[misc]  # ray is untyped
    """The input's shards as read tasks that give small rows without images' pixels.

    done  a reference to the ids of rows that are written, in order; None if there are none
    """

    def __init__(self, reader: Reader, shards: Sequence[Shard], ledger: Any, done: Any = None) -> None:
        super().__init__()
        self._done = done
        self._reader = reader
        self._ledger = ledger
        each = -(-len(shards) // READ_TASKS)
        numbered = list(enumerate(shards))
        self._groups = [numbered[i : i + each] for i in range(0, len(numbered), each)]

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
        """One task a shard; several shards a task where there are thousands."""
        return [self._task(group) for group in self._groups]

    def _task(self, group: list[tuple[int, Shard]]) -> Any:
        counts = [shard.samples for _, shard in group]
        known = None if None in counts else sum(count for count in counts if count is not None)
        metadata = BlockMetadata(num_rows=known, size_bytes=None, input_files=None, exec_stats=None)
        return ReadTask(
            functools.partial(_read, self._reader, group, self._ledger, self._done), metadata, schema=RECORD_SCHEMA
        )


def count(reader: Reader, shard: Shard) -> tuple[int, Counter[str]]:
    """Samples of an input shard, and rows that give none by reason."""
    counts = _Counts()
    for _ in counts.records(reader, shard):
        pass
    return counts.samples, counts.skipped


def _read(reader: Reader, group: list[tuple[int, Shard]], ledger: Any, done: Any) -> Iterator[Any]:
    written: NDArray[np.int64] = np.empty(0, np.int64) if done is None else ray.get(done)
    work = f"read:{group[0][0]}"
    if (deaths := ray.get(ledger.begin.remote(work))) >= MOST_READ_DEATHS:
        names = group[0][1].name if len(group) == 1 else f"{group[0][1].name} to {group[-1][1].name}"
        raise InputError(f"{deaths} workers died while they read {names}, out of memory or by a fault in a library")
    for number, shard in group:
        told, counts = Told(ledger), _Counts()
        records = (record for record in counts.records(reader, shard) if not _contains(written, record.sample.id))
        while batch := list(islice(records, BATCH_ROWS)):
            yield records_to_table(batch)
        told.read(number, counts.samples, counts.skipped)
        told.send()
    ledger.end.remote(work)


def _contains(ordered: NDArray[np.int64], value: int) -> bool:
    index = int(ordered.searchsorted(value))
    return index < len(ordered) and int(ordered[index]) == value


class _Counts:
    """What a shard held so far."""

    def __init__(self) -> None:
        self.samples = 0
        self.skipped: Counter[str] = Counter()

    def records(self, reader: Reader, shard: Shard) -> Iterator[Record]:
        for item in read_shard(reader, shard):
            if isinstance(item, Skipped):
                self.skipped[item.reason] += 1
            else:
                self.samples += 1
                yield Record.start(item)
