"""The dataset's folder: whether a run may write there, what is already done, and what is written at the end.

OUT/data/*.parquet        the shards
OUT/categories.parquet    phrases with their counts
OUT/README.md             dataset card
OUT/dataset.json          manifest, written last: a dataset that has one is complete
OUT/.phrasebox/           lock. Until the dataset is complete also run.json, which says what the rows depend on, and
                          Ray Data's checkpoint. damaged/ holds shards that could not be read and were made again
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Literal

import pyarrow as pa

from pipeline import __version__
from pipeline.config import RunConfig, differences
from pipeline.output.checkpoint import (
    drop_pending,
    ids_in,
    rebuild,
    rows_in,
    take_over,
    uncommitted,
    unreadable,
    without_rows,
)
from pipeline.output.lock import Lease, locked
from pipeline.summary import Report
from stages.contract.errors import ConfigError, OutputError, ResumeError, one_line
from stages.contract.schema import dataset_schema
from stages.contract.versions import SCHEMA_VERSION
from stages.dataset.origin import signed
from stages.sources import HEAT_MAPS, source_type
from stages.storage import AnyPath, ObjectPath, found_in, move, remove_tree, writable_place, write_text
from stages.write.tally import Tally, dataset_card, tally, write_categories

State = Literal["new", "started", "complete"]

OWN_SHARD: Final = re.compile(r"\d{5,}\.parquet|(?:[0-9A-Za-z]+_)?[0-9a-f]{32}_\d{6,}-\d+\.parquet")
"""Names that the inline engine and Ray Data give to shards."""

_WRITE_ERRORS: Final = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO, errno.ESTALE)

MayDelete = Callable[[list[AnyPath]], bool]
"""Asked before files are deleted that no run wrote."""


def _release(version: str | None) -> list[str] | None:
    """Major and minor version; patches leave rows as they are."""
    return version.split(".")[:2] if version else None


def is_about_writing(path: AnyPath, error: OSError) -> bool:
    """Whether the error came from writing below `path`: its number or its text says so.

    Errors of object storage have neither a number nor a file's name. Reading reports its own as InputError
    (`stages.read.read_shard`), so an error without a file's name is taken as one of writing there.
    """
    if error.errno in _WRITE_ERRORS or str(path) in str(error):
        return True
    return isinstance(path, ObjectPath) and _file_of(error) is None


def cannot_write(path: AnyPath, error: OSError) -> OutputError:
    """The error to raise for a write that failed. It names another file where that one cannot be written."""
    why = os.strerror(error.errno) if error.errno else one_line(error)
    place = path if str(path) in str(error) else _file_of(error) or path
    return OutputError(
        f"cannot write to {place}: {why}. What is finished is kept: mend that, and the same command goes on from there"
    )


def _file_of(error: OSError) -> str | None:
    """The file that an error names. Ray puts advice of its own in that place when it passes an error on."""
    name = error.filename
    return name if isinstance(name, str) and os.path.isabs(name) else None


class _DamagedMarkError(ResumeError):
    """The file that says which run is in the folder cannot be read."""


class DatasetFolder:
    """A dataset that a run writes, on a local or mounted file system or in object storage.

    Attributes:
        written_as: Its path as the user wrote it.
        checkpoint: Ray Data's checkpoint of this attempt, once a run has begun.
        notes: What `begin` found and did, for people.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = writable_place(path)
        self.written_as = str(path if isinstance(self.path, Path) else self.path)
        self.data = self.path / "data"
        self.checkpoint: AnyPath = self.path / ".phrasebox" / "checkpoint-0001"
        self.notes: list[str] = []
        self._own = self.path / ".phrasebox"
        self._run = self._own / "run.json"
        self._manifest = self.path / "dataset.json"
        self._beside = [self.path / "categories.parquet", self.path / "README.md", self._manifest]
        self._goes_on = False
        self._lease: Lease | None = None

    @property
    def shards(self) -> list[AnyPath]:
        """The shards that exist, by name."""
        return found_in(self.data, "*.parquet")

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Raise OutputError if a write to the folder fails within the block."""
        try:
            yield
        except OSError as error:
            if not is_about_writing(self.path, error):
                raise
            raise cannot_write(self.path, error) from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for one run.

        Raises:
            ResumeError: Another run holds it.
            ConfigError: The folder cannot be made.
        """
        with ExitStack() as stack:
            try:
                self._lease = stack.enter_context(locked(self._own / "lock"))
            except OSError as error:
                why = error.strerror or one_line(error)
                raise ConfigError(f"output.path: cannot write to {self.path}: {why}") from error
            yield

    def begin(
        self,
        config: RunConfig,
        fingerprint: str,
        *,
        calibration: str | None = None,
        fresh: bool,
        may_delete: MayDelete = lambda _: False,
    ) -> State:
        """Decide whether this run may write here, and store what its rows depend on. Call it while locked.

        Shards that cannot be read are set aside and made again, also those of a finished dataset. A finished dataset
        may be another version's; an unfinished one is only continued by the same major and minor version, so that all
        rows of a dataset are made in the same way.

        Args:
            config: The run's configuration.
            fingerprint: The model's, see `Graph`.
            calibration: What the scores are calibrated with, see `Graph`.
            fresh: Delete what is there first.
            may_delete: Asked whether `fresh` may delete files that no run wrote.

        Returns:
            "complete" if there is nothing left to do, "started" if the run goes on, else "new".

        Raises:
            ResumeError: The folder holds another run, or data that no run of phrasebox explains.
        """
        wanted = {
            "phrasebox_version": __version__,
            "schema_version": SCHEMA_VERSION,
            "model_fingerprint": fingerprint,
            "calibration": calibration,
            "config": config.rows_depend_on(),
        }
        if fresh:
            self._clear(may_delete)
        stored = self._stored()
        if stored is None:
            self._refuse_strange([path for path in (*self.shards, *self._beside) if path.exists()])
            self.data.mkdir(parents=True, exist_ok=True)
            write_text(self._run, json.dumps(signed(wanted), indent=2))
            self.checkpoint = self.agreed_checkpoint()
            return "new"
        found, manifest = stored
        is_complete = bool(manifest) and not self._lacks_rows(manifest)
        self._refuse_other(found, wanted, is_complete=is_complete)
        if is_complete:
            return "complete"
        self._refuse_strange(self._strange_shards())
        self._goes_on = True
        self._set_damaged_aside()
        if manifest:
            rebuild(take_over(self._own), self.shards)
            write_text(self._run, json.dumps(signed(wanted), indent=2))
            self._manifest.unlink()
        self.checkpoint = self.agreed_checkpoint()
        return "started"

    def _refuse_other(self, found: dict[str, Any], wanted: dict[str, Any], *, is_complete: bool) -> None:
        made_by = found.get("phrasebox_version")
        if not is_complete and _release(made_by) != _release(__version__):
            raise ResumeError(
                f"{self.path} holds an unfinished run of phrasebox {made_by or '(unknown version)'}, this is "
                f"{__version__}, whose rows may differ: finish it with that version, or --fresh to start over"
            )
        differing = differences({**found, "phrasebox_version": __version__}, wanted)
        if differing:
            listed = "\n".join(f"  {line}" for line in differing)
            raise ResumeError(
                f"{self.path} holds a run with other settings:\n{listed}\n"
                "Give another output.path, or --fresh to delete that run and start over."
            )

    def _refuse_strange(self, paths: list[AnyPath]) -> None:
        if paths:
            names = ", ".join(sorted(path.name for path in paths)[:5])
            raise ResumeError(
                f"{self.path} holds files that no run of phrasebox explains ({names}): give another output.path, or "
                "move them away"
            )

    def _lacks_rows(self, manifest: dict[str, Any]) -> bool:
        rows = rows_in(self.shards)
        return rows is None or rows < manifest["counts"]["written"]

    def _set_damaged_aside(self) -> None:
        for path, fault in list(unreadable(self.shards)):
            place = self._own / "damaged" / path.name
            place.parent.mkdir(exist_ok=True)
            move(path, place)
            self.notes.append(f"{path} is damaged ({fault}): moved to {place}, its rows are done again")

    def agreed_checkpoint(self) -> AnyPath:
        """The checkpoint, fenced off from a former attempt's workers and in agreement with the shards."""
        checkpoint = take_over(self._own)
        drop_pending(checkpoint, self.shards)
        lost = without_rows(checkpoint, self.shards)
        if lost:
            self.notes.append(
                f"shards of {self.data} are missing or incomplete: the rows of {len(lost)} writes are done again"
            )
        return checkpoint

    def drop_uncommitted(self) -> None:
        """Delete shards that a former attempt's workers wrote after this one took over."""
        for path in uncommitted(self.checkpoint, self.shards):
            path.unlink()

    def forget(self) -> None:
        """Delete the mark of a run that was refused before its first row: once mended, it is another run."""
        if not self.checkpoint.exists() and not self.shards:
            self._run.unlink(missing_ok=True)

    def _stored(self) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """What the rows of the run in the folder depend on, and its manifest, which is empty until it is complete.

        Returns None if there is no run. Raises ResumeError for a manifest that is not phrasebox's, and
        _DamagedMarkError.
        """
        for path in (self._manifest, self._run):
            try:
                found = json.loads(path.read_text(encoding="utf-8"))
            except FileNotFoundError:
                continue
            except ValueError as error:
                raise _DamagedMarkError(f"{path} is damaged ({error}); --fresh starts over") from error
            manifest = found if path == self._manifest else {}
            if not isinstance(found, dict) or (path == self._manifest and "run" not in found):
                raise ResumeError(f"{path} is not phrasebox's; give another output.path")
            run = {"phrasebox_version": found.get("phrasebox_version"), **found.get("run", found)}
            run.pop("signature", None)
            return run, manifest
        return None

    def _clear(self, may_delete: MayDelete) -> None:
        """Delete a run's files, and nothing if there is no mark of a run.

        Raises ResumeError if files that no run wrote are in the way and may not be deleted.
        """
        foreign = self._strange_shards()
        with suppress(_DamagedMarkError):
            stored = self._stored()
            if stored is None:
                return
            if self._is_edited_card(stored[1]):
                foreign.append(self.path / "README.md")
        if foreign and not may_delete(foreign):
            names = ", ".join(str(path).removeprefix(f"{self.path}/") for path in foreign[:5])
            raise ResumeError(
                f"--fresh would delete files in {self.path} that phrasebox did not write ({names}): move them away, "
                "or add --yes. Nothing was deleted"
            )
        # The marks go last: a run that is stopped here is still one that --fresh clears.
        remove_tree(self._own / "damaged")
        for checkpoint in found_in(self._own, "checkpoint-*"):
            remove_tree(checkpoint)
        for path in (*self.shards, *found_in(self.data, ".*.tmp"), *self._beside, self._run):
            path.unlink(missing_ok=True)

    def _is_edited_card(self, manifest: dict[str, Any]) -> bool:
        card = self.path / "README.md"
        if not card.is_file():
            return False
        text = card.read_bytes()
        if manifest:
            return manifest.get("card_sha256") not in (None, hashlib.sha256(text).hexdigest())
        return b"Made by phrasebox" not in text

    def _strange_shards(self) -> list[AnyPath]:
        return [path for path in self.shards if not OWN_SHARD.fullmatch(path.name)]

    def ids_written(self) -> set[int]:
        """Ids of the rows in the shards. Raises ResumeError for a shard that cannot be read."""
        ids: set[int] = set()
        for path in self.shards:
            try:
                ids.update(ids_in(path).to_pylist())
            except (pa.ArrowException, OSError) as error:
                raise ResumeError(f"{path} is damaged ({error}); delete it, and its rows are done again") from error
        return ids

    def finish(
        self,
        config: RunConfig,
        report: Report,
        *,
        model: dict[str, str],
        calibration: str | None = None,
        fitted_to: str | None = None,
        doubt: str | None = None,
    ) -> Tally:
        """Count the shards, check that no sample was lost, and write categories, card and manifest.

        Args:
            config: The run's configuration.
            report: What the engine has counted.
            model: Its `name`, for the card, and what was recognised of it, see `Graph`.
            calibration: What the scores are calibrated with, see `Graph`. None although `begin` was given one where the
                pictures turned out to be others than it holds for.
            fitted_to: See `dataset_card`.
            doubt: See `dataset_card`.

        Raises:
            ResumeError: The input has changed since the run was begun.
            RuntimeError: Rows were lost or doubled, which is a fault of the program.
        """
        if self._lease is not None:
            self._lease.check()
        total = tally(self.data)
        if total.rows != report.samples_read:
            counts = f"{report.samples_read} samples were read but {total.rows} rows written"
            if self._goes_on:
                raise ResumeError(
                    f"{counts}: the input is not what it was when the run was started. --fresh starts over"
                )
            raise RuntimeError(counts)
        if total.doubled:
            raise RuntimeError(f"{total.doubled} rows were written twice")
        write_categories(total, self.path / "categories.parquet")
        schema = dataset_schema(**config.output.columns)
        run = json.loads(self._run.read_text(encoding="utf-8"))
        run.pop("signature", None)  # of a part of the configuration; the manifest signs all of it
        source = None if config.source.kind == HEAT_MAPS else source_type(config.source.kind)
        card = dataset_card(
            total,
            schema,
            model=model["name"],
            explainer=config.explain.kind,
            fitted_to=fitted_to,
            doubt=doubt,
            source=None if source is None else (source.regions_come_from, source.score_means),
        )
        write_text(self.path / "README.md", card)
        manifest = {
            "format": "phrasebox",
            "schema_version": SCHEMA_VERSION,
            "phrasebox_version": __version__,
            "model": model,
            "model_fingerprint": run["model_fingerprint"],
            "calibration": calibration,
            "config": config.model_dump(mode="json"),
            "counts": {
                "read": report.samples_read,
                **total.counts(),
                "skipped_by_reason": dict(sorted(report.skipped.items())),
            },
            "wall_time_s": round(report.wall_time_s, 3),
            "stages": {name: stage.to_json() for name, stage in report.stages.items()},
            "card_sha256": hashlib.sha256(card.encode()).hexdigest(),
            "run": run,
        }
        write_text(self._manifest, json.dumps(signed(manifest), indent=2, ensure_ascii=False) + "\n")
        for checkpoint in found_in(self._own, "checkpoint-*"):
            remove_tree(checkpoint)
        self._run.unlink()
        return total
