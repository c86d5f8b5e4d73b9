"""An input that changed after rows were made from it: which of its samples are new, changed or gone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stages.contract.errors import ResumeError
from stages.contract.records import Sample, stable_id
from stages.shared.storage import AnyPath, parquet_file

_NAMED: Final = 5
"""How many samples a message names."""

_AT_ONCE: Final = 4096
"""Rows, or samples, that are looked at together."""

_THREADS: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """The differences between an input and the rows that were made from it.

    Attributes:
        new: Samples without a row.
        changed: Samples with other captions, or another image's name, than their row.
        names: Ids of the first changed ones.
    """

    new: int = 0
    changed: int = 0
    names: tuple[str, ...] = ()


def changes_of(shards: Sequence[AnyPath], samples: Iterable[Sample], *, limited: bool = False) -> Changes:
    """Compare the rows in shards with the samples of the input, with some 30 bytes of memory for each row.

    Rows of a shard that cannot be read are not known, and their samples count as new.

    Args:
        shards: The rows.
        samples: The input.
        limited: Whether these are only the first samples of the input, so that rows may have others.

    Raises:
        ResumeError: Rows have no sample any more.
    """
    ids, contents = _rows_of(shards)
    has_sample = np.zeros(len(ids), dtype=bool)
    new = changed = 0
    changed_ids: list[str] = []
    # Samples are let go one by one: some carry their image.
    told = ((one.sample_id, one.id, _content(one.image.file_name, one.captions)) for one in samples)
    while batch := list(islice(told, _AT_ONCE)):
        sample_ids, wanted, now = (np.array(column) for column in zip(*batch, strict=True))
        places = np.searchsorted(ids, wanted)
        known = np.isin(wanted, ids, assume_unique=True)
        has_sample[places[known]] = True
        new += int((~known).sum())
        differs = known.copy()
        differs[known] = contents[places[known]] != now[known]
        changed += int(differs.sum())
        changed_ids += sample_ids[differs][: _NAMED - len(changed_ids)].tolist()
    gone = ids[~has_sample]
    if len(gone) and not limited:
        names = _names_of(shards, gone[:_NAMED])
        raise ResumeError(
            f"samples that have rows, but are gone from the input: {len(gone):,} ({listed(names, len(gone))}). Put "
            "them back, give another output.path, or --fresh to start over"
        )
    return Changes(new=new, changed=changed, names=tuple(changed_ids))


def listed(names: Sequence[str], of: int) -> str:
    """Some names for a message, with dots where there are more."""
    return ", ".join([*names, *(["..."] if of > len(names) else [])])


def _rows_of(shards: Sequence[AnyPath]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ids of the rows, sorted, and a hash of what each was made from."""
    with ThreadPoolExecutor(_THREADS) as pool:
        parts = list(pool.map(_rows_in, shards))
    ids, contents = (np.concatenate([np.empty(0, np.int64), *(part[n] for part in parts)]) for n in (0, 1))
    order = np.argsort(ids)
    return ids[order], contents[order]


def _rows_in(shard: AnyPath) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    ids: list[int] = []
    contents: list[int] = []
    with suppress(pa.ArrowException, OSError), parquet_file(shard) as file:
        for batch in file.iter_batches(batch_size=_AT_ONCE, columns=["id", "file_name", "captions"]):
            for row in batch.to_pylist():
                ids.append(row["id"])
                contents.append(_content(row["file_name"], row["captions"]))
    return np.array(ids, dtype=np.int64), np.array(contents, dtype=np.int64)


def _content(file_name: str, captions: Iterable[str]) -> int:
    return stable_id("\0".join((file_name, *captions)))


def _names_of(shards: Iterable[AnyPath], ids: NDArray[np.int64]) -> list[str]:
    """The sample ids of some rows."""
    wanted, found = set(ids.tolist()), list[str]()
    for shard in shards:
        with suppress(pa.ArrowException, OSError), parquet_file(shard) as file:
            for batch in file.iter_batches(batch_size=_AT_ONCE, columns=["id", "sample_id"]):
                found += [row["sample_id"] for row in batch.to_pylist() if row["id"] in wanted]
        if len(found) == len(wanted):
            break
    return found
