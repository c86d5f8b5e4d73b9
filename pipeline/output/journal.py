"""The journal of a run: the shards that hold its rows, and the pieces of the input that were read to their end.

A worker writes a shard under a temporary name, and renames it when it is whole. A kill leaves the
temporary file, which is no shard; the end of the run deletes it. The worker hands the shard's name,
size and keys to the driver. Only the driver writes the journal: now and then a file
OUT/.phrasebox/journal-AAAA/NNNNN.parquet of its attempt at the run. A resumed run is the next
attempt, and takes over from the previous one (`take_over`). What becomes of the shards of a
killed run, of which one listing of their folder tells name and size:

in the journal, and there with its size     It counts.
in the journal, but gone                    Its rows are done again (`Journal.lost`).
in the journal, but of another size         As one of the previous attempt that is not in it.
not in it, of the previous attempt          The driver had no time to note it. It counts if it can be read, and is
                                            deleted if it has a row that another shard has. A
                                            damaged one is moved aside, and its rows are done again.
not in it, of an older attempt              It is deleted: a worker that outlived its driver has written it late. On a
                                            cluster workers live on for longer. The end of a run
                                            deletes such shards of the previous attempt
                                            (`Journal.late_shards`).
of one process, which has no late workers   It counts if it can be read. The names of these shards have no attempt.

All shards that count become the first file of the new journal, which decides from then on. Without
a journal all shards count: the end of a run deletes it. A piece of the input is not read again
if it was read to its end and each of its samples has a row.
"""

from __future__ import annotations

import json
import re
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.output.shards import keys_of, map_in_threads, names_in
from stages.contract.errors import ResumeError, one_line
from stages.contract.records import Record
from stages.contract.values import Bools, Integers
from stages.read import Piece
from stages.shared.storage import AnyPath, found_in, remove_tree, replacing, sizes_in

WORKER_SHARD_NAME: Final = re.compile(r"(\d{4,})-[0-9a-f]{32}-\d+\.parquet")
"""Names of workers' shards: the attempt, a hash of the sample ids of a write, and the number of the
file in it."""

_FIRST: Final = "00000.parquet"
_SCHEMA: Final = pa.schema(
    [("name", pa.string()), ("bytes", pa.int64()), ("keys", pa.list_(pa.int64())), ("skipped", pa.string())]
)
"""A row is a shard; or, where `bytes` is null, a piece of the input, with the rows that gave no
sample as JSON."""

FLUSH_SECONDS: Final = 5.0
FLUSH_SHARE: Final = 0.01
"""The journal is written every few seconds, in long attempts after a hundredth of the time that
they have lasted: so it has some hundreds of files, and what a killed driver had no time to note
is a hundredth of its shards."""


def piece_name(piece: Piece) -> str:
    """Return the name of a piece of the input, which depends on its extent."""
    return blake2b(repr(piece).encode(), digest_size=16).hexdigest()


def shard_stem(sample_ids: Sequence[str], attempt: int) -> str:
    """Return the name of the files of a write, without number and suffix; the same if the write is repeated."""
    return f"{attempt:04d}-{blake2b(json.dumps(sample_ids).encode(), digest_size=16).hexdigest()}"


def make_entry(
    name: str,
    keys: Integers | Sequence[int],
    *,
    size_bytes: int | None = None,
    skipped: Mapping[str, int] | None = None,
) -> Any:
    """Return an entry, an Arrow table of one row: a shard with its bytes, or a piece of the input that was read.

    keys: The keys of the samples of the shard, or of the piece. skipped: The piece's rows without
    a sample, by reason.
    """
    row = {"name": name, "bytes": size_bytes, "keys": keys, "skipped": json.dumps(skipped)}
    return pa.Table.from_pylist([row], schema=_SCHEMA)


