"""The journal of a run: the shards that hold its rows, and the pieces of the input that were read to their end.

A worker writes a shard under a temporary name, and renames it when it is whole. A kill leaves the
temporary file, which is no shard; the end of the run deletes it. The worker hands the shard's name,
size, digests and keys to the driver. Only the driver writes the journal: now and then a file
OUT/.phrasebox/journal-AAAA/NNNNN.parquet of its attempt at the run. A resumed run is the next
attempt, and takes over from the previous one (`take_over`). What becomes of the shards of a
killed run:

in the journal, and there with its digest   It counts. In object storage, which watches over its own content, one
                                            listing says so by size.
in the journal, but gone                    Its rows are done again (`Journal.lost`).
in the journal, with another digest         It is moved aside, and its rows are done again.
in the journal, but of another size         As one of the previous attempt that is not in it: its ids may be new.
not in it, of the previous attempt          The driver had no time to note it. It counts if all of it can be read
                                            and its checksums are right; else it is moved aside, and
                                            its rows are done again. It goes if it has a row that
                                            another shard has: a worker has written it twice.
not in it, of an older attempt              It is deleted: a worker that outlived its driver has written it late. On a
                                            cluster workers live on for longer. The end of a run
                                            deletes such shards of the previous attempt
                                            (`Journal.late_shards`).
of one process, which has no late workers   It counts if all of it can be read. It is moved aside if it has a row that
                                            another shard has: somebody has copied it. The names of
                                            these shards have no attempt.

All shards that count become the first file of the new journal, which decides from then on. What goes
is deleted after that. Where a finished dataset gets more rows, its list of shards takes the place of
the journal, and what is not listed is moved aside. Without either all shards count: the end of a run
deletes the journal. A piece of the input is not read again if it was read to its end and each of its
samples has a row.
"""

from __future__ import annotations

import json
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Final, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from phrasebox.pipeline.output.shard_states import WORKER_SHARD_NAME, attempt_of, classify
from phrasebox.pipeline.output.shards import keys_of, map_in_threads, names_in, read_whole
from phrasebox.stages.contract.errors import ResumeError, one_line
from phrasebox.stages.contract.records import Record
from phrasebox.stages.contract.values import Bools, Integers
from phrasebox.stages.files.shards import ShardFile, read_shard_file
from phrasebox.stages.files.storage import AnyPath, found_in, remove_tree, replacing
from phrasebox.stages.read import Piece

_FIRST: Final = "00000.parquet"
_SCHEMA: Final = pa.schema(
    [
        ("name", pa.string()),
        ("bytes", pa.int64()),
        ("keys", pa.list_(pa.int64())),
        ("skipped", pa.string()),
        ("sha256", pa.string()),
        ("footer_sha256", pa.string()),
    ]
)
"""A row is a shard, where patch releases before this one noted no digests; or, where `bytes` is
null, a piece of the input, with the rows that gave no sample as JSON."""

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


def shard_entry(shard: ShardFile, keys: Integers | Sequence[int]) -> Any:
    """Return the entry of a shard, an Arrow table of one row. keys: Those of the samples of its rows."""
    row = {
        "name": shard.name,
        "bytes": shard.size_bytes,
        "keys": keys,
        "sha256": shard.sha256,
        "footer_sha256": shard.footer_sha256,
    }
    return pa.Table.from_pylist([row], schema=_SCHEMA)


def piece_entry(name: str, keys: Integers | Sequence[int], skipped: Mapping[str, int]) -> Any:
    """Return the entry of a piece of the input that was read to its end, an Arrow table of one row.

    keys: Those of its samples. skipped: Its rows without a sample, by reason.
    """
    row = {"name": name, "keys": keys, "skipped": json.dumps(skipped)}
    return pa.Table.from_pylist([row], schema=_SCHEMA)


class SetAside(Protocol):
    """Moves a shard out of the dataset, and says why, as the rest of a sentence."""

    def __call__(self, path: AnyPath, reason: str, *, is_lost: bool) -> None:
        """is_lost: Whether its rows have to be made again."""


