"""The shards of a run that is resumed: which of them count, and whether their rows still belong to the input.

Shards count if they can be read and Ray Data's checkpoint has a note of them. Ray Data notes the sample ids of a write
task in NAME.pending.parquet, writes the shards NAME-0.parquet, NAME-1.parquet, ..., and then renames the note to
NAME.parquet. A resumed run treats them as follows:

1. Workers of a killed driver live on for a moment, on a cluster for longer. So the checkpoint's folder is renamed
   first: from then on they cannot commit. The shards that they still write have no note and are deleted at the end.
2. The shards of a pending note are deleted together with it. A task that Ray repeats after its commit writes a second
   note; then the first one is deleted too, or its rows would count as done.
3. A committed shard may still be lost or damaged, by a disk or by hand. Its note is deleted, and its rows are done
   again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stages.contract.errors import ResumeError, one_line
from stages.contract.records import Sample, stable_key
from stages.shared.storage import AnyPath, found_in, move, parquet_file, replacing

_NAMED: Final = 5  # How many samples a message names
_AT_ONCE: Final = 4096  # Rows, or samples, that are looked at together
_THREADS: Final = 16  # Files opened at once. Footers are small: the answer of a disk or a network takes the time.

_PENDING: Final = ".pending"

NOTED: Final = "sample_id"  # The column by which notes know a row. Ids are no good: two samples may share one

ReadT = TypeVar("ReadT")


def take_over(folder: AnyPath) -> AnyPath:
    """Rename a former attempt's checkpoint in a folder, if there is one; return where this attempt's checkpoint is."""
    former = sorted(found_in(folder, "checkpoint-*"), key=_number)
    place = folder / f"checkpoint-{_number(former[-1]) + 1 if former else 1:04d}"
    if former:
        move(former[-1], place)
    return place


def _number(checkpoint: AnyPath) -> int:
    text = checkpoint.name.rpartition("-")[2]
    return int(text) if text.isdigit() else 0


def drop_pending(checkpoint: AnyPath, shards: Iterable[AnyPath]) -> None:
    """Delete the shards being written when the former attempt ended, and then their pending notes."""
    members = _by_note(shards)
    for pending in found_in(checkpoint, f"*{_PENDING}.parquet"):
        name = pending.stem.removesuffix(_PENDING)
        (checkpoint / f"{name}.parquet").unlink(missing_ok=True)
        for shard in members.get(name, ()):
            shard.unlink()
        pending.unlink()


def noted_keys(checkpoint: AnyPath) -> NDArray[np.int64]:
    """Return the keys of the samples that are done, sorted."""
    keys = [keys_of(names) for names in _in_threads(names_in, found_in(checkpoint, "*.parquet"))]
    return np.sort(np.concatenate([np.empty(0, np.int64), *keys]))


def keys_of(names: Any) -> NDArray[np.int64]:
    """Return the keys of an Arrow column of sample ids."""
    return np.fromiter(map(stable_key, names.to_pylist()), np.int64, len(names))


def rebuild(checkpoint: AnyPath, shards: Iterable[AnyPath]) -> None:
    """Write the notes of shards that can be read."""
    checkpoint.mkdir(parents=True, exist_ok=True)
    for name, members in _by_note(shards).items():
        chunks = [chunk for path in members for chunk in names_in(path).chunks]
        names = pa.table({NOTED: pa.chunked_array(chunks, pa.string())})
        with replacing(checkpoint / f"{name}.parquet") as temporary:
            pq.write_table(names, temporary)


def without_rows(checkpoint: AnyPath, shards: Iterable[AnyPath]) -> list[str]:
    """Delete the notes that have more or fewer rows than their shards, together with these shards.

    Shards that cannot be read, and pending notes, must have been removed before. Return the names of the notes.
    """
    notes = found_in(checkpoint, "*.parquet")
    members = _by_note(shards)
    paths = [*notes, *(path for own in members.values() for path in own)]
    counts = {path: rows for path, (rows, _) in zip(paths, _in_threads(_footer, paths), strict=True)}
    wrong: list[str] = []
    for note in notes:
        own = members.get(note.stem, [])
        if counts[note] is None or counts[note] != _total(counts[path] for path in own):
            note.unlink()
            for shard in own:
                shard.unlink()
            wrong.append(note.stem)
    return wrong


def uncommitted(checkpoint: AnyPath, shards: Iterable[AnyPath]) -> list[AnyPath]:
    """Return the shards without a note."""
    notes = {path.stem for path in found_in(checkpoint, "*.parquet")}
    return [path for name, members in _by_note(shards).items() if name not in notes for path in members]


def unreadable(shards: Sequence[AnyPath]) -> Iterator[tuple[AnyPath, str]]:
    """Yield shards whose footer cannot be read or that have no column sample_id, each with the reason."""
    for path, (_, fault) in zip(shards, _in_threads(_footer, shards), strict=True):
        if fault:
            yield path, fault


def rows_in(shards: Sequence[AnyPath]) -> int | None:
    """Return the number of rows by the shards' footers; None if one cannot be read."""
    return _total(rows for rows, _ in _in_threads(_footer, shards))


def names_in(shard: AnyPath) -> Any:
    """Return the sample ids of a shard, or of a note, as an Arrow column. Raise OSError or pyarrow.ArrowException."""
    with parquet_file(shard) as file:
        return file.read(columns=[NOTED])[NOTED]


def _in_threads(read: Callable[[AnyPath], ReadT], paths: Sequence[AnyPath]) -> list[ReadT]:
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(read, paths))


def _footer(path: AnyPath) -> tuple[int | None, str]:
    """The number of rows, None if it cannot be read; and the reason why the shard is of no use, or ""."""
    try:
        with parquet_file(path) as file:
            return file.metadata.num_rows, "" if NOTED in file.schema_arrow.names else f"it has no column {NOTED}"
    except (pa.ArrowException, OSError) as error:
        return None, one_line(error)


def _total(counts: Iterable[int | None]) -> int | None:
    known = list(counts)
    return None if None in known else sum(count or 0 for count in known)


def _by_note(shards: Iterable[AnyPath]) -> dict[str, list[AnyPath]]:
    """Shards by the name of their note, which is NAME for NAME-0.parquet."""
    found: dict[str, list[AnyPath]] = {}
    for path in sorted(shards, key=str):
        found.setdefault(path.stem.rpartition("-")[0] or path.stem, []).append(path)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """The differences between an input and the rows that were made from it."""

    new: int = 0  # samples without a row
    changed: int = 0  # samples with other captions, or another image's name, than their row
    names: tuple[str, ...] = ()  # ids of the first changed ones


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
    parts = _in_threads(_contents_in, shards)
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
            f"samples that have rows, but are gone from the input: {len(gone):,} ({listed(names, len(gone))}). Put "
            "them back, give another output.path, or --fresh to start over"
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
    """The sample ids with some keys."""
    wanted = set(keys.tolist())
    names = (row[NOTED] for shard in shards for row in _readable_rows(shard))
    return list(islice((name for name in names if stable_key(name) in wanted), len(wanted)))
