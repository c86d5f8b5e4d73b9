"""The run that a dataset's folder holds, and whether another run may resume or replace it. Nothing is changed here."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Final, Literal

from pipeline import __version__
from pipeline.config import differences
from pipeline.output.backup import COMPANION_FILES, REPLACES
from pipeline.output.journal import WORKER_SHARD_NAME
from pipeline.output.shards import count_readable_rows
from pipeline.paths import with_absolute_paths
from pipeline.terminal import counted
from stages.contract.errors import ResumeError
from stages.contract.schema import SCHEMA_VERSION
from stages.contract.values import Json
from stages.shared.model.config import AUTO, PrecisionChoice
from stages.shared.storage import AnyPath, found_in

State = Literal["new", "started", "complete"]

SHARD_NAME: Final = re.compile(rf"\d{{5,}}\.parquet|{WORKER_SHARD_NAME.pattern}")
"""Names of shards: one process numbers its shards."""

MayDelete = Callable[[str, list[AnyPath]], bool]
"""Called before a run is deleted, with a description, as "out holds a finished dataset with 12
rows", and the files in the folder that no run wrote. Returns whether all of it may be deleted."""


def delete_what_runs_wrote(_: str, foreign: list[AnyPath]) -> bool:
    """Answer `MayDelete` without a terminal: --fresh may delete files that runs wrote, and no other files."""
    return not foreign


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What the rows of a run depend on. A run is resumed by runs with the same identity.

    A patch release changes no row: of a version only major and minor number count. A change that
    makes other rows raises the minor version, or brings a setting whose default is not null:
    stored runs lack that key, and a missing key equals null.

    Attributes:
        phrasebox_version: The version of phrasebox.
        schema_version: The version of the rows' columns.
        model_fingerprint: Identifies the model, see `Steps`.
        calibration: Identifies the calibration of the scores; None without one.
        segmenter: Identifies the segmenter of the outlines; None without one.
        config: Plain values, see `RunConfig.rows_depend_on`.
    """

    phrasebox_version: str = __version__
    schema_version: int = SCHEMA_VERSION
    model_fingerprint: str
    calibration: str | None = None
    segmenter: str | None = None
    config: Json


@dataclass(frozen=True, slots=True, kw_only=True)
class PreviousRun:
    """The run that a folder holds, as another run finds it that is to write there.

    Attributes:
        folder: The dataset's.
        state: "complete" if the folder has every row of the run, "started" if it has some, else
            "new".
        run: The values that run.json or the manifest store of the run: its identity and more.
            Empty if the run is new.
        manifest: The manifest of a finished dataset, also if it has lost rows since; else empty.
        shards: The shards in the folder.
        fault: Why it cannot be read which run that is; then the other values are not known.
        replaces: Whether the other run replaces one.
        has_same_input: Whether the other run has the same input, so that pieces of it are not
            read again.
    """

    folder: AnyPath
    state: State = "started"
    run: Json = field(default_factory=dict)
    manifest: Json = field(default_factory=dict)
    shards: tuple[AnyPath, ...] = ()
    fault: str = ""
    replaces: bool = False
    has_same_input: bool = False

    @property
    def precision(self) -> PrecisionChoice:
        """The precision of the run; `auto` where none is decided."""
        precision: PrecisionChoice = self.run.get("config", {}).get("model", {}).get("precision", AUTO)
        return precision

    def check_before_model(self, source: Json) -> None:
        """Raise ResumeError as `check_resumable`, for what shows before a model is loaded, which takes seconds.

        source: `kind` and `path` of the input.
        """
        self._check_files(__version__)
        if self.state != "new":
            stored = with_absolute_paths(self.run.get("config") or {}).get("input") or {}
            now = with_absolute_paths({"input": source})["input"]
            self._reject_other_settings({"input": {key: stored.get(key) for key in now}}, {"input": now})

    def check_resumable(self, identity: Identity) -> None:
        """Raise ResumeError unless a run with an identity may write here."""
        self._check_files(identity.phrasebox_version)
        if self.state == "new":
            return
        values = asdict(identity)
        stored_values: Json = {key: self.run.get(key) for key in values}
        stored_values["config"] = with_absolute_paths(stored_values["config"] or {})
        # A finished dataset may be of another version. It is refused where it would get more rows.
        stored_values["phrasebox_version"] = identity.phrasebox_version
        if self.precision == AUTO != identity.config.get("model", {}).get("precision", AUTO):
            # It was stopped before a worker decided: no row depends on the precision, or on a
            # calibration for it.
            stored_values["config"]["model"]["precision"] = identity.config["model"]["precision"]
            stored_values["calibration"] = identity.calibration
        share = identity.config.get("regions", {}).get("absent_share", AUTO)
        if share == self.run.get("absent_share"):  # the configuration as the manifest has it
            stored_values["config"]["regions"]["absent_share"] = share
        self._reject_other_settings(stored_values, values)

    def _check_files(self, version: str) -> None:
        if self.fault:
            raise ResumeError(self.fault)
        if self.state == "new":
            companions = (self.folder / name for name in COMPANION_FILES)
            self._reject_foreign([path for path in (*self.shards, *companions) if path.exists()])
        if self.state == "started":
            self.reject_more_rows(version)

    def _reject_other_settings(self, stored_values: Json, values: Json) -> None:
        if lines := differences(stored_values, values):
            listing = "\n".join(f"  {line}" for line in lines)
            raise ResumeError(
                f"{self.folder} holds a run with other settings:\n{listing}\n"
                "Give another folder, or --fresh to delete that run and start over.",
                key="output.path",
            )

    def reject_more_rows(self, new_version: str) -> None:
        """Raise ResumeError if the run cannot get rows of a version of phrasebox."""
        old_version = self.run.get("phrasebox_version")
        if _release_of(old_version) != _release_of(new_version):
            kind = "a run" if self.manifest else "an unfinished run"
            raise ResumeError(
                f"{self.folder} holds {kind} of phrasebox {old_version or '(unknown version)'}, this is {new_version}, "
                "whose rows may differ: finish it with that version, or --fresh to start over"
            )
        self._reject_foreign(self._foreign_shards)

    def check_replaceable(self, may_delete: MayDelete, written_as: str) -> None:
        """Raise ResumeError unless all of it may be deleted. written_as: The folder's path as the user wrote it."""
        card = self.folder / "README.md"
        foreign = [*self._foreign_shards, *([card] if self._is_edited(card) else [])]
        rows = count_readable_rows(self.shards)
        kind = "a finished dataset" if self.manifest else "an unfinished run"
        if not (rows or foreign) or may_delete(
            f"{written_as} holds {kind} with {counted(rows, 'row')}", foreign
        ):
            return
        names = ", ".join(str(path).removeprefix(f"{self.folder}/") for path in foreign[:5])
        raise ResumeError(
            f"--fresh would delete files in {self.folder} that phrasebox did not write ({names}): move them away, or "
            "add --yes. Nothing was deleted"
            if foreign
            else f"{self.folder} stays as it is: nothing was deleted"
        )

    @property
    def _foreign_shards(self) -> list[AnyPath]:
        return [path for path in self.shards if not SHARD_NAME.fullmatch(path.name)]

    def _reject_foreign(self, paths: Iterable[AnyPath]) -> None:
        if names := ", ".join(sorted(path.name for path in paths)[:5]):
            raise ResumeError(
                f"{self.folder} holds files that phrasebox did not write ({names}): give another folder, or move them "
                "away",
                key="output.path",
            )

    def _is_edited(self, card: AnyPath) -> bool:
        """Whether somebody has edited the dataset card, if it is there."""
        if not card.is_file():
            return False
        text = card.read_bytes()
        if self.manifest:
            return self.manifest.get("card_sha256") not in (None, hashlib.sha256(text).hexdigest())
        return b"Made by phrasebox" not in text


