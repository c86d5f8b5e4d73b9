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

from stages.contract.errors import ResumeError
from stages.contract.records import Sample, stable_key
from stages.shared.storage import AnyPath, parquet_file

_NAMED: Final = 5  # How many samples a message names
_AT_ONCE: Final = 4096  # Rows, or samples, that are looked at together
_THREADS: Final = 32  # Files opened at once

NOTED: Final = "sample_id"  # The column by which a row is known. Ids are no good: two samples may share one

DoneT = TypeVar("DoneT")


def keys_of(names: Any) -> NDArray[np.int64]:
    """Return the keys of an Arrow column of sample ids."""
    return np.fromiter(map(stable_key, names.to_pylist()), np.int64, len(names))


def rows_in(shards: Sequence[AnyPath]) -> list[int | None]:
    """Return the rows of each shard by its footer; None for one that cannot be read."""
    return in_threads(_rows_in, shards)


def _rows_in(shard: AnyPath) -> int | None:
    try:
        with parquet_file(shard) as file:
            return int(file.metadata.num_rows)
    except (pa.ArrowException, OSError):
        return None


def names_in(shard: AnyPath) -> Any:
    """Return the sample ids of a shard as an Arrow column. Raise OSError or pyarrow.ArrowException."""
    with parquet_file(shard) as file:
        if NOTED not in file.schema_arrow.names:
            raise pa.ArrowInvalid(f"it has no column {NOTED}")
        return file.read(columns=[NOTED])[NOTED]


def in_threads(work: Callable[[AnyPath], DoneT], paths: Sequence[AnyPath]) -> list[DoneT]:
    """Do the same to many files at once, because the answer of a disk or a network takes the time."""
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(work, paths))


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """The differences between an input and the rows that were made from it."""

    new: int = 0  # samples without a row
    changed: int = 0  # samples with other captions, or another image's name, than their row
    names: tuple[str, ...] = ()  # ids of the first changed ones


def changes_of(
    shards: Sequence[AnyPath], samples: Iterable[Sample], *, limited: bool = False, extent: str = "the input"
) -> Changes:
    """Compare the rows in shards with the samples of the input, with some 30 bytes of memory for each row.

    Rows of a shard that cannot be read are not known, and their samples count as new.

    Args:
        shards: The rows.
        samples: The input.
        limited: Whether these are only the first samples of the input, so that rows may have others.
        extent: The input for people, see `SourceConfig.extent`.

    Raises:
        ResumeError: Rows have no sample any more.
    """
    parts = in_threads(_contents_in, shards)
    keys, contents = (np.concatenate([np.empty(0, np.int64), *(part[n] for part in parts)]) for n in (0, 1))
    order = np.argsort(keys)
    keys, contents = keys[order], contents[order]
    has_sample = np.zeros(len(keys), dtype=bool)
    new = changed = 0
    changed_ids: list[str] = []
    # Samples are let go one by one: some carry their image.
    seen = ((one.sample_id, one.key, _content(one.image.file_name, one.captions)) for one in samples)
    while batch := list(islice(seen, _AT_ONCE)):
        sample_ids, wanted, now = (np.array(column) for column in zip(*batch, strict=True))
        places = np.searchsorted(keys, wanted)
        known = np.isin(wanted, keys, assume_unique=True)
        has_sample[places[known]] = True
        new += int((~known).sum())
        differs = known.copy()
        differs[known] = contents[places[known]] != now[known]
        changed += int(differs.sum())
        changed_ids += sample_ids[differs][: _NAMED - len(changed_ids)].tolist()
    gone = keys[~has_sample]
    if len(gone) and not limited:
        names = _names_of(shards, gone[:_NAMED])
        raise ResumeError(
            f"samples that have rows, but are gone from {extent}: {len(gone):,} ({listed(names, len(gone))}). Put "
            "them back, give another folder for the dataset, or --fresh to start over"
        )
    return Changes(new=new, changed=changed, names=tuple(changed_ids))


def listed(names: Sequence[str], of: int) -> str:
    """Return some names for a message, with dots where there are more."""
    return ", ".join([*names, *(["..."] if of > len(names) else [])])


def _contents_in(shard: AnyPath) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Keys of the rows' samples, and a hash of what each was made from."""
    rows = [
        (stable_key(row[NOTED]), _content(row["file_name"], row["captions"]))
        for row in _readable_rows(shard, "file_name", "captions")
    ]
    keys, contents = np.array(rows, np.int64).reshape(-1, 2).T
    return keys, contents


def _readable_rows(shard: AnyPath, *columns: str) -> Iterator[dict[str, Any]]:
    with suppress(pa.ArrowException, OSError), parquet_file(shard) as file:
        for batch in file.iter_batches(batch_size=_AT_ONCE, columns=[NOTED, *columns]):
            yield from batch.to_pylist()


def _content(file_name: str, captions: Iterable[str]) -> int:
    return stable_key("\0".join((file_name, *captions)))


def _names_of(shards: Iterable[AnyPath], keys: NDArray[np.int64]) -> list[str]:
    wanted = set(keys.tolist())
    names = (row[NOTED] for shard in shards for row in _readable_rows(shard))
    return list(islice((name for name in names if stable_key(name) in wanted), len(wanted)))