@dataclass(slots=True)
class Journal:
    """The journal of an attempt that has taken over. Threads may add to it; one of them writes.

    Attributes:
        folder: The folder of the journal.
        keys: The keys of the samples that had rows before, sorted.
        shards: The names of the shards that count.
        pieces: The pieces of the input that are done: samples, and rows without a sample by reason.
        lost: The number of shards of previous attempts that are missing.
    """

    folder: AnyPath
    keys: Integers
    shards: set[str]
    pieces: dict[str, tuple[int, Counter[str]]]
    lost: int = 0
    _queue: deque[Any] = field(default_factory=deque)  # entries to write
    _files: int = 0
    _start_time: float = field(default_factory=time.monotonic)
    _flush_time: float = 0.0

    @property
    def attempt(self) -> int:
        """The number of this attempt at the run, from 1 on."""
        return _number(self.folder)

    def keys_with(self, records: Sequence[Record]) -> Integers:
        """Return the keys of the samples that had rows before, and of these records, sorted."""
        record_keys = np.array([record.sample.key for record in records], np.int64)
        return np.sort(np.concatenate([self.keys, record_keys]))

    def add_shards(self, entries: Any) -> None:
        """Note shards; write the journal if it is time to. Raise OSError."""
        self.add(entries)
        self.shards.update(entries["name"].to_pylist())
        now = time.monotonic()
        if now - self._flush_time > max(FLUSH_SECONDS, FLUSH_SHARE * (now - self._start_time)):
            self.flush()

    def add(self, entries: Any) -> None:
        """Note shards, or pieces of the input that were read to their end."""
        self._queue.append(entries)

    def flush(self) -> None:
        """Write the entries that were added since the last call. Raise OSError."""
        entries = [self._queue.popleft() for _ in range(len(self._queue))]
        if entries:
            self._files += 1
            _write(self.folder / f"{self._files:05d}.parquet", pa.concat_tables(entries))
        self._flush_time = time.monotonic()

    def late_shards(self, data: AnyPath) -> list[AnyPath]:
        """Return the shards in a folder that workers of previous attempts wrote after this attempt took over."""
        paths = found_in(data, "*.parquet")
        return [
            path
            for path in paths
            if WORKER_SHARD_NAME.fullmatch(path.name) and path.name not in self.shards
        ]


def take_over(
    run_folder: AnyPath, data: AnyPath, *, same_input: bool, on_damage: Callable[[AnyPath, str], None]
) -> Journal:
    """Begin an attempt, and write its journal. A call that was killed at any point is repeated without loss.

    Args:
        run_folder: The folder of journals.
        data: The folder of shards.
        same_input: Whether the attempt before had the same input; else all of it is read again.
        on_damage: Called with a shard that cannot be read, and the reason.

    Raises:
        ResumeError: A journal is damaged.
    """
    folders = sorted(found_in(run_folder, "journal-*"), key=_number)
    previous = next((folder for folder in reversed(folders) if (folder / _FIRST).exists()), None)
    shards, pieces = _read_entries(previous)
    # The shards in the journal, and those of them that are still there.
    sizes = sizes_in(data, "*.parquet")
    size_by_name = {path.name: size for path, size in sizes.items()}
    names = shards["name"].to_pylist()
    noted_names = set(names)
    noted_sizes = zip(names, shards["bytes"].to_pylist(), strict=True)
    is_whole = [size_by_name.get(name) == size for name, size in noted_sizes]
    whole_shards = shards.filter(pa.array(is_whole, pa.bool_()))
    whole_names = set(whole_shards["name"].to_pylist())
    # All other shards: late ones go.
    unnoted = sorted((path for path in sizes if path.name not in whole_names), key=str)
    adoptable_attempts = {0} if previous is None else {0, _number(previous)}
    rest = []
    for path in unnoted:
        if previous is None or path.name in noted_names or _attempt_of(path) in adoptable_attempts:
            rest.append(path)
        else:
            path.unlink()
    table = pa.concat_tables([whole_shards, *_adopt(rest, np.sort(_keys(whole_shards)), sizes, on_damage)])
    # The rows that are done, and the pieces that need not be read again.
    keys = np.sort(_keys(table))
    is_done = [
        same_input and bool(_are_among(piece.values.to_numpy(), keys).all()) for piece in pieces["keys"]
    ]
    pieces = pieces.filter(pa.array(is_done, pa.bool_()))
    last_attempt = max([0, *map(_attempt_of, unnoted), *map(_number, folders)])
    folder = run_folder / f"journal-{last_attempt + 1:04d}"
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / _FIRST, pa.concat_tables([table, pieces]))
    for path in folders:
        remove_tree(path)
    counts = pc.list_value_length(pieces["keys"]).to_pylist()
    skipped = [Counter[str](json.loads(text)) for text in pieces["skipped"].to_pylist()]
    return Journal(
        folder=folder,
        keys=keys,
        shards=set(table["name"].to_pylist()),
        pieces=dict(zip(pieces["name"].to_pylist(), zip(counts, skipped, strict=True), strict=True)),
        lost=len(noted_names - size_by_name.keys()),
    )


