"""The shards of a run that is resumed: what is in them, and whether their rows still belong to the input."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from phrasebox.stages.contract.errors import ResumeError
from phrasebox.stages.contract.records import Sample, stable_key
from phrasebox.stages.contract.values import Integers, Json
from phrasebox.stages.files.shards import origin_in
from phrasebox.stages.files.storage import AnyPath, parquet_file

_MOST_NAMES: Final = 5  # How many samples a message names
_AT_ONCE: Final = 4096  # Rows that are read together
_WHOLE_AT_ONCE: Final = 64  # The same with all columns: they may hold images
_THREADS: Final = 32  # Files opened at once
_CONTENT: Final = np.dtype([("key", np.int64), ("content", np.int64)])  # Of a row or a sample

NAME_COLUMN: Final = "sample_id"
"""The column that identifies a row. Ids do not: two samples may share one until the end of a
run."""

AnswerT = TypeVar("AnswerT")
FileT = TypeVar("FileT")


def keys_of(names: Sequence[str]) -> Integers:
    """Return the keys of sample ids."""
    return np.fromiter(map(stable_key, names), np.int64, len(names))


def count_readable_rows(shards: Sequence[AnyPath]) -> int:
    """Return the number of rows in shards by their footers, but for shards that cannot be read."""
    return sum(map_in_threads(_readable_rows_in, shards))


def _readable_rows_in(shard: AnyPath) -> int:
    with suppress(pa.ArrowException, OSError), parquet_file(shard) as file:
        return int(file.metadata.num_rows)
    return 0


def names_in(shard: AnyPath) -> list[str]:
    """Return the sample ids of a shard. Raise OSError, pyarrow.ArrowException or UnicodeDecodeError."""
    with parquet_file(shard) as file:
        _check_names(file)
        names: list[str] = file.read(columns=[NAME_COLUMN])[NAME_COLUMN].to_pylist()
        return names


def read_whole(shard: AnyPath) -> list[str]:
    """Read all columns of a shard, which verifies its checksums; return and raise as `names_in`."""
    names: list[str] = []
    with parquet_file(shard) as file:
        _check_names(file)
        origin_in(file)
        for batch in file.iter_batches(batch_size=_WHOLE_AT_ONCE):
            names += batch[NAME_COLUMN].to_pylist()
    return names


def _check_names(file: Any) -> None:
    if NAME_COLUMN not in file.schema_arrow.names:
        raise pa.ArrowInvalid(f"it has no column {NAME_COLUMN}")


def map_in_threads(work: Callable[[FileT], AnswerT], files: Sequence[FileT]) -> list[AnswerT]:
    """Return the answer of `work` for each of many files, in threads: most of the time is waiting for the disk."""
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(work, files))


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """The differences between an input and the rows that were made from it.

    Attributes:
        new: The number of samples without a row.
        changed: The number of samples with other captions, or another image's name, than their row.
        names: Ids of the first changed samples.
    """

    new: int = 0
    changed: int = 0
    names: tuple[str, ...] = ()


def changes_of(
    shards: Sequence[AnyPath],
    samples: Iterable[Sample],
    *,
    limited: bool = False,
    extent: str = "the input",
) -> Changes:
    """Compare the rows in shards with the samples of the input, with some 30 bytes of memory for each row.

    The samples of a shard that cannot be read count as new.

    Args:
        shards: The rows.
        samples: The input.
        limited: Whether these are only the first samples of the input, so that rows may have
            others.
        extent: The input for people, see `ReaderConfig.extent`.

    Raises:
        ResumeError: Rows have no sample any more.
    """
    rows = np.concatenate([np.empty(0, _CONTENT), *map_in_threads(_contents_in, shards)])
    rows = rows[np.argsort(rows["key"])]
    # The generator holds one sample at a time: some carry their image.
    pairs = ((sample.key, _content(sample.image.file_name, sample.captions)) for sample in samples)
    inputs = np.fromiter(pairs, _CONTENT)
    lost = np.setdiff1d(rows["key"], inputs["key"])
    if len(lost) and not limited:
        names = _names_of(shards, lost[:_MOST_NAMES])
        raise ResumeError(
            f"samples that have rows, but are gone from {extent}: {len(lost):,} ({list_names(names, len(lost))}). Put "
            "them back, give another folder for the dataset, or --fresh to start over"
        )
    previous = inputs[np.isin(inputs["key"], rows["key"])]
    places = np.searchsorted(rows["key"], previous["key"])
    changed = previous["key"][rows["content"][places] != previous["content"]]
    names = _names_of(shards, changed[:_MOST_NAMES])
    return Changes(new=len(inputs) - len(previous), changed=len(changed), names=tuple(names))


def list_names(names: Sequence[str], count: int) -> str:
    """Return some names for a message, with dots where there are more."""
    return ", ".join([*names, *(["..."] if count > len(names) else [])])


def _contents_in(shard: AnyPath) -> NDArray[np.void]:
    """Keys of the rows' samples, and a hash of each row's image name and captions."""
    rows = _readable_rows(shard, "file_name", "captions")
    return np.fromiter(
        ((stable_key(row[NAME_COLUMN]), _content(row["file_name"], row["captions"])) for row in rows),
        _CONTENT,
    )


def _readable_rows(shard: AnyPath, *columns: str) -> Iterator[Json]:
    with suppress(pa.ArrowException, OSError), parquet_file(shard) as file:
        for batch in file.iter_batches(batch_size=_AT_ONCE, columns=[NAME_COLUMN, *columns]):
            yield from batch.to_pylist()


def _content(file_name: str, captions: Iterable[str]) -> int:
    return stable_key("\0".join((file_name, *captions)))


def _names_of(shards: Iterable[AnyPath], keys: Integers) -> list[str]:
    distinct = set(keys.tolist())
    names = (row[NAME_COLUMN] for shard in shards for row in _readable_rows(shard))
    return list(islice((name for name in names if stable_key(name) in distinct), len(distinct)))
