"""Damage to the files of a dataset that nothing writes to: by a bad disk, a synchroniser or a careless hand.

`DAMAGES` is the table: kind of damage -> what does it. Damage to a file keeps its times, as a bad disk does.
"""

from __future__ import annotations

import os
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

BLOCK_BYTES: Final = 512  # what a bad disk loses at once

MANIFEST: Final = "dataset.json"

COPY_NAMES: Final = (
    f"0001-{'ab' * 16}-0.parquet",  # as of a worker that outlived its driver
    "00777.parquet",
    "part-00000.parquet",
    "00001 (conflicted copy).parquet",
)


@dataclass(frozen=True)
class Fault:
    """Something that was done to a run or to its dataset.

    place       what it was done to
    words       a pattern of what a run, a reader or a validation has to say of it; empty if nothing need be said
    cause       a pattern of the refusals that name it; empty if nothing may refuse
    remedy      what the message asks for
    options     that the message asks to add to the command
    """

    place: str
    kind: str = ""
    words: str = ""
    cause: str = ""
    remedy: Callable[[], object] = lambda: None
    options: tuple[str, ...] = ()


Damage = Callable[[Path, random.Random], Fault | None]
"""Damages the dataset in a folder; None if there is nothing that could be damaged so."""

Change = Callable[[Path, random.Random], bool]
"""Changes a file, and says whether it did."""


def shards_in(folder: Path) -> list[Path]:
    """Return all shards of a dataset, also those that do not count."""
    return sorted((folder / "data").glob("*.parquet"))


def flip_bit(path: Path, chance: random.Random) -> bool:
    """Flip one bit of a file; False if it is empty."""
    content = bytearray(path.read_bytes())
    if content:
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        _write_over(path, bytes(content))
    return bool(content)


def zero_block(path: Path, chance: random.Random) -> bool:
    """Zero one block of a file; False if that changes nothing."""
    content = path.read_bytes()
    start = chance.randrange(max(len(content), 1)) // BLOCK_BYTES * BLOCK_BYTES
    block = content[start : start + BLOCK_BYTES]
    _write_over(path, content[:start] + bytes(len(block)) + content[start + BLOCK_BYTES :])
    return any(block)


def cut_short(path: Path, chance: random.Random) -> bool:
    """Keep the beginning of a file; False if it is empty."""
    content = path.read_bytes()
    if content:
        _write_over(path, content[: chance.randrange(len(content))])
    return bool(content)


def lose(path: Path, _chance: random.Random) -> bool:
    """Delete a file."""
    path.unlink()
    return True


def _write_over(path: Path, content: bytes) -> None:
    status = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def _to_shard(change: Change) -> Damage:
    def damage(folder: Path, chance: random.Random) -> Fault | None:
        shards = [path for path in shards_in(folder) if path.name not in COPY_NAMES]
        if not shards:
            return None
        path = chance.choice(shards)
        # Where the manifest is lost, too, only the samples are known.
        words = rf"{re.escape(path.name)}|that are gone: |that have no row yet: "
        return Fault(path.name, words=words) if change(path, chance) else None

    return damage


def _to_manifest(change: Change) -> Damage:
    """Damage to what says which run it is: `dataset.json`, or `run.json` before the end."""

    def damage(folder: Path, chance: random.Random) -> Fault | None:
        path = folder / MANIFEST
        if not path.exists():
            path = folder / ".phrasebox" / "run.json"
        if not path.exists() or not change(path, chance):
            return None
        # Shards say it too. Where there are none yet, nothing is lost by starting over.
        cause = rf"{re.escape(path.name)} is damaged .*--fresh starts over" if not shards_in(folder) else ""
        return Fault(
            path.name,
            words=re.escape(path.name),
            cause=cause,
            options=("--fresh", "--yes") if cause else (),
        )

    return damage


def _to_journal(change: Change) -> Damage:
    def damage(folder: Path, chance: random.Random) -> Fault | None:
        files = sorted((folder / ".phrasebox").glob("journal-*/*.parquet"))
        if not files:
            return None
        path = chance.choice(files)
        if not change(path, chance):
            return None
        journal = path.parent
        return Fault(
            f"{journal.name}/{path.name}",
            cause=rf"the journal .*{re.escape(path.name)} is damaged .*delete .*{journal.name}, and every shard",
            remedy=lambda: shutil.rmtree(journal, ignore_errors=True),
        )

    return damage


def _lose_run_folder(folder: Path, _chance: random.Random) -> Fault | None:
    run_folder = folder / ".phrasebox"
    if not run_folder.exists():
        return None
    shutil.rmtree(run_folder)
    return Fault(run_folder.name)


def _add_file(folder: Path, chance: random.Random) -> Fault | None:
    """Put a file beside the shards: a copy of one, a damaged copy, or something else."""
    shards = shards_in(folder)
    if not shards:
        return None
    path = folder / "data" / chance.choice(COPY_NAMES)
    if path.exists():
        return None
    content = chance.choice(("copy", "damaged copy", "text"))
    if content == "text":
        path.write_bytes(b"no Parquet at all")
    else:
        shutil.copy(chance.choice(shards), path)
    if content == "damaged copy":
        flip_bit(path, chance)
    name = re.escape(path.name)
    return Fault(
        f"{path.name} ({content})",
        words=name,
        cause=rf"(did not write|does not list|move .* (out|away)).*{name}|{name}.*(did not write|does not list)",
        remedy=lambda: path.unlink(missing_ok=True),
    )


DAMAGES: Final[dict[str, Damage]] = {
    "bit flip": _to_shard(flip_bit),
    "zeroed block": _to_shard(zero_block),
    "short shard": _to_shard(cut_short),
    "lost shard": _to_shard(lose),
    "extra file": _add_file,
    "zeroed manifest": _to_manifest(zero_block),
    "short manifest": _to_manifest(cut_short),
    "lost manifest": _to_manifest(lose),
    "zeroed journal": _to_journal(zero_block),
    "lost journal file": _to_journal(lose),
    "lost .phrasebox": _lose_run_folder,
}
"""Those of the run's own folder do nothing to a finished dataset, which has none."""


def damage(kind: str, folder: Path, chance: random.Random) -> Fault | None:
    """Damage the dataset in a folder; None if there is nothing that could be damaged so."""
    fault = DAMAGES[kind](folder, chance)
    return fault and replace(fault, kind=kind)