@dataclass(slots=True)
class Journal:
    """The journal of an attempt that has taken over. Threads may add to it; one of them writes.

    Attributes:
        folder: The folder of the journal.
        keys: The keys of the samples that had rows before, sorted.
        shards: The shards that count, by name.
        pieces: The pieces of the input that are done: samples, and rows without a sample by reason.
        lost: The number of shards of previous attempts that are missing.
    """

    folder: AnyPath
    keys: Integers
    shards: dict[str, ShardFile]
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
        record_keys = np.sort(np.array([record.sample.key for record in records], np.int64))
        return np.insert(self.keys, self.keys.searchsorted(record_keys), record_keys)

    def add_shards(self, entries: Any) -> None:
        """Note shards; write the journal if it is time to. Raise OSError."""
        self.add(entries)
        self.shards.update(_shards_of(entries))
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
    run_folder: AnyPath,
    data: AnyPath,
    *,
    same_input: bool,
    set_aside: SetAside,
    listed: Sequence[ShardFile] = (),
) -> Journal:
    """Begin an attempt, and write its journal. A call that was killed at any point is repeated without loss.

    Args:
        run_folder: The folder of journals.
        data: The folder of shards.
        same_input: Whether the attempt before had the same input; else all of it is read again.
        set_aside: Called with each shard that does not count, unless a worker has written it late.
        listed: The shards of a finished dataset, where there is no journal.

    Raises:
        ResumeError: A journal is damaged.
    """
    folders = sorted(found_in(run_folder, "journal-*"), key=_number)
    previous = next((folder for folder in reversed(folders) if (folder / _FIRST).exists()), None)
    noted, pieces = _read_entries(previous)
    if previous is None and listed:
        noted = _with_keys(pa.concat_tables([shard_entry(shard, ()) for shard in listed]), data)
    attempt = None if previous is None else _number(previous)
    shards = classify(noted, data, attempt=attempt, is_listed=bool(listed))
    # From here on nothing is refused. What goes is deleted when the journal has all that counts.
    for path in shards.damaged:
        set_aside(path, "is damaged (its digest is not that of its run)", is_lost=True)
    for path in shards.unlisted:
        set_aside(path, "is not in the list of dataset.json", is_lost=False)
    adopted, repeated = _adopt(shards.adoptable, np.sort(_keys(shards.whole)), set_aside)
    counted = pa.concat_tables([shards.whole, *adopted])
    keys = np.sort(_keys(counted))
    pieces = _done_pieces(pieces, keys) if same_input else pieces.slice(0, 0)
    last_attempt = max([shards.last_attempt, *map(_number, folders)])
    folder = run_folder / f"journal-{last_attempt + 1:04d}"
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / _FIRST, pa.concat_tables([counted, pieces]))
    for path in (*shards.late, *repeated):
        path.unlink()
    for path in folders:
        remove_tree(path)
    return Journal(
        folder=folder,
        keys=keys,
        shards=_shards_of(counted),
        pieces=_pieces_of(pieces),
        lost=shards.gone,
    )


def _done_pieces(pieces: Any, keys: Integers) -> Any:
    """Return the entries of the pieces that need not be read again; `keys` are those of the rows that are done."""
    is_done = [bool(_are_among(piece.values.to_numpy(), keys).all()) for piece in pieces["keys"]]
    return pieces.filter(pa.array(is_done, pa.bool_()))


def _pieces_of(entries: Any) -> dict[str, tuple[int, Counter[str]]]:
    counts = pc.list_value_length(entries["keys"]).to_pylist()
    skipped = [Counter[str](json.loads(text)) for text in entries["skipped"].to_pylist()]
    return dict(zip(entries["name"].to_pylist(), zip(counts, skipped, strict=True), strict=True))


def _with_keys(entries: Any, data: AnyPath) -> Any:
    """Return entries of shards with the keys of their rows; with null for one that cannot be read."""

    def read_keys(name: str) -> Integers | None:
        with suppress(pa.ArrowException, OSError, UnicodeDecodeError):
            return keys_of(names_in(data / name))
        return None

    keys = pa.array(map_in_threads(read_keys, entries["name"].to_pylist()), _SCHEMA.field("keys").type)
    return entries.set_column(entries.schema.get_field_index("keys"), _SCHEMA.field("keys"), keys)


def _shards_of(entries: Any) -> dict[str, ShardFile]:
    rows = entries.drop_columns(["keys", "skipped"]).to_pylist()
    counts = pc.list_value_length(entries["keys"]).to_pylist()
    return {
        row["name"]: ShardFile(
            name=row["name"],
            rows=count,
            size_bytes=row["bytes"],
            sha256=row["sha256"],
            footer_sha256=row["footer_sha256"],
        )
        for row, count in zip(rows, counts, strict=True)
    }


def _read_entries(journal: AnyPath | None) -> tuple[Any, Any]:
    """Return the entries of shards and those of pieces in a journal; None has none. Raise ResumeError for damage."""
    files = [] if journal is None else found_in(journal, "*.parquet")
    entries = pa.concat_tables([_SCHEMA.empty_table(), *map_in_threads(_read, files)])
    is_shard = pc.is_valid(entries["bytes"])
    return entries.filter(is_shard), entries.filter(pc.invert(is_shard))


def _adopt(
    paths: Sequence[AnyPath], keys: Integers, set_aside: SetAside
) -> tuple[list[Any], list[AnyPath]]:
    """Return entries of those shards all of whose rows are new, and the shards that a worker has written twice.

    keys: Those of the shards that count already.
    """
    entries = []
    repeated = []
    new_keys: set[int] = set()
    for path, content in zip(paths, map_in_threads(_read_content, paths), strict=True):
        if isinstance(content, str):
            set_aside(path, f"is damaged ({content})", is_lost=True)
            continue
        shard, shard_keys = content
        is_repeated = _are_among(shard_keys, keys).any() or not new_keys.isdisjoint(shard_keys.tolist())
        if is_repeated and attempt_of(path):
            repeated.append(path)
        elif is_repeated:
            set_aside(path, "holds rows that another shard holds, too", is_lost=False)
        else:
            new_keys.update(shard_keys.tolist())
            entries.append(shard_entry(shard, shard_keys))
    return entries, repeated


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


def _read_content(path: AnyPath) -> tuple[ShardFile, Integers] | str:
    """What is to be noted of a shard, or the reason why it cannot be read."""
    try:
        return read_shard_file(path), keys_of(read_whole(path))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        return one_line(error)
