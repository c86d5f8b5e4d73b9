"""The run that a dataset's folder holds, and whether another run may resume or replace it. Nothing is changed here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Final, Literal

import pyarrow as pa

from phrasebox.pipeline import __version__
from phrasebox.pipeline.config.paths import with_absolute_paths
from phrasebox.pipeline.config.run_config import RunConfig, differences
from phrasebox.pipeline.dataset.croissant import CROISSANT_FILE, CROISSANT_SHA256
from phrasebox.pipeline.dataset.shard_list import find_changed, listed_shards, names_in_words, read_damaged
from phrasebox.pipeline.output.backup import COMPANION_FILES, REPLACES
from phrasebox.pipeline.output.decisions import Decisions
from phrasebox.pipeline.output.request import REQUEST
from phrasebox.pipeline.output.shard_states import SHARD_NAME
from phrasebox.pipeline.output.shards import count_readable_rows, map_in_threads
from phrasebox.pipeline.terminal import counted
from phrasebox.stages.contract.errors import InputError, ResumeError
from phrasebox.stages.contract.schema import SCHEMA_VERSION
from phrasebox.stages.contract.values import Json
from phrasebox.stages.files.shards import ShardFile, origin_of, sha256_of
from phrasebox.stages.files.storage import AnyPath, found_in, sizes_in
from phrasebox.stages.model.config import AUTO, PrecisionChoice

MADE_BY: Final = b"Made by phrasebox"
"""What the card and the metadata of every run say."""

State = Literal["new", "started", "complete"]

MayDelete = Callable[[str, list[AnyPath]], bool]
"""Called before a run is deleted, with a description, as "out holds a finished dataset with 12
rows", and the files in the folder that no run wrote. Returns whether all of it may be deleted."""


