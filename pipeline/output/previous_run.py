"""The run that a dataset's folder holds, and whether another run may resume or replace it. Nothing is changed here."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from pipeline.config import differences
from pipeline.output.backup import COMPANION_FILES, REPLACES
from pipeline.output.journal import WORKER_SHARD_NAME
from pipeline.output.shards import rows_in
from pipeline.paths import with_absolute_paths
from pipeline.terminal import counted
from stages.contract.errors import ResumeError
from stages.shared.model.config import AUTO, PrecisionChoice
from stages.shared.storage import AnyPath, found_in

State = Literal["new", "started", "complete"]

SHARD_NAME: Final = re.compile(rf"\d{{5,}}\.parquet|{WORKER_SHARD_NAME.pattern}")
"""Names of shards: one process numbers its shards."""

COMMAND: Final = "command"
"""The key of run.json, and of `run` in dataset.json, for a hash of the command that made the rows. With the same hash
and the same input a complete dataset needs no closer look."""

MayDelete = Callable[[str, list[AnyPath]], bool]
"""Called before a run is deleted, with a description, as "out holds a finished dataset with 12 rows", and the files in
the folder that no run wrote. Returns whether all of it may be deleted."""


def delete_what_runs_wrote(_: str, foreign: list[AnyPath]) -> bool:
    """Answer `MayDelete` without a terminal: --fresh may delete files that runs wrote, and no other files."""
    return not foreign


@dataclass(frozen=True, slots=True, kw_only=True)
class PreviousRun:
    """The run that a folder holds, as another run finds it that is to write there.

    Attributes:
        state: "complete" if the folder has every row of the run, "started" if it has some, else "new".
        identity: The plain values that the rows of the other run depend on.
        run: The values that run.json or the manifest store of the run: its identity and more. Empty if the run is new.
        manifest: The manifest of a finished dataset, also if it has lost rows since; else empty.
        shards: The shards in the folder; empty if the run is new.
        replaces: Whether the other run replaces it.
    """

    state: State
    identity: dict[str, Any]
    run: dict[str, Any] = field(default_factory=dict)
    manifest: dict[str, Any] = field(default_factory=dict)
    shards: tuple[AnyPath, ...] = ()
    replaces: bool = False


def find_run(
    folder: AnyPath, identity: dict[str, Any], *, may_delete: MayDelete | None, written_as: str
) -> PreviousRun:
    """Return the run in a folder if another one may write there. Raise ResumeError as `DatasetFolder.check_resumable`.

    Args:
        folder: The dataset's.
        identity: The plain values that rows of the other run depend on.
        may_delete: Called before the run is replaced; None resumes it.
        written_as: The folder's path as the user wrote it.
    """
    shards = _list_shards(folder)
    if may_delete is not None and _may_be_replaced(folder, shards, may_delete, written_as):
        return PreviousRun(state="new", identity=identity, replaces=True)
    stored = _read_stored(folder)
    if stored is None:
        _reject_foreign(
            folder, [path for path in (*shards, *(folder / name for name in COMPANION_FILES)) if path.exists()]
        )
        return PreviousRun(state="new", identity=identity)
    run, manifest = stored
    is_whole = _is_whole(manifest, shards)
    state: State = "complete" if is_whole else "started"
    previous = PreviousRun(state=state, identity=identity, run=run, manifest=manifest, shards=tuple(shards))
    if not is_whole:
        reject_more_rows(folder, previous)
    values: dict[str, Any] = {key: run.get(key) for key in identity}
    values["config"] = with_absolute_paths(values["config"] or {})
    values["phrasebox_version"] = identity["phrasebox_version"]
    if precision_in(folder) == AUTO != identity["config"].get("model", {}).get("precision", AUTO):
        # It was stopped before a worker decided: no row depends on the precision, or on a calibration for it.
        values["config"]["model"]["precision"] = identity["config"]["model"]["precision"]
        values["calibration"] = identity["calibration"]
    if lines := differences(values, identity):
        listing = "\n".join(f"  {line}" for line in lines)
        raise ResumeError(
            f"{folder} holds a run with other settings:\n{listing}\n"
            "Give another folder, or --fresh to delete that run and start over.",
            key="output.path",
        )
    return previous


def is_complete(folder: AnyPath, values: Mapping[str, Any]) -> bool:
    """Return whether a folder holds all rows of a run that has stored these values. Raise ResumeError as `find_run`."""
    run, manifest = _read_stored(folder) or ({}, {})
    return values.items() <= run.items() and _is_whole(manifest, _list_shards(folder))


def precision_in(folder: AnyPath) -> PrecisionChoice:
    """Return the precision of the run in a folder; `auto` where none is decided. Raise ResumeError as `find_run`."""
    run, _ = _read_stored(folder) or ({}, {})
    precision: PrecisionChoice = run.get("config", {}).get("model", {}).get("precision", AUTO)
    return precision


def _is_whole(manifest: Mapping[str, Any], shards: Sequence[AnyPath]) -> bool:
    """Return whether a dataset is finished and has lost no rows since."""
    return bool(manifest) and sum(count or 0 for count in rows_in(shards)) >= manifest["counts"]["written"]


def reject_more_rows(folder: AnyPath, previous: PreviousRun) -> None:
    """Raise ResumeError if the run in the folder cannot get more rows."""
    version = previous.run.get("phrasebox_version")
    new_version = previous.identity.get("phrasebox_version")
    if _release_of(version) != _release_of(new_version):
        kind = "a run" if previous.manifest else "an unfinished run"
        raise ResumeError(
            f"{folder} holds {kind} of phrasebox {version or '(unknown version)'}, this is {new_version}, whose "
            "rows may differ: finish it with that version, or --fresh to start over"
        )
    _reject_foreign(folder, _find_foreign(_list_shards(folder)))


def _release_of(version: str | None) -> list[str] | None:
    """Major and minor version: a patch does not change rows."""
    return version.split(".")[:2] if version else None


class _DamagedMarkError(ResumeError):
    """The file that says which run is in the folder cannot be read."""


def _read_stored(folder: AnyPath) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The values that the folder stores of its run, and the manifest, empty until the run is complete.

    None if there is no run. Raise ResumeError for a manifest that is not phrasebox's, and _DamagedMarkError.
    """
    manifest_path = folder / "dataset.json"
    for path in (manifest_path, folder / ".phrasebox" / "run.json"):
        try:
            mark = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        except ValueError as error:
            raise _DamagedMarkError(f"{path} is damaged ({error}); --fresh starts over") from error
        if not isinstance(mark, dict) or (path == manifest_path and "run" not in mark):
            raise ResumeError(f"{path} is not phrasebox's; give another folder", key="output.path")
        run = {"phrasebox_version": mark.get("phrasebox_version"), **mark.get("run", mark)}
        run = {key: value for key, value in run.items() if key not in ("signature", REPLACES)}
        return run, mark if path == manifest_path else {}
    return None


