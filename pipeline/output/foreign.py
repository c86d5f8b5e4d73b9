"""Files in a dataset's folder that no run of phrasebox wrote: they are not joined, nor deleted without a question."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from stages.contract.errors import ResumeError
from stages.shared.storage import AnyPath

OWN_SHARD: Final = re.compile(r"\d{5,}\.parquet|(?:[0-9A-Za-z]+_)?[0-9a-f]{32}_\d{6,}-\d+\.parquet")
"""Names that the inline engine and Ray Data give to shards."""

MayDelete = Callable[[str, list[AnyPath]], bool]
"""Asked before a run is deleted: what is there, as in "out holds a finished dataset with 12 rows", and which files are
in the way that no run wrote."""


def delete_what_runs_wrote(_: str, foreign: list[AnyPath]) -> bool:
    """Answer `MayDelete` without a terminal: --fresh is enough for files that runs wrote, and for no others."""
    return not foreign


def strange(shards: Iterable[AnyPath]) -> list[AnyPath]:
    """Return those shards that no engine names so."""
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
