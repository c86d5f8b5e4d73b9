"""The run that `--fresh` replaces: which files may be deleted, and how they come back if the new run writes nothing.

OUT/.phrasebox/replaced holds the former run's files under their own names until the new run has written its first file.
As long as it is there, the new run's run.json says whether all of them arrived: it has the key `replaces`. Without that
key a run was killed while it moved the files, to there or back, and they come back. So run.json, whose key an earlier
`--fresh` may have left, is the first that goes and the last that comes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from pipeline.output.shards import rows_in
from stages.contract.errors import ResumeError
from stages.shared.storage import AnyPath, found_in, move, remove_tree

REPLACES: Final = "replaces"  # The key of run.json

OWN_SHARD: Final = re.compile(r"\d{5,}\.parquet|(?:[0-9A-Za-z]+_)?[0-9a-f]{32}_\d{6,}-\d+\.parquet")
"""Names that the inline engine and Ray Data give to shards."""

MayDelete = Callable[[str, list[AnyPath]], bool]
"""Asked before a run is deleted, with what is there, as in "out holds a finished dataset with 12 rows", and the files
among it that no run wrote."""


def delete_what_runs_wrote(_: str, foreign: list[AnyPath]) -> bool:
    """Answer `MayDelete` without a terminal: --fresh is enough for files that runs wrote, and for no others."""
    return not foreign


def strange(shards: Iterable[AnyPath]) -> list[AnyPath]:
    """Return the shards whose names no engine gives."""
    return [path for path in shards if not OWN_SHARD.fullmatch(path.name)]


def edited_cards(folder: AnyPath, manifest: Mapping[str, Any]) -> list[AnyPath]:
    """Return the dataset card of a folder if somebody has edited it, in a list.

    manifest: The dataset's, which knows the card; empty if the dataset is not finished.
    """
    card = folder / "README.md"
    if not card.is_file():
        return []
    text = card.read_bytes()
    if manifest:
        is_edited = manifest.get("card_sha256") not in (None, hashlib.sha256(text).hexdigest())
    else:
        is_edited = b"Made by phrasebox" not in text
    return [card] if is_edited else []


def refuse_strange(folder: AnyPath, paths: Iterable[AnyPath]) -> None:
    """Raise ResumeError if there are any."""
    if names := ", ".join(sorted(path.name for path in paths)[:5]):
        raise ResumeError(
            f"{folder} holds files that phrasebox did not write ({names}): give another output.path, or move them away"
        )


def refuse_to_delete(folder: AnyPath, what: str, foreign: list[AnyPath], may_delete: MayDelete) -> None:
    """Raise ResumeError unless a run, with the foreign files among its own, may be deleted."""
    if may_delete(what, foreign):
        return
    names = ", ".join(str(path).removeprefix(f"{folder}/") for path in foreign[:5])
    raise ResumeError(
        f"--fresh would delete files in {folder} that phrasebox did not write ({names}): move them away, or add --yes. "
        "Nothing was deleted"
        if foreign
        else f"{folder} stays as it is: nothing was deleted"
    )


def set_aside(folder: AnyPath) -> None:
    """Move the run in a dataset's folder aside. Files that no run writes stay, unless they are among its shards."""
    for path in _files_of_run(folder):
        _move_below(folder, path, _replaced(folder))


def drop(folder: AnyPath) -> bool:
    """Delete the run set aside if the new one has a file with rows, or is complete; return whether it has."""
    shards = found_in(folder / "data", "*.parquet")
    is_written = (folder / "dataset.json").exists() or any(rows_in([path]) for path in shards)
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
    beside = [folder / name for name in ("dataset.json", "README.md", "categories.parquet")]
    return [
        *(path for path in (own / "run.json", *beside, own / "damaged") if path.exists()),
        *found_in(own, "checkpoint-*"),
        *found_in(data, ".*.tmp"),  # left by a kill
        *found_in(data, "*.parquet"),
    ]


def _move_below(folder: AnyPath, path: AnyPath, other: AnyPath) -> None:
    target = other / str(path).removeprefix(f"{folder}/")
    target.parent.mkdir(parents=True, exist_ok=True)
    move(path, target)


def _has_begun(folder: AnyPath) -> bool:
    """Whether the run that replaces another has begun."""
    try:
        return REPLACES in json.loads((folder / ".phrasebox" / "run.json").read_bytes())
    except (FileNotFoundError, ValueError):
        return False
