"""The run that `--fresh` replaces: how its files are moved aside, and come back if the new run writes nothing.

OUT/.phrasebox/replaced holds the former run's files under their own names until the new run has written its first file.
As long as it is there, the new run's run.json says whether all of them arrived: it has the key `replaces`. Without that
key a run was killed while it moved the files, to there or back, and they come back. So run.json, whose key an earlier
`--fresh` may have left, is the first that goes and the last that comes.
"""

from __future__ import annotations

import json
from typing import Final

from pipeline.output.shards import rows_in
from stages.shared.storage import AnyPath, found_in, move, remove_tree

REPLACES: Final = "replaces"  # The key of run.json

PRESENCE_FILE: Final = "presence.json"  # The calibration of presence that a run has fitted to its first images

BESIDE: Final = ("dataset.json", "README.md", "categories.parquet", PRESENCE_FILE)
"""Files of a finished dataset beside its shards."""


def set_aside(folder: AnyPath) -> None:
    """Move the run in a dataset's folder aside. Files that no run writes stay, unless they are among its shards."""
    for path in _files_of_run(folder):
        _move_below(folder, path, _replaced(folder))


def drop(folder: AnyPath) -> bool:
    """Delete the run set aside if the new one has a file with rows, or is complete; return whether it has."""
    shards = found_in(folder / "data", "*.parquet")
    is_written = (folder / "dataset.json").exists() or any(rows for path in shards for rows in rows_in([path]))
    if is_written:
        remove_tree(_replaced(folder))
    return is_written


def settle(folder: AnyPath) -> bool:
    """Delete the run set aside, or put it back if the new run has written nothing; return whether it was put back."""
    replaced = _replaced(folder)
    if not replaced.exists():
        return False
    if _has_begun(folder):
        if drop(folder):
            return False
        for path in reversed(_files_of_run(folder)):
            if path.is_file():
                path.unlink()
            remove_tree(path)
    for path in reversed(_files_of_run(replaced)):
        _move_below(replaced, path, folder)
    remove_tree(replaced)
    return True


def _replaced(folder: AnyPath) -> AnyPath:
    return folder / ".phrasebox" / "replaced"


def _files_of_run(folder: AnyPath) -> list[AnyPath]:
    """The files of a run, and the folders that are only its own; its marks first."""
    own, data = folder / ".phrasebox", folder / "data"
    beside = [folder / name for name in BESIDE]
    return [
        *(path for path in (own / "run.json", *beside, own / "damaged") if path.exists()),
        *found_in(own, "journal-*"),
        *found_in(data, ".*.tmp"),  # left by a kill
        *found_in(data, "*.parquet"),
    ]


def _move_below(folder: AnyPath, path: AnyPath, other: AnyPath) -> None:
    target = other / str(path).removeprefix(f"{folder}/")
    target.parent.mkdir(parents=True, exist_ok=True)
    move(path, target)


def _has_begun(folder: AnyPath) -> bool:
    try:
        return REPLACES in json.loads((folder / ".phrasebox" / "run.json").read_bytes())
    except (FileNotFoundError, ValueError):
        return False
