"""The run that a dataset's folder holds, and whether another run may resume or replace it. Nothing is changed here."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from pipeline.config import differences
from pipeline.output.journal import SHARD
from pipeline.output.replaced import BESIDE, REPLACES
from pipeline.output.shards import rows_in
from pipeline.paths import with_absolute_paths
from pipeline.terminal import counted
from stages.contract.errors import ResumeError
from stages.shared.model.config import AUTO, PrecisionChoice
from stages.shared.storage import AnyPath, found_in

State = Literal["new", "started", "complete"]

OWN_SHARD: Final = re.compile(rf"\d{{5,}}\.parquet|{SHARD.pattern}")
"""Names of shards: those of one process are numbered."""

COMMAND: Final = "command"
"""The key of run.json, and of `run` in dataset.json, for a hash of the command that made the rows. With the same hash
and the same input a complete dataset needs no closer look."""

MayDelete = Callable[[str, list[AnyPath]], bool]
"""Asked before a run is deleted, with what is there, as in "out holds a finished dataset with 12 rows", and the files
among it that no run wrote."""


def delete_what_runs_wrote(_: str, foreign: list[AnyPath]) -> bool:
    """Answer `MayDelete` without a terminal: --fresh is enough for files that runs wrote, and for no others."""
    return not foreign


@dataclass(frozen=True, slots=True, kw_only=True)
class FormerRun:
    """The run that a folder holds.

    `state` is "complete" if every row of the run is there, "started" if some are, else "new".
    """

    state: State
    wanted: dict[str, Any]  # the plain values that rows of this run depend on
    run: dict[str, Any] = field(default_factory=dict)  # those of the run in the folder, and more; empty if it is new
    manifest: dict[str, Any] = field(default_factory=dict)  # of a finished dataset, also if it has lost rows since
    shards: tuple[AnyPath, ...] = ()  # of a complete run
    replaces: bool = False  # whether `fresh` replaces a run


def find(folder: AnyPath, wanted: dict[str, Any], *, may_delete: MayDelete | None, written_as: str) -> FormerRun:
    """Return the run in a folder if another one may write there. Raise ResumeError as `DatasetFolder.look`.

    Args:
        folder: The dataset's.
        wanted: The plain values that rows of the other run depend on.
        may_delete: Asked before the run is replaced; None resumes it.
        written_as: The folder's path as the user wrote it.
    """
    shards = _shards(folder)
    if may_delete is not None and _may_be_replaced(folder, shards, may_delete, written_as):
        return FormerRun(state="new", wanted=wanted, replaces=True)
    stored = _stored(folder)
    if stored is None:
        _reject_foreign(folder, [path for path in (*shards, *(folder / name for name in BESIDE)) if path.exists()])
        return FormerRun(state="new", wanted=wanted)
    run, manifest = stored
    is_whole = _is_whole(manifest, shards)
    state: State = "complete" if is_whole else "started"
    found = FormerRun(state=state, wanted=wanted, run=run, manifest=manifest, shards=tuple(shards))
    if not is_whole:
        reject_more_rows(folder, found)
    values = {key: run.get(key) for key in wanted}
    values["config"] = with_absolute_paths(values["config"] or {})
    values["phrasebox_version"] = wanted["phrasebox_version"]
    if differing := differences(values, wanted):
        listed = "\n".join(f"  {line}" for line in differing)
        raise ResumeError(
            f"{folder} holds a run with other settings:\n{listed}\n"
            "Give another folder, or --fresh to delete that run and start over.",
            key="output.path",
        )
    return found


def is_complete(folder: AnyPath, noted: Mapping[str, Any]) -> bool:
    """Return whether a folder holds all rows of a run that has stored these values. Raise ResumeError as `find`."""
    run, manifest = _stored(folder) or ({}, {})
    return noted.items() <= run.items() and _is_whole(manifest, _shards(folder))


def precision_in(folder: AnyPath) -> PrecisionChoice:
    """Return the precision of the run in a folder; `auto` where none is decided. Raise ResumeError as `find`."""
    run, _ = _stored(folder) or ({}, {})
    precision: PrecisionChoice = run.get("config", {}).get("model", {}).get("precision", AUTO)
    return precision


def _is_whole(manifest: Mapping[str, Any], shards: Sequence[AnyPath]) -> bool:
    """Return whether a dataset is finished and has lost no rows since."""
    return bool(manifest) and sum(count or 0 for count in rows_in(shards)) >= manifest["counts"]["written"]


def reject_more_rows(folder: AnyPath, found: FormerRun) -> None:
    """Raise ResumeError if the run in the folder cannot get more rows."""
    made_by, this = (run.get("phrasebox_version") for run in (found.run, found.wanted))
    if _release(made_by) != _release(this):
        what = "a run" if found.manifest else "an unfinished run"
        raise ResumeError(
            f"{folder} holds {what} of phrasebox {made_by or '(unknown version)'}, this is {this}, whose "
            "rows may differ: finish it with that version, or --fresh to start over"
        )
    _reject_foreign(folder, _foreign(_shards(folder)))


def _release(version: str | None) -> list[str] | None:
    """Major and minor version; patches leave rows as they are."""
    return version.split(".")[:2] if version else None


class _DamagedMarkError(ResumeError):
    """The file that says which run is in the folder cannot be read."""


def _stored(folder: AnyPath) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The values that rows of the run in the folder depend on, and its manifest, empty until it is complete.

    None if there is no run. Raise ResumeError for a manifest that is not phrasebox's, and _DamagedMarkError.
    """
    manifest_path = folder / "dataset.json"
    for path in (manifest_path, folder / ".phrasebox" / "run.json"):
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        except ValueError as error:
            raise _DamagedMarkError(f"{path} is damaged ({error}); --fresh starts over") from error
        if not isinstance(found, dict) or (path == manifest_path and "run" not in found):
            raise ResumeError(f"{path} is not phrasebox's; give another folder", key="output.path")
        run = {"phrasebox_version": found.get("phrasebox_version"), **found.get("run", found)}
        run = {key: value for key, value in run.items() if key not in ("signature", REPLACES)}
        return run, found if path == manifest_path else {}
    return None


