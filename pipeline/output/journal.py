"""The journal of a run: the shards that hold its rows, and the parts of the input that were read to their end.

A worker writes a shard, which appears in its folder whole or not at all, and hands its name, size and keys to the
driver. Only the driver writes the journal: now and then a file OUT/.phrasebox/journal-AAAA/NNNNN.parquet of its attempt
at the run. A resumed run is the next attempt, and takes over as follows:

1. It reads the journal of the attempt before, and those shards that this one had no time to note. All of them become
   the first file of its own journal, which decides from then on. Workers of a killed driver live on for a moment, on a
   cluster for longer: the shards that they still write are in no journal, and are deleted at the end.
2. Shards that are missing, damaged or of another size are found by one listing of their folder. Their rows are done
   again, unless the shard can be read. A shard with rows that another one has is deleted.
3. A part of the input is not read again if it was read to its end and each of its samples has a row.

Shards of one process are numbered. Nobody outlives it, so that they always count, and so do all where there is no
journal: at the end of a run it is deleted.
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
from numpy.typing import NDArray

from pipeline.output.shards import in_threads, keys_of, names_in
from stages.contract.errors import ResumeError, one_line
from stages.contract.records import Record
from stages.read import Shard
from stages.shared.storage import AnyPath, found_in, remove_tree, replacing, sizes_in

SHARD: Final = re.compile(r"(\d{4,})-[0-9a-f]{32}-\d+\.parquet")
"""Names of workers' shards: the attempt, a hash of the sample ids of a write, and the number of the file in it."""

_FIRST: Final = "00000.parquet"
_SCHEMA: Final = pa.schema(
    [("name", pa.string()), ("bytes", pa.int64()), ("keys", pa.list_(pa.int64())), ("skipped", pa.string())]
)
"""A row is a shard; or, where `bytes` is null, a part of the input with its rows without a sample, as JSON."""

FLUSH_SECONDS: Final = 5.0
FLUSH_SHARE: Final = 0.01
"""The journal is written every few seconds, in long attempts after a hundredth of the time that they have lasted: so it
has some hundreds of files, and what a killed driver had no time to note is a hundredth of its shards."""


def part_name(shard: Shard) -> str:
    """Return the name of a part of the input: another one if it has another extent."""
    return blake2b(repr(shard).encode(), digest_size=16).hexdigest()


def write_name(sample_ids: Sequence[str], attempt: int) -> str:
    """Return the name of the files of a write, without number and suffix; the same if the write is repeated."""
    return f"{attempt:04d}-{blake2b(json.dumps(sample_ids).encode(), digest_size=16).hexdigest()}"


def entry(
    name: str,
    keys: NDArray[np.int64] | Sequence[int],
    *,
    size_bytes: int | None = None,
    skipped: Mapping[str, int] | None = None,
) -> Any:
    """Return an entry, an Arrow table of one row: a shard with its bytes, or a part of the input that was read.

    keys: Those of the shard's samples, or of all samples of the part. skipped: Its rows without a sample, by reason.
    """
    row = {"name": name, "bytes": size_bytes, "keys": keys, "skipped": json.dumps(skipped)}
    return pa.Table.from_pylist([row], schema=_SCHEMA)


@dataclass(slots=True)
class Journal:
    """The journal of an attempt that has taken over. Threads may add to it; one of them writes."""

    folder: AnyPath
    keys: NDArray[np.int64]  # of the samples that had rows before, sorted
    shards: set[str]  # names of the shards that count
    read: dict[str, tuple[int, Counter[str]]]  # parts of the input that are done: samples, rows without by reason
    gone: int = 0  # shards of former attempts that are no more
    _new: deque[Any] = field(default_factory=deque)  # entries
    _files: int = 0
    _begun: float = field(default_factory=time.monotonic)
    _written: float = 0.0

    @property
    def attempt(self) -> int:
        """The number of this attempt at the run, from 1 on."""
        return _number(self.folder)

    def keys_with(self, records: Sequence[Record]) -> NDArray[np.int64]:
        """Return the keys of the samples that had rows before, and of these records, sorted."""
        new = np.array([record.sample.key for record in records], np.int64)
        return np.sort(np.concatenate([self.keys, new]))

    def add_shards(self, entries: Any) -> None:
        """Note shards; write the journal if it is time to. Raise OSError."""
        self.add(entries)
        self.shards.update(entries["name"].to_pylist())
        now = time.monotonic()
        if now - self._written > max(FLUSH_SECONDS, FLUSH_SHARE * (now - self._begun)):
            self.flush()

    def add(self, entries: Any) -> None:
        """Note parts of the input that were read to their end."""
        self._new.append(entries)

    def flush(self) -> None:
        """Write what is new. Raise OSError."""
        new = [self._new.popleft() for _ in range(len(self._new))]
        if new:
            self._files += 1
            _write(self.folder / f"{self._files:05d}.parquet", pa.concat_tables(new))
        self._written = time.monotonic()

    def strangers(self, data: AnyPath) -> list[AnyPath]:
        """Return the shards in a folder that workers of former attempts wrote after this one took over."""
        found = found_in(data, "*.parquet")
        return [path for path in found if SHARD.fullmatch(path.name) and path.name not in self.shards]


