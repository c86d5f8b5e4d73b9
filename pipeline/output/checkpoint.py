"""Which shards of an unfinished run count: those that can be read and that Ray Data's checkpoint has a note of.

Ray Data notes the ids of a write task in NAME.pending.parquet, writes the shards NAME-0.parquet, NAME-1.parquet, ...,
and then renames the note to NAME.parquet. A run that is continued treats them as follows:

1. Workers of a killed driver live on for a moment, on a cluster for longer. So the checkpoint's folder is renamed
   first: from then on they cannot commit. The shards that they still write have no note and are deleted at the end.
2. The shards of a pending note are deleted together with it. A task that Ray repeats after its commit writes a second
   note; then the first one is deleted too, or its rows would count as done.
3. A committed shard may still be lost or damaged, by a disk or by hand. Its note is deleted, and its rows are done
   again.
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
from stages.shared.storage import AnyPath, found_in, move, parquet_file, replacing

_OPENED_AT_ONCE: Final = 16
"""Files opened at once. Footers are small, so what takes time is the answer of a disk or a network."""

_PENDING: Final = ".pending"


def take_over(folder: AnyPath) -> AnyPath:
    """Rename a former attempt's checkpoint in a folder, if there is one; returns where this attempt's checkpoint is."""
    former = sorted(found_in(folder, "checkpoint-*"), key=_number)
    place = folder / f"checkpoint-{_number(former[-1]) + 1 if former else 1:04d}"
    if former:
        move(former[-1], place)
    return place


def drop_pending(checkpoint: AnyPath, shards: Iterable[AnyPath]) -> None:
    """Delete what was being written when the former attempt ended, the pending notes last."""
    members = _by_note(shards)
    for pending in found_in(checkpoint, f"*{_PENDING}.parquet"):
        name = pending.stem.removesuffix(_PENDING)
        (checkpoint / f"{name}.parquet").unlink(missing_ok=True)
        for shard in members.get(name, ()):
            shard.unlink()
        pending.unlink()


def noted_ids(checkpoint: AnyPath) -> NDArray[np.int64]:
    """Ids of the rows that are done, sorted."""
    with ThreadPoolExecutor(_OPENED_AT_ONCE) as pool:
        ids = [column.to_numpy() for column in pool.map(ids_in, found_in(checkpoint, "*.parquet"))]
    return np.sort(np.concatenate([np.empty(0, np.int64), *ids]))


def _number(checkpoint: AnyPath) -> int:
    text = checkpoint.name.rpartition("-")[2]
    return int(text) if text.isdigit() else 0


def rebuild(checkpoint: AnyPath, shards: Iterable[AnyPath]) -> None:
    """Write the notes of shards that can be read."""
    checkpoint.mkdir(parents=True, exist_ok=True)
    for name, members in _by_note(shards).items():
        chunks = [chunk for path in members for chunk in ids_in(path).chunks]
        ids = pa.table({"id": pa.chunked_array(chunks, pa.int64())})
        with replacing(checkpoint / f"{name}.parquet") as temporary:
            pq.write_table(ids, temporary)


def without_rows(checkpoint: AnyPath, shards: Iterable[AnyPath]) -> list[str]:
    """Delete the notes that have more or fewer rows than their shards, together with these shards.

    Shards that cannot be read, and pending notes, must have been removed before. Returns the names of the notes.
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
    """Shards without a note."""
    notes = {path.stem for path in found_in(checkpoint, "*.parquet")}
    return [path for name, members in _by_note(shards).items() if name not in notes for path in members]


def unreadable(shards: Sequence[AnyPath]) -> Iterator[tuple[AnyPath, str]]:
    """Shards whose footer cannot be read or that have no column id, each with the reason."""
    with ThreadPoolExecutor(_OPENED_AT_ONCE) as pool:
        for path, fault in zip(shards, pool.map(_fault, shards), strict=True):
            if fault is not None:
                yield path, fault


def rows_in(shards: Sequence[AnyPath]) -> int | None:
    """Number of rows by the shards' footers; None if one cannot be read."""
    with ThreadPoolExecutor(_OPENED_AT_ONCE) as pool:
        return _total(pool.map(_rows, shards))


def ids_in(shard: AnyPath) -> Any:
    """The ids of a shard, or of a note, as an Arrow column. Raises OSError or pyarrow.ArrowException."""
    with parquet_file(shard) as file:
        return file.read(columns=["id"])["id"]


def _rows(path: AnyPath) -> int | None:
    try:
        with parquet_file(path) as file:
            return int(file.metadata.num_rows)
    except (pa.ArrowException, OSError):
        return None


def _fault(path: AnyPath) -> str | None:
    try:
        with parquet_file(path) as file:
            return None if "id" in file.schema_arrow.names else "it has no column id"
    except (pa.ArrowException, OSError) as error:
        return one_line(error)


def _by_note(shards: Iterable[AnyPath]) -> dict[str, list[AnyPath]]:
    """Shards by the name of their note, which is NAME for NAME-0.parquet."""
    found: dict[str, list[AnyPath]] = {}
    for path in sorted(shards, key=str):
        found.setdefault(path.stem.rpartition("-")[0] or path.stem, []).append(path)
    return found


def _total(counts: Iterable[int | None]) -> int | None:
    known = list(counts)
    return None if None in known else sum(count for count in known if count is not None)