def _may_be_replaced(folder: AnyPath, shards: list[AnyPath], may_delete: MayDelete, written_as: str) -> bool:
    """Return whether there is a run to replace. Raise ResumeError if that is not allowed."""
    try:
        stored = _read_stored(folder)
    except _DamagedMarkError:
        stored = {}, {}
    if stored is None:
        return False
    _, manifest = stored
    foreign = [*_find_foreign(shards), *_find_edited_cards(folder, manifest)]
    rows = sum(count or 0 for count in rows_in(shards))
    kind = "a finished dataset" if manifest else "an unfinished run"
    if not (rows or foreign) or may_delete(f"{written_as} holds {kind} with {counted(rows, 'row')}", foreign):
        return True
    names = ", ".join(str(path).removeprefix(f"{folder}/") for path in foreign[:5])
    raise ResumeError(
        f"--fresh would delete files in {folder} that phrasebox did not write ({names}): move them away, or add --yes. "
        "Nothing was deleted"
        if foreign
        else f"{folder} stays as it is: nothing was deleted"
    )


def _list_shards(folder: AnyPath) -> list[AnyPath]:
    return found_in(folder / "data", "*.parquet")


def _find_foreign(shards: Iterable[AnyPath]) -> list[AnyPath]:
    return [path for path in shards if not SHARD_NAME.fullmatch(path.name)]


def _reject_foreign(folder: AnyPath, paths: Iterable[AnyPath]) -> None:
    if names := ", ".join(sorted(path.name for path in paths)[:5]):
        raise ResumeError(
            f"{folder} holds files that phrasebox did not write ({names}): give another folder, or move them away",
            key="output.path",
        )


def _find_edited_cards(folder: AnyPath, manifest: Mapping[str, Any]) -> list[AnyPath]:
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
