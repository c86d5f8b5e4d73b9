"""The dataset's folder: may this run write here, what is already done, and what is written at the end.

OUT/data/*.parquet        the shards
OUT/categories.parquet    phrases with their counts
OUT/README.md             dataset card
OUT/dataset.json          manifest, written last: its presence says "complete"
OUT/.phrasebox/           lock; until complete run.json (what the rows depend on) and Ray Data's checkpoint;
                          damaged/, shards that could not be read and were done again
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import __version__
from pipeline.config import RunConfig, differences
from pipeline.output.checkpoint import drop_pending, rebuild, rows_in, take_over, uncommitted, unreadable, without_rows
from pipeline.output.lock import Lease, locked
from pipeline.output.origin import signed
from pipeline.summary import Report
from stages.contract.errors import ConfigError, OutputError, ResumeError, one_line
from stages.contract.schema import SCHEMA_VERSION, dataset_schema
from stages.storage import AnyPath, ObjectPath, found_in, move, remove_tree, writable_place, write_text
from stages.write.card import dataset_card
from stages.write.tally import Tally, tally, write_categories

State = Literal["new", "started", "complete"]

OWN_SHARD: Final = re.compile(r"\d{5,}\.parquet|(?:[0-9A-Za-z]+_)?[0-9a-f]{32}_\d{6,}-\d+\.parquet")
"""Names that the inline engine and Ray Data give to shards."""

_WRITE_ERRORS: Final = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO, errno.ESTALE)

MayDelete = Callable[[list[AnyPath]], bool]
"""Asked before files are deleted that no run wrote."""


def _never(_: list[AnyPath]) -> bool:
    return False


def _release(version: str | None) -> list[str] | None:
    """Major and minor version: patches leave rows as they are."""
    return version.split(".")[:2] if version else None


def is_about_writing(path: AnyPath, error: OSError) -> bool:
    """Whether the error came from writing below `path`: its number or its text says so.

    Errors of object storage have neither a number nor a file's name. Reading reports its own as InputError
    (`stages.read.read_shard`), so an error without a file's name is taken as one of writing there.
    """
    if error.errno in _WRITE_ERRORS or str(path) in str(error):
        return True
    return isinstance(path, ObjectPath) and error.filename is None


def cannot_write(path: AnyPath, error: OSError) -> OutputError:
    """The error to raise for a write that failed. It names another file where that one cannot be written."""
    why = os.strerror(error.errno) if error.errno else one_line(error)
    other = error.filename if error.filename and str(path) not in str(error) else None
    return OutputError(
        f"cannot write to {other or path}: {why}. What is finished is kept: mend that, and the same command goes on "
        "from there"
    )


class DatasetFolder:
    """A dataset on a local or mounted file system, or in object storage.

    written_as   its path as the user wrote it
    checkpoint   Ray Data's, of this attempt; once a run has begun
    notes        what `begin` found and did, for people
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
        self._goes_on = False
        self._lease: Lease | None = None

    @property
    def shards(self) -> list[AnyPath]:
        """The shards that are there, by name."""
        return found_in(self.data, "*.parquet")

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Raise OutputError for a write to the folder that fails within the block."""
        try:
            yield
        except OSError as error:
            if not is_about_writing(self.path, error):
                raise
            raise cannot_write(self.path, error) from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for one run. Raises ResumeError if another run has it, ConfigError if it can't be made."""
        with contextlib.ExitStack() as stack:
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
        may_delete: MayDelete = _never,
    ) -> State:
        """Decide whether this run may write here, and note what it is. Call while locked.

        fingerprint, calibration   of the model and of what its scores are calibrated with, see `Graph`
        fresh        delete what is there first; with `may_delete`'s consent also what no run wrote

        Shards that cannot be read are set aside, also those of a finished run, which then goes on.

        A finished dataset may be another version's. An unfinished one is only continued by the same major and minor
        version, since all rows of a dataset are made in the same way.

        Raises ResumeError if the folder holds another run, or data that no run of phrasebox explains.
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
        found = self._what_is_here()
        if found is None:
            strange = [path.name for path in (*self.data.glob("*.parquet"), *self._beside()) if path.exists()]
            self._refuse_strange(strange)
            self.data.mkdir(parents=True, exist_ok=True)
            write_text(self._run, json.dumps(signed(wanted), indent=2))
            self.checkpoint = self.agreed_checkpoint()
            return "new"
        finished = self._manifest.is_file() and not self._lacks_rows()
        made_by = found.get("phrasebox_version")
        if not finished and _release(made_by) != _release(__version__):
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
        if finished:
            return "complete"
        self._refuse_strange([path.name for path in self._strange_shards()])
        self._goes_on = True
        self._set_damaged_aside()
        if self._manifest.is_file():
            rebuild(take_over(self._own), self.shards)
            write_text(self._run, json.dumps(signed(wanted), indent=2))
            self._manifest.unlink()
        self.checkpoint = self.agreed_checkpoint()
        return "started"

    def _refuse_strange(self, names: list[str]) -> None:
        if names:
            raise ResumeError(
                f"{self.path} holds files that no run of phrasebox explains ({', '.join(sorted(names)[:5])}): "
                "give another output.path, or move them away"
            )

    def _lacks_rows(self) -> bool:
        """Whether a finished run's shards hold fewer rows than its manifest says."""
        counts = json.loads(self._manifest.read_text(encoding="utf-8"))["counts"]
        rows = rows_in(self.shards)
        return rows is None or rows < counts["written"]

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
        """Take back the mark of a run that was refused before its first row: mended, it is another run."""
        if not self.checkpoint.exists() and not self.shards:
            self._run.unlink(missing_ok=True)

    def _what_is_here(self) -> dict[str, Any] | None:
        for path in (self._manifest, self._run):
            try:
                found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            except FileNotFoundError:
                continue
            except ValueError as error:
                raise ResumeError(f"{path} is damaged ({error}); --fresh starts over") from error
            if path == self._manifest and not (isinstance(found, dict) and "run" in found):
                raise ResumeError(f"{path} is not phrasebox's; give another output.path")
            run = {"phrasebox_version": found.get("phrasebox_version"), **found.get("run", found)}
            return {key: value for key, value in run.items() if key != "signature"}
        return None

    def _beside(self) -> list[AnyPath]:
        """What a run writes beside the shards, the mark of a run last."""
        return [self.path / name for name in ("categories.parquet", "README.md", "dataset.json")]

    def _clear(self, may_delete: MayDelete) -> None:
        """Delete a run's files, and nothing if there is no mark of a run.

        Raises ResumeError if files that no run wrote are in the way and may not be deleted.
        """
        try:
            if self._what_is_here() is None:
                return
        except ResumeError:
            if not self._is_damaged():
                raise
        foreign = self._foreign()
        if foreign and not may_delete(foreign):
            names = ", ".join(str(path).removeprefix(f"{self.path}/") for path in foreign[:5])
            raise ResumeError(
                f"--fresh would delete files in {self.path} that phrasebox did not write ({names}): move them away, "
                "or add --yes. Nothing was deleted"
            )
        # The marks last: a run that is stopped here is still one that --fresh clears.
        remove_tree(self._own / "damaged")
        for checkpoint in found_in(self._own, "checkpoint-*"):
            remove_tree(checkpoint)
        for path in (*self.shards, *found_in(self.data, ".*.tmp"), *self._beside(), self._run):
            path.unlink(missing_ok=True)

    def _foreign(self) -> list[AnyPath]:
        """What lies where a run writes and was not written by one: other shards, a card that was edited."""
        foreign = self._strange_shards()
        card = self.path / "README.md"
        if card.is_file() and not self._is_damaged():
            text = card.read_bytes()
            if self._manifest.is_file():
                written = json.loads(self._manifest.read_text(encoding="utf-8")).get("card_sha256")
                is_own = written in (None, hashlib.sha256(text).hexdigest())
            else:
                is_own = b"Made by phrasebox" in text
            foreign += [] if is_own else [card]
        return foreign

    def _strange_shards(self) -> list[AnyPath]:
        return [path for path in self.shards if not OWN_SHARD.fullmatch(path.name)]

    def _is_damaged(self) -> bool:
        """Whether the mark of a run is there but cannot be read."""
        path = self._manifest if self._manifest.is_file() else self._run
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            return True
        return False

    def ids_written(self) -> set[int]:
        """Ids of the rows that are in the shards. Raises ResumeError for a shard that cannot be read."""
        ids: set[int] = set()
        for path in self.shards:
            try:
                with path.open("rb") as file:
                    ids.update(pq.read_table(file, columns=["id"])["id"].to_pylist())
            except (pa.ArrowException, OSError) as error:
                raise ResumeError(f"{path} is damaged ({error}); delete it, and its rows are done again") from error
        return ids

    def finish(self, config: RunConfig, report: Report, *, model: str) -> Tally:
        """Count the shards, check that no sample was lost, write categories, card and manifest.

        Raises ResumeError if the input of a run that was continued has changed, RuntimeError if rows were lost or
        doubled: that is a fault of the program.
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
        schema = dataset_schema(embed_images=config.output.embed_images)
        run = json.loads(self._run.read_text(encoding="utf-8"))
        run.pop("signature", None)  # of a part of the configuration; the manifest signs all of it
        calibrated = run["calibration"] is not None
        card = dataset_card(total, schema, model=model, explainer=config.explain.kind, calibrated=calibrated)
        write_text(self.path / "README.md", card)
        manifest = {
            "format": "phrasebox",
            "schema_version": SCHEMA_VERSION,
            "phrasebox_version": __version__,
            "model_fingerprint": run["model_fingerprint"],
            "calibration": run["calibration"],
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