def _read_entries(journal: AnyPath | None) -> tuple[Any, Any]:
    """Return the entries of shards and those of pieces in a journal; None has none. Raise ResumeError for damage."""
    files = [] if journal is None else found_in(journal, "*.parquet")
    entries = pa.concat_tables([_SCHEMA.empty_table(), *map_in_threads(_read, files)])
    is_shard = pc.is_valid(entries["bytes"])
    return entries.filter(is_shard), entries.filter(pc.invert(is_shard))


def _attempt_of(shard: AnyPath) -> int:
    """Return the number of the attempt whose worker wrote a shard; 0 for a shard of one process."""
    match = WORKER_SHARD_NAME.fullmatch(shard.name)
    return int(match[1]) if match else 0


def _adopt(
    paths: Sequence[AnyPath],
    keys: Integers,
    sizes: Mapping[AnyPath, int],
    on_damage: Callable[[AnyPath, str], None],
) -> list[Any]:
    """Return entries of shards that no journal has; delete a worker's shard with a row that `keys` or another has."""
    entries = []
    new_keys: set[int] = set()
    for path, content in zip(paths, map_in_threads(_read_keys, paths), strict=True):
        if isinstance(content, str):
            on_damage(path, content)
            continue
        is_repeated = _are_among(content, keys).any() or not new_keys.isdisjoint(content.tolist())
        if is_repeated and _attempt_of(path):
            path.unlink()
        else:
            new_keys.update(content.tolist())
            entries.append(make_entry(path.name, content, size_bytes=sizes[path]))
    return entries


def delete_journals(run_folder: AnyPath) -> None:
    """Delete all journals: from then on every shard counts."""
    for folder in found_in(run_folder, "journal-*"):
        remove_tree(folder)


def _number(journal: AnyPath) -> int:
    text = journal.name.rpartition("-")[2]
    return int(text) if text.isdigit() else 0


def _read(path: AnyPath) -> Any:
    try:
        return pq.read_table(pa.BufferReader(path.read_bytes()), schema=_SCHEMA)
    except (pa.ArrowException, OSError) as error:
        raise ResumeError(
            f"the journal {path} is damaged ({one_line(error)}): delete {path.parent}, and every shard that can be "
            "read counts"
        ) from error


def _write(path: AnyPath, entries: Any) -> None:
    with replacing(path) as temporary:
        pq.write_table(entries, temporary, compression="none", use_dictionary=False)  # keys are hashes


def _keys(entries: Any) -> Integers:
    chunks = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in entries["keys"].chunks]
    return np.concatenate([np.empty(0, np.int64), *chunks])


def _are_among(keys: Integers, ordered: Integers) -> Bools:
    if not len(ordered):
        return np.zeros(len(keys), np.bool_)
    is_among: Bools = ordered[np.minimum(ordered.searchsorted(keys), len(ordered) - 1)] == keys
    return is_among


def _read_keys(path: AnyPath) -> Integers | str:
    """The keys of a shard's samples, or the reason why it cannot be read."""
    try:
        return keys_of(names_in(path))
    except (pa.ArrowException, OSError) as error:
        return one_line(error)
