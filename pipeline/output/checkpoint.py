"""Which shards of an unfinished run count: those that Ray Data's checkpoint answers for, and that can be read.

Ray Data notes the ids of a write task in NAME.pending.parquet, writes the shards NAME-0.parquet, NAME-1.parquet, ...,
then renames the note to NAME.parquet. What a run that goes on does with them is ours:

1. A killed driver's workers live on for a moment, on a cluster for longer. Whoever goes on with the run first renames
   the checkpoint's folder: from then on they cannot commit, and shards without a note are deleted at the end.
2. Shards of a pending note are deleted, and the note. A task that Ray repeats after its commit writes a second note:
   the first one goes too, or its rows would count as done.
3. A committed shard may be lost or damaged all the same, by a disk or by hand. Its note is deleted, and its rows are
   done again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stages.contract.errors import one_line
from stages.storage import AnyPath, found_in, move, replacing

_OPENED_AT_ONCE: Final = 16
"""Footers are small: what counts is the time until a disk or a network answers."""

_PENDING: Final = ".pending"


def take_over(folder: AnyPath) -> AnyPath:
    """Rename the checkpoint of a former attempt in a folder, if there is one; returns where it is now."""
    former = sorted(found_in(folder, "checkpoint-*"), key=_number)
    place = folder / f"checkpoint-{_number(former[-1]) + 1 if former else 1:04d}"
    if former:
        move(former[-1], place)
    return place


def drop_pending(checkpoint: AnyPath, shards: Iterable[AnyPath]) -> None:
    """Delete what was being written when the former attempt ended; the pending notes last."""
    members = _by_note(shards)
    for pending in found_in(checkpoint, f"*{_PENDING}.parquet"):
        name = pending.stem.removesuffix(_PENDING)
        (checkpoint / f"{name}.parquet").unlink(missing_ok=True)
        for shard in members.get(name, ()):
            shard.unlink()
        pending.unlink()


def noted_ids(checkpoint: AnyPath) -> NDArray[np.int64]:
    """Ids of the rows that are done, in order."""
    with ThreadPoolExecutor(_OPENED_AT_ONCE) as pool:
        ids = [table["id"].to_numpy() for table in pool.map(_ids, found_in(checkpoint, "*.parquet"))]
    return np.sort(np.concatenate([np.empty(0, np.int64), *ids]))


def _number(checkpoint: AnyPath) -> int:
    text = checkpoint.name.rpartition("-")[2]
    return int(text) if text.isdigit() else 0


def rebuild(checkpoint: AnyPath, shards: Iterable[AnyPath]) -> None:
    """Write the notes that belong to shards which can be read."""
    checkpoint.mkdir(parents=True, exist_ok=True)
    for name, members in _by_note(shards).items():
        ids = pa.concat_tables([_ids(path) for path in members])
        with replacing(checkpoint / f"{name}.parquet") as temporary:
            pq.write_table(ids.replace_schema_metadata(None), temporary)


def without_rows(checkpoint: AnyPath, shards: Iterable[AnyPath]) -> list[str]:
    """Delete the notes that speak of more or fewer rows than their shards hold, with these shards.

    Returns the names of the notes. Shards that cannot be read, and pending notes, must have been taken away before.
    """
    notes = found_in(checkpoint, "*.parquet")
    members = _by_note(shards)
    wrong: list[str] = []
    with ThreadPoolExecutor(_OPENED_AT_ONCE) as pool:
        noted = pool.map(_rows, notes)
        written = pool.map(lambda note: _total(_rows(shard) for shard in members.get(note.stem, ())), notes)
        for note, expected, found in zip(notes, noted, written, strict=True):
            if expected is None or expected != found:
                note.unlink()
                for shard in members.get(note.stem, ()):
                    shard.unlink()
                wrong.append(note.stem)
    return wrong


def uncommitted(checkpoint: AnyPath, shards: Iterable[AnyPath]) -> list[AnyPath]:
    """Shards that no note answers for."""
    notes = {path.stem for path in found_in(checkpoint, "*.parquet")}
    return [path for name, members in _by_note(shards).items() if name not in notes for path in members]


def unreadable(shards: Sequence[AnyPath]) -> Iterator[tuple[AnyPath, str]]:
    """Shards whose footer cannot be read or has no id, each with the reason."""
    with ThreadPoolExecutor(_OPENED_AT_ONCE) as pool:
        for path, fault in zip(shards, pool.map(_fault, shards), strict=True):
            if fault is not None:
                yield path, fault


def rows_in(shards: Sequence[AnyPath]) -> int | None:
    """Rows of Parquet files by their footers; None if one cannot be read."""
    with ThreadPoolExecutor(_OPENED_AT_ONCE) as pool:
        return _total(pool.map(_rows, shards))


def _rows(path: AnyPath) -> int | None:
    try:
        with path.open("rb") as file:
            rows: int = pq.read_metadata(file).num_rows
    except (pa.ArrowException, OSError):
        return None
    return rows


def _ids(path: AnyPath) -> Any:
    with path.open("rb") as file:
        return pq.read_table(file, columns=["id"])


def _fault(path: AnyPath) -> str | None:
    try:
        with path.open("rb") as file:
            names: list[Any] = pq.read_schema(file).names
    except (pa.ArrowException, OSError) as error:
        return one_line(error)
    return None if "id" in names else "it has no column id"


def _by_note(shards: Iterable[AnyPath]) -> dict[str, list[AnyPath]]:
    """Shards by the name of their note: NAME of NAME-0.parquet."""
    found: dict[str, list[AnyPath]] = {}
    for path in sorted(shards, key=str):
        found.setdefault(path.stem.rpartition("-")[0] or path.stem, []).append(path)
    return found


def _total(counts: Iterable[int | None]) -> int | None:
    total = 0
    for count in counts:
        if count is None:
            return None
        total += count
    return total
