"""Which shards of an unfinished run count: those that Ray Data's checkpoint answers for, and that can be read.

Ray Data notes the ids of a write task in NAME.pending.parquet, writes the shards NAME-0.parquet, NAME-1.parquet, ...,
then renames the note to NAME.parquet. What is left to us:

1. A killed driver's workers live on for a moment, on a cluster for longer. Whoever goes on with the run first renames
   the checkpoint's folder: from then on they cannot commit, and shards without a note are deleted at the end.
2. A committed shard may be lost or damaged all the same, by a disk or by hand. Its note is deleted, and its rows are
   done again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from stages.write.atomic import replacing
from stages.write.places import AnyPath, found_in, move

_OPENED_AT_ONCE: Final = 16
"""Footers are small: what counts is the time until a disk or a network answers."""

_PENDING: Final = ".pending"


def take_over(folder: AnyPath) -> AnyPath:
    """Rename the checkpoint of a former attempt in a folder, if there is one; returns where it is now.

    A task that Ray repeats after its commit writes a second note. Where it was stopped in that, Ray Data would delete
    the shards and still count their rows as done: the first note goes too.
    """
    former = sorted(found_in(folder, "checkpoint-*"), key=_number)
    place = folder / f"checkpoint-{_number(former[-1]) + 1 if former else 1:04d}"
    if former:
        move(former[-1], place)
    for pending in found_in(place, f"*{_PENDING}.parquet"):
        (place / pending.name.replace(_PENDING, "")).unlink(missing_ok=True)
    return place


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

    Returns the names of the notes. Shards that cannot be read must have been taken away before.
    """
    notes = [path for path in found_in(checkpoint, "*.parquet") if _PENDING not in path.name]
    members = _by_note(shards)
    wrong: list[str] = []
    with ThreadPoolExecutor(_OPENED_AT_ONCE) as pool:
        noted = pool.map(rows_in, notes)
        written = pool.map(lambda note: _total(rows_in(shard) for shard in members.get(note.stem, ())), notes)
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


def rows_in(path: AnyPath) -> int | None:
    """Rows of a Parquet file by its footer; None if it cannot be read."""
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
        return " ".join(str(error).split())
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
