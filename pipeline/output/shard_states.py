"""What became of the shards of previous attempts, by their names, sizes and digests. Nothing is changed here."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from phrasebox.pipeline.output.shards import map_in_threads
from phrasebox.stages.files.shards import sha256_of
from phrasebox.stages.files.storage import AnyPath, sizes_in

WORKER_SHARD_NAME: Final = re.compile(r"(\d{4,})-[0-9a-f]{32}-\d+\.parquet")
"""Names of workers' shards: the attempt, a hash of the sample ids of a write, and the number of the
file in it."""

SHARD_NAME: Final = re.compile(rf"\d{{5,}}\.parquet|{WORKER_SHARD_NAME.pattern}")
"""Names of shards: one process numbers its shards."""


def attempt_of(shard: AnyPath) -> int:
    """Return the number of the attempt whose worker wrote a shard; 0 for a shard of one process."""
    match = WORKER_SHARD_NAME.fullmatch(shard.name)
    return int(match[1]) if match else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Shards:
    """The shards of previous attempts by what becomes of them: those in the folder by name, copies last.

    Attributes:
        whole: The entries of those that are as they were noted.
        adoptable: Those that count if all of them can be read and their rows are new.
        late: Those that workers of older attempts have written late. They go.
        damaged: Those with the noted size and another digest.
        unlisted: Those that the list of a finished dataset lacks.
        gone: The number of those that were noted and are not in the folder.
    """

    whole: Any
    adoptable: Sequence[AnyPath]
    late: Sequence[AnyPath]
    damaged: Sequence[AnyPath]
    unlisted: Sequence[AnyPath]
    gone: int

    @property
    def last_attempt(self) -> int:
        """The number of the last attempt that wrote one of those that are not whole; 0 without any."""
        paths = (*self.adoptable, *self.late, *self.damaged, *self.unlisted)
        return max(map(attempt_of, paths), default=0)


def classify(entries: Any, data: AnyPath, *, attempt: int | None, is_listed: bool) -> Shards:
    """Compare the shards in a folder with their entries.

    Args:
        entries: The entries of shards, with their keys.
        data: The folder of shards.
        attempt: The number of the attempt that noted them; None without a journal.
        is_listed: Whether a finished dataset lists all of its shards.
    """
    sizes = sizes_in(data, "*.parquet")
    states = dict(zip(entries["name"].to_pylist(), _states_of(entries, data, sizes), strict=True))

    def fate_of(path: AnyPath) -> str:
        if path.name in states:
            state = states[path.name]
            return "adoptable" if state == "resized" else state
        if is_listed:
            return "unlisted"
        return "adoptable" if attempt is None or attempt_of(path) in (0, attempt) else "late"

    paths = defaultdict[str, list[AnyPath]](list)
    # A copy has the name of no shard, and comes after what it copies.
    for path in sorted(sizes, key=lambda path: (SHARD_NAME.fullmatch(path.name) is None, path.name)):
        paths[fate_of(path)].append(path)
    return Shards(
        whole=entries.filter(pa.array([state == "whole" for state in states.values()], pa.bool_())),
        adoptable=paths["adoptable"],
        late=paths["late"],
        damaged=paths["damaged"],
        unlisted=paths["unlisted"],
        gone=sum(state == "gone" for state in states.values()),
    )


def _states_of(entries: Any, data: AnyPath, sizes: Mapping[AnyPath, int]) -> list[str]:
    """Return what became of each shard in the journal: "whole", "damaged", "resized" or "gone".

    One of the same size without a digest in the journal is "resized" too: all of it is read.
    """

    def state_of(row: Mapping[str, Any]) -> str:
        path = data / row["name"]
        if path not in sizes:
            return "gone"
        if sizes[path] != row["bytes"]:
            return "resized"
        if row["is_unreadable"]:
            return "damaged"
        if not isinstance(path, Path):
            return "whole"
        if row["sha256"] is None:
            return "resized"
        try:
            return "whole" if sha256_of(path) == row["sha256"] else "damaged"
        except OSError:
            return "damaged"

    facts = entries.append_column("is_unreadable", pc.is_null(entries["keys"]))
    return map_in_threads(state_of, facts.drop_columns(["keys", "skipped"]).to_pylist())