def _may_be_replaced(folder: AnyPath, shards: list[AnyPath], may_delete: MayDelete, written_as: str) -> bool:
    """Return whether there is a run to replace. Raise ResumeError if that is not allowed."""
    try:
        stored = _stored(folder)
    except _DamagedMarkError:
        stored = {}, {}
    if stored is None:
        return False
    _, manifest = stored
    foreign = [*_foreign(shards), *_edited_cards(folder, manifest)]
    rows = sum(count or 0 for count in rows_in(shards))
    what = f"{written_as} holds {'a finished dataset' if manifest else 'an unfinished run'} with {counted(rows, 'row')}"
    if not (rows or foreign) or may_delete(what, foreign):
        return True
    names = ", ".join(str(path).removeprefix(f"{folder}/") for path in foreign[:5])
    raise ResumeError(
        f"--fresh would delete files in {folder} that phrasebox did not write ({names}): move them away, or add --yes. "
        "Nothing was deleted"
        if foreign
        else f"{folder} stays as it is: nothing was deleted"
    )


def _shards(folder: AnyPath) -> list[AnyPath]:
    return found_in(folder / "data", "*.parquet")


def _foreign(shards: Iterable[AnyPath]) -> list[AnyPath]:
    return [path for path in shards if not OWN_SHARD.fullmatch(path.name)]


def _reject_foreign(folder: AnyPath, paths: Iterable[AnyPath]) -> None:
    if names := ", ".join(sorted(path.name for path in paths)[:5]):
        raise ResumeError(
            f"{folder} holds files that phrasebox did not write ({names}): give another folder, or move them away",
            key="output.path",
        )


def _edited_cards(folder: AnyPath, manifest: Mapping[str, Any]) -> list[AnyPath]:
    """The dataset card if somebody has edited it, in a list. manifest: Empty if the dataset is not finished."""
    card = folder / "README.md"
    if not card.is_file():
        return []
    text = card.read_bytes()
    if manifest:
        is_edited = manifest.get("card_sha256") not in (None, hashlib.sha256(text).hexdigest())
    else:
        is_edited = b"Made by phrasebox" not in text
    return [card] if is_edited else []