INPUT: Final = "input_fingerprint"
"""The key of `dataset.json` and run.json that identifies the input of the rows, see
`phrasebox.stages.read.input_fingerprint`."""


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
        shards: The Parquet files among the shards in the folder.
        listed: The shards that the manifest lists; None if it lists none.
        recovered: Why the values of `run` come from the shards; empty if they do not.
        origin: What the shards say of the run, where the values of `run` come from them; else empty.
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
    listed: tuple[ShardFile, ...] | None = None
    recovered: str = ""
    origin: Json = field(default_factory=dict)
    fault: str = ""
    replaces: bool = False
    has_same_input: bool = False

    @property
    def decisions(self) -> Decisions:
        """The decisions of the run."""
        return Decisions.stored_in(self.run)

    @property
    def precision(self) -> PrecisionChoice:
        """The precision of the run; `auto` where none is decided."""
        precision: PrecisionChoice = self.run.get("config", {}).get("model", {}).get("precision", AUTO)
        return precision

    @property
    def pool(self) -> Mapping[str, str] | None:
        """The pool of concepts of the run's source; None where there is none."""
        pool: Mapping[str, str] | None = self.run.get("config", {}).get("source", {}).get("pool")
        return pool

    def check_before_model(self, config: RunConfig) -> None:
        """Raise ResumeError as `check_resumable`, for what shows before a model is loaded, which takes seconds.

        Settings of heat maps that the model may decide are compared later; where regions come from
        another source, all but the place of the input.
        """
        self._check_files(__version__)
        if self.state == "new":
            return
        values = config.rows_depend_on()
        stored = self._config_for(values)
        if not config.source.makes_heat_maps:
            place = {key: values["input"][key] for key in ("kind", "path")}
            stored_place = {key: stored.get("input", {}).get(key) for key in place}
            self._reject_other_settings({"input": stored_place}, {"input": place})
            return
        names = {"kind", *config.explain.model_fields_set}  # a tower replaces other defaults
        given = {name: value for name, value in values["explain"].items() if name in names}
        values["explain"] = {**stored.get("explain", {}), **given}
        if AUTO in (self.precision, config.model.precision):
            values["model"]["precision"] = self.precision
        self._reject_other_settings({"config": stored}, {"config": values})

    def is_answer(self, input_fingerprint: str, request: str) -> bool:
        """Return whether this run is finished, and is known to be what is asked for."""
        return (
            self.state == "complete"
            and self.run.get(INPUT) == input_fingerprint
            and self.run.get(REQUEST) == request
        )

    @property
    def counted_shards(self) -> tuple[AnyPath, ...]:
        """The shards in the folder that belong to the run."""
        if self.listed is None:
            return self.shards
        names = {shard.name for shard in self.listed}
        return tuple(path for path in self.shards if path.name in names)

    @property
    def unlisted(self) -> tuple[AnyPath, ...]:
        """The Parquet files among the shards of a finished dataset that are none of its shards."""
        return tuple(sorted({*self.shards} - {*self.counted_shards}, key=str))

    def check_resumable(self, identity: Identity) -> None:
        """Raise ResumeError unless a run with an identity may write here."""
        self._check_files(identity.phrasebox_version)
        if self.state == "new":
            return
        values = asdict(identity)
        stored_values: Json = {key: self.run.get(key) for key in values}
        stored_values["config"] = self._config_for(identity.config)
        # A finished dataset may be of another version. It is refused where it would get more rows.
        stored_values["phrasebox_version"] = identity.phrasebox_version
        if self.precision == AUTO != identity.config.get("model", {}).get("precision", AUTO):
            # It was stopped before a worker decided: no row depends on the precision, or on a
            # calibration for it.
            stored_values["config"]["model"]["precision"] = identity.config["model"]["precision"]
            stored_values["calibration"] = identity.calibration
        self._reject_other_settings(stored_values, values)

    def _config_for(self, values: Json) -> Json:
        """Return the configuration of the run, with what its first images decided where others have the same.

        The manifest of a run has the share of absent phrases and the exponent that it has estimated, and people take
        these.
        """
        stored: Json = with_absolute_paths(self.run.get("config") or {})
        regions = values.get("regions", {})
        for key, decision in (
            ("absent_share", self.decisions.absent_share),
            ("exponent", self.decisions.exponent),
        ):
            if regions.get(key, AUTO) == decision:
                stored["regions"] = {**stored["regions"], key: decision}
        return stored

    def _check_files(self, version: str) -> None:
        if self.fault:
            raise ResumeError(self.fault)
        if self.state == "new":
            companions = (self.folder / name for name in COMPANION_FILES)
            foreign = [*self._foreign_shards, *(path for path in companions if path.exists())]
            self._reject_foreign(foreign)
            if self.shards:
                raise ResumeError(
                    f"{self.folder} holds shards ({names_in_words(path.name for path in self.shards)}), and neither a "
                    "dataset.json nor the shards say which run made them: give another folder, or move them away",
                    key="output.path",
                )
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
        if release_of(old_version) != release_of(new_version):
            kind = "a run" if self.manifest else "an unfinished run"
            raise ResumeError(
                f"{self.folder} holds {kind} of phrasebox {old_version or '(unknown version)'}, this is {new_version}, "
                "whose rows may differ: finish it with that version, or --fresh to start over"
            )
        self._reject_foreign(path for path in self._foreign_shards if not self._is_copy(path))

    def check_replaceable(self, may_delete: MayDelete, written_as: str) -> None:
        """Raise ResumeError unless all of it may be deleted. written_as: The folder's path as the user wrote it."""
        card = self.folder / "README.md"
        metadata = self.folder / CROISSANT_FILE
        foreign = [
            *self._foreign_shards,
            *([card] if self._is_edited(card) else []),
            *([metadata] if self._is_metadata_edited(metadata) else []),
        ]
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

    def _is_copy(self, path: AnyPath) -> bool:
        """Whether a file has the content of a shard."""
        shards = [shard for shard in self.counted_shards if SHARD_NAME.fullmatch(shard.name)]
        sizes = sizes_in(self.folder / "data", "*.parquet")
        content = sha256_of(path)
        return any(sizes[shard] == sizes[path] and sha256_of(shard) == content for shard in shards)

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
        return MADE_BY not in text

    def _is_metadata_edited(self, metadata: AnyPath) -> bool:
        """Whether somebody has edited or written the Croissant metadata, if they are there."""
        if not metadata.is_file():
            return False
        text = metadata.read_bytes()
        if self.manifest:
            return bool(self.manifest.get(CROISSANT_SHA256) != hashlib.sha256(text).hexdigest())
        return MADE_BY not in text