def take_over(own: AnyPath, data: AnyPath, *, same_input: bool, set_aside: Callable[[AnyPath, str], None]) -> Journal:
    """Begin an attempt, and write its journal. Killed at any point, the same call does the same again.

    Args:
        own: The folder of journals.
        data: The folder of shards.
        same_input: Whether the input is that of the attempt before; else all of it is read.
        set_aside: Called with a shard that cannot be read, and the reason.

    Raises:
        ResumeError: A journal is damaged.
    """
    former = sorted(found_in(own, "journal-*"), key=_number)
    last = next((folder for folder in reversed(former) if (folder / _FIRST).exists()), None)
    files = [] if last is None else found_in(last, "*.parquet")
    noted = pa.concat_tables([_SCHEMA.empty_table(), *in_threads(_read, files)])
    is_shard = pc.is_valid(noted["bytes"])
    shards, parts = noted.filter(is_shard), noted.filter(pc.invert(is_shard))
    found = sizes_in(data, "*.parquet")
    sizes = {path.name: size for path, size in found.items()}
    known = shards["name"].to_pylist()
    whole = [sizes.get(name) == size for name, size in zip(known, shards["bytes"].to_pylist(), strict=True)]
    kept = shards.filter(pa.array(whole, pa.bool_()))
    done = np.sort(_keys(kept))
    looked_at, attempts = [], [0]
    for path in sorted(found.keys() - {data / name for name in kept["name"].to_pylist()}, key=str):
        match = SHARD.fullmatch(path.name)
        attempts.append(int(match[1]) if match else 0)
        if match and last is not None and path.name not in known and int(match[1]) != _number(last):
            path.unlink()
        else:
            looked_at.append(path)
    entries, seen = [kept], set[int]()
    for path, answer in zip(looked_at, in_threads(_keys_or_fault, looked_at), strict=True):
        if isinstance(answer, str):
            set_aside(path, answer)
        elif SHARD.fullmatch(path.name) and (_among(answer, done).any() or not seen.isdisjoint(answer.tolist())):
            path.unlink()
        else:
            seen.update(answer.tolist())
            entries.append(entry(path.name, answer, size_bytes=found[path]))
    table = pa.concat_tables(entries)
    done = np.sort(_keys(table))
    is_done = [same_input and bool(_among(one.values.to_numpy(), done).all()) for one in parts["keys"]]
    parts = parts.filter(pa.array(is_done, pa.bool_()))
    place = own / f"journal-{1 + max([*attempts, *map(_number, former)]):04d}"
    place.mkdir(parents=True, exist_ok=True)
    _write(place / _FIRST, pa.concat_tables([table, parts]))
    for folder in former:
        remove_tree(folder)
    names, counts = parts["name"].to_pylist(), pc.list_value_length(parts["keys"]).to_pylist()
    skipped = [Counter[str](json.loads(text)) for text in parts["skipped"].to_pylist()]
    return Journal(
        folder=place,
        keys=done,
        shards=set(table["name"].to_pylist()),
        read=dict(zip(names, zip(counts, skipped, strict=True), strict=True)),
        gone=len(known) - sum(name in sizes for name in known),
    )


def forget(own: AnyPath) -> None:
    """Delete all journals: from then on every shard counts."""
    for folder in found_in(own, "journal-*"):
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


def _keys(entries: Any) -> NDArray[np.int64]:
    chunks = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in entries["keys"].chunks]
    return np.concatenate([np.empty(0, np.int64), *chunks])


def _among(keys: NDArray[np.int64], ordered: NDArray[np.int64]) -> NDArray[np.bool_]:
    if not len(ordered):
        return np.zeros(len(keys), np.bool_)
    found: NDArray[np.bool_] = ordered[np.minimum(ordered.searchsorted(keys), len(ordered) - 1)] == keys
    return found


def _keys_or_fault(path: AnyPath) -> NDArray[np.int64] | str:
    """The keys of a shard's samples, or why it is of no use."""
    try:
        return keys_of(names_in(path))
    except (pa.ArrowException, OSError) as error:
        return one_line(error)
