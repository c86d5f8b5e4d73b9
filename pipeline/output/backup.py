"""The backup of the run that `--fresh` replaces: its files come back if the new run writes nothing.

OUT/.phrasebox/replaced holds the previous run's files under their names until the new run has
written its first file. While it exists, the key `replaces` in the new run's run.json means that
all files have arrived there. Without that key a run was killed while it moved the files, there
or back, and they come back. So run.json is moved there first and back last: an earlier
`--fresh` may have left the key in it.
"""

from __future__ import annotations

import json
from typing import Final

from phrasebox.pipeline.dataset.croissant import CROISSANT_FILE
from phrasebox.pipeline.output.shards import count_readable_rows
from phrasebox.stages.files.storage import AnyPath, found_in, move, remove_tree

REPLACES: Final = "replaces"
"""The key of run.json by which a run says that it replaces another one."""

FIRST_IMAGES: Final = "first-images"
"""The folder in `.phrasebox` for records of a run's first images, see `phrasebox.pipeline.output.first_images`."""

PRESENCE_FILE: Final = "presence.json"
"""The calibration of presence that a run has fitted to its first images."""

COMPANION_FILES: Final = ("dataset.json", "README.md", CROISSANT_FILE, "categories.parquet", PRESENCE_FILE)
"""Files of a finished dataset beside its shards."""


def back_up(folder: AnyPath) -> None:
    """Move the run in a dataset's folder into a backup. Files that no run writes stay, except among its shards."""
    for path in _files_of_run(folder):
        _move_between(folder, path, _backup_of(folder))


def drop_backup(folder: AnyPath) -> bool:
    """Delete the backup if the new run has a file with rows, or is complete; return whether it has."""
    shards = found_in(folder / "data", "*.parquet")
    is_written = (folder / "dataset.json").exists() or count_readable_rows(shards) > 0
    if is_written:
        remove_tree(_backup_of(folder))
    return is_written


def recover(folder: AnyPath) -> bool:
    """Delete the backup, or restore it if the new run has written nothing; return whether it was restored."""
    backup = _backup_of(folder)
    if not backup.exists():
        return False
    if _is_replacing(folder):
        if drop_backup(folder):
            return False
        for path in reversed(_files_of_run(folder)):
            if path.is_file():
                path.unlink()
            remove_tree(path)
    for path in reversed(_files_of_run(backup)):
        _move_between(backup, path, folder)
    remove_tree(backup)
    return True


def _backup_of(folder: AnyPath) -> AnyPath:
    return folder / ".phrasebox" / "replaced"


def _files_of_run(folder: AnyPath) -> list[AnyPath]:
    """The files of a run, and the folders that hold nothing else; those of `.phrasebox` first."""
    run_folder = folder / ".phrasebox"
    data = folder / "data"
    companions = [folder / name for name in COMPANION_FILES]
    return [
        *(path for path in (run_folder / "run.json", *companions, run_folder / "damaged") if path.exists()),
        *found_in(run_folder, "journal-*"),
        *found_in(run_folder, FIRST_IMAGES),
        *found_in(data, ".*.tmp"),  # left by a kill
        *found_in(data, "*.parquet"),
    ]


def _move_between(folder: AnyPath, path: AnyPath, other: AnyPath) -> None:
    target = other / str(path).removeprefix(f"{folder}/")
    target.parent.mkdir(parents=True, exist_ok=True)
    move(path, target)


def _is_replacing(folder: AnyPath) -> bool:
    try:
        return REPLACES in json.loads((folder / ".phrasebox" / "run.json").read_bytes())
    except (FileNotFoundError, ValueError):
        return False
