"""One look at the tables of a dataset that somebody else made, before anything else reads them.

Rows that a run has written keep the contract (`phrasebox.stages.contract.schema`), and all that reads them relies on
it. So the tables of another user are checked where their dataset is opened: the first row that breaks the contract is a
SchemaError. A dataset that this user's run has signed is not looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from phrasebox.pipeline.dataset.row_check import FIELDS, row_problems, schema_problems
from phrasebox.pipeline.dataset.signature import is_own
from phrasebox.stages.contract.errors import InputError, SchemaError, one_line
from phrasebox.stages.contract.schema import IMAGE_FIELD
from phrasebox.stages.contract.values import Integers, Json
from phrasebox.stages.files.lifted_shards import shard_file
from phrasebox.stages.files.storage import AnyPath

_BATCH_ROWS: Final = 512
_THREADS: Final = 8  # Shards read at once: in object storage the answers take the time


def check_tables(shards: Sequence[AnyPath], run: Json) -> None:
    """Check the tables of a dataset, unless this user's run has signed it.

    Raise SchemaError with the first bad row, InputError for a shard that cannot be read.
    """
    if is_own(run):
        return
    ids: list[_ShardIds] = []
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="check") as pool:
        # Each answer comes in order, so that the first bad row is the first.
        for shard_ids in pool.map(_check_shard, shards):
            ids.append(shard_ids)
    _reject_repeats(shards, "image", [shard.images for shard in ids])
    _reject_repeats(shards, "annotation", [shard.regions for shard in ids])


@dataclass(frozen=True, slots=True)
class _ShardIds:
    """The ids of a shard's rows and regions."""

    images: Integers
    regions: Integers


def _check_shard(path: AnyPath) -> _ShardIds:
    images: list[Integers] = [np.empty(0, np.int64)]
    regions: list[Integers] = [np.empty(0, np.int64)]
    try:
        with ExitStack() as stack:
            try:
                file = stack.enter_context(shard_file(path, pre_buffer=True))
            except pa.ArrowInvalid:  # No Parquet: whoever needs the shard says so, and nobody can read it
                return _ShardIds(images[0], regions[0])
            schema = file.schema_arrow
            for problem in schema_problems(schema):
                raise _schema_error(path, problem)
            names = [
                f"{name}.path" if name == IMAGE_FIELD.name else name
                for name in schema.names
                if name in {field.name for field in FIELDS}
            ]
            first = 0
            for batch in file.iter_batches(_BATCH_ROWS, columns=names, use_threads=False):
                if problems := row_problems(pa.Table.from_batches([batch])):
                    row = min(problems)
                    name = _value(batch.column("sample_id"), row)
                    raise _schema_error(path, f"row {first + row} ({name!r}): {problems[row]}")
                first += batch.num_rows
                images.append(batch.column("id").to_numpy(zero_copy_only=False))
                region_ids = pc.struct_field(batch.column("annotations").flatten(), "id")
                regions.append(region_ids.to_numpy(zero_copy_only=False))
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is damaged or cannot be read: {one_line(error)}") from error
    return _ShardIds(np.concatenate(images), np.concatenate(regions))


def _schema_error(path: AnyPath, problem: str) -> SchemaError:
    return SchemaError(
        f"{path}: {problem}. The dataset was not made by you on this machine, so its tables are checked; "
        "phrasebox validate lists all that is wrong"
    )


def _reject_repeats(shards: Sequence[AnyPath], kind: str, ids_by_shard: Sequence[Integers]) -> None:
    ids = np.concatenate([np.empty(0, np.int64), *ids_by_shard])
    ordered = np.sort(ids)
    if not (ordered[1:] == ordered[:-1]).any():
        return
    first_places = np.unique(ids, return_index=True)[1]
    place = int(np.setdiff1d(np.arange(len(ids)), first_places)[0])
    ends = np.cumsum([len(shard_ids) for shard_ids in ids_by_shard])
    shard = int(np.searchsorted(ends, place, side="right"))
    place_in_shard = place - int(ends[shard]) + len(ids_by_shard[shard])
    where = f"row {place_in_shard}" if kind == "image" else f"annotation {place_in_shard}"
    raise _schema_error(shards[shard], f"{where}: an earlier one has the {kind} id {ids[place]}, too")


def _value(array: Any, place: int) -> Any:
    """The value at a place, which may be text that is not UTF-8."""
    try:
        return array[place].as_py()
    except UnicodeDecodeError:
        return array[place].as_buffer().to_pybytes()