def read_previous_run(folder: AnyPath) -> PreviousRun:
    """Return the run in a folder. Raise ResumeError for a manifest that is not phrasebox's."""
    shards = tuple(found_in(folder / "data", "*.parquet"))
    manifest_path = folder / "dataset.json"
    fault = ""
    for path in (manifest_path, folder / ".phrasebox" / "run.json"):
        try:
            mark = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        except ValueError as error:
            fault = f"{path} is damaged ({error})"
            continue
        if not isinstance(mark, dict) or (path == manifest_path and "run" not in mark):
            raise ResumeError(f"{path} is not phrasebox's; give another folder", key="output.path")
        run = {"phrasebox_version": mark.get("phrasebox_version"), **mark.get("run", mark)}
        previous = PreviousRun(
            folder=folder,
            run={key: value for key, value in run.items() if key not in ("signature", REPLACES)},
            shards=shards,
        )
        return _as_finished(previous, mark, path) if path == manifest_path else previous
    origins = [origin for origin in map_in_threads(_read_origin, shards) if origin]
    if origins and any(_identity_in(origin) != _identity_in(origins[0]) for origin in origins):
        fault = (
            f"{fault or 'dataset.json is gone'}, and the shards are of several runs: if {folder} was merged, merge its "
            "parts again, into another folder"
        )
    elif origins:
        # Of the input only the journal knows which pieces are done.
        run = {key: value for key, value in origins[-1]["run"].items() if key not in (INPUT, REPLACES)}
        reason = fault or f"{manifest_path} and .phrasebox/run.json are gone"
        recovered = f"{reason}: made again by what the shards say of their run"
        return PreviousRun(folder=folder, run=run, shards=shards, recovered=recovered, origin=origins[-1])
    elif fault:
        fault = f"{fault}; --fresh starts over"
    return PreviousRun(folder=folder, state="started" if fault else "new", shards=shards, fault=fault)


def _as_finished(previous: PreviousRun, manifest: Json, path: AnyPath) -> PreviousRun:
    """Return the run that has written a manifest: complete if the shards are as the manifest says."""
    finished = replace(previous, manifest=manifest)
    try:
        listed = listed_shards(manifest, path)
    except InputError as error:
        return replace(finished, fault=f"{error}; --fresh starts over")
    if listed is None:
        rows = count_readable_rows(previous.shards)
        written = manifest["counts"]["written"]
        if rows > written:
            fault = (
                f"{previous.folder} has {rows:,} rows, but dataset.json counts {written:,}: move the files out of "
                f"{previous.folder / 'data'} that its run did not write"
            )
            return replace(finished, fault=fault)
        return replace(finished, state="complete" if rows == written else "started")
    data = previous.folder / "data"
    sizes = {path.name: size for path, size in sizes_in(data, "*.parquet").items()}
    changed = find_changed(data, listed, sizes, read_damaged(previous.folder))
    return replace(finished, listed=listed, state="started" if changed else "complete")


def _identity_in(origin: Json) -> Json:
    """Return what all shards of a run agree in."""
    names = ("schema_version", "model_fingerprint", "calibration", "segmenter", "config")
    return {name: origin["run"].get(name) for name in names}


def _read_origin(shard: AnyPath) -> Json:
    """Return what a shard says of its run; empty if it cannot be read, or says nothing."""
    with suppress(pa.ArrowException, OSError):
        origin = origin_of(shard)
        return origin if isinstance(origin.get("run"), dict) else {}
    return {}


def release_of(number: str | None) -> list[str] | None:
    """Return major and minor version: a patch does not change rows."""
    return number.split(".")[:2] if number else None