def read_previous_run(folder: AnyPath) -> PreviousRun:
    """Return the run in a folder. Raise ResumeError for a manifest that is not phrasebox's."""
    shards = tuple(found_in(folder / "data", "*.parquet"))
    manifest_path = folder / "dataset.json"
    for path in (manifest_path, folder / ".phrasebox" / "run.json"):
        try:
            mark = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        except ValueError as error:
            fault = f"{path} is damaged ({error}); --fresh starts over"
            return PreviousRun(folder=folder, shards=shards, fault=fault)
        if not isinstance(mark, dict) or (path == manifest_path and "run" not in mark):
            raise ResumeError(f"{path} is not phrasebox's; give another folder", key="output.path")
        manifest = mark if path == manifest_path else {}
        run = {"phrasebox_version": mark.get("phrasebox_version"), **mark.get("run", mark)}
        is_whole = bool(manifest) and count_readable_rows(shards) >= manifest["counts"]["written"]
        return PreviousRun(
            folder=folder,
            state="complete" if is_whole else "started",
            run={key: value for key, value in run.items() if key not in ("signature", REPLACES)},
            manifest=manifest,
            shards=shards,
        )
    return PreviousRun(folder=folder, state="new", shards=shards)


def _release_of(number: str | None) -> list[str] | None:
    """Major and minor version: a patch does not change rows."""
    return number.split(".")[:2] if number else None
