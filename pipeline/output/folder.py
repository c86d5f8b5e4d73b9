"""The dataset's folder: whether a run may write there, what is already done, and what is written at the end.

OUT/data/*.parquet        the shards
OUT/categories.parquet    phrases with their counts
OUT/README.md             dataset card
OUT/presence.json         calibration of presence, if the run has fitted one to its first images
OUT/dataset.json          manifest, written last: a dataset that has one is complete
OUT/.phrasebox/           lock. Until the dataset is complete also run.json, which says what the rows depend on, and
                          the journal. damaged/ holds shards that could not be read and were made again, replaced/
                          the run that --fresh is about to replace
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from pipeline import __version__
from pipeline.config import RunConfig
from pipeline.dataset.origin import sign
from pipeline.dataset.tally import rows_of, write_categories
from pipeline.output import former, journal, replaced
from pipeline.output.environment import environment_here
from pipeline.output.former import FormerRun, MayDelete, delete_what_runs_wrote
from pipeline.output.ids import set_apart
from pipeline.output.journal import Journal
from pipeline.output.lock import Lease, locked
from pipeline.paths import with_absolute_paths
from pipeline.summary import Report
from stages.contract.errors import ConfigError, ResumeError, one_line
from stages.contract.schema import SCHEMA_VERSION, dataset_schema
from stages.shared.model.config import AUTO, PrecisionChoice
from stages.shared.storage import (
    AnyPath,
    cannot_write,
    found_in,
    is_about_writing,
    move,
    writable_place,
    write_text,
)
from stages.sources import HEAT_MAPS, SOURCES
from stages.write import Tally, dataset_card


class DatasetFolder:
    """A dataset that a run writes, on a local or mounted file system or in object storage.

    Attributes:
        written_as: Its path as the user wrote it.
        journal: What is done, once a run has begun.
        notes: What `look` and `begin` found and did, for people.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = writable_place(path)
        self.written_as = str(path if isinstance(self.path, Path) else self.path)
        self.data = self.path / "data"
        self.journal: Journal
        self.notes: list[str] = []
        self.presence = self.path / replaced.PRESENCE_FILE
        self._own = self.path / ".phrasebox"
        self._lock = self._own / "lock"
        self._run = self._own / "run.json"
        self._manifest = self.path / "dataset.json"
        self._goes_on = self._replaces = False
        self._lease: Lease | None = None

    @property
    def shards(self) -> list[AnyPath]:
        """The shards that exist, by name."""
        return found_in(self.data, "*.parquet")

    @property
    def precision(self) -> PrecisionChoice:
        """The precision that the workers of the run in the folder have decided; `auto` if there is none yet."""
        return former.precision_in(self.path)

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
        """Hold the folder for one run. Raise ResumeError if another holds it, ConfigError if it cannot be made.

        A run that fails before its first row takes the folders away that it has made.
        """
        places = (self.data, self._own, self.path, *self.path.parents)
        made = [place for place in places if isinstance(place, Path) and not place.exists()]
        with ExitStack() as stack:
            try:
                self._lease = stack.enter_context(locked(self._lock))
            except OSError as error:
                why = error.strerror or one_line(error)
                raise ConfigError(f"cannot write to {self.path}: {why}", key="output.path") from error
            try:
                yield
            except BaseException:
                if self._own in made and found_in(self._own, "*") == [self._lock]:
                    self._lock.unlink()
                    for place in made:
                        with suppress(OSError):  # it is not empty, or was not made
                            place.rmdir()
                raise

    def look(
        self,
        config: RunConfig,
        fingerprint: str,
        *,
        calibration: str | None = None,
        segmenter: str | None = None,
        depends_on: Mapping[str, Any] | None = None,
        fresh: bool = False,
        may_delete: MayDelete = delete_what_runs_wrote,
    ) -> FormerRun:
        """Decide whether this run may write here. Only leftovers of a killed `fresh` change. Call it while locked.

        A finished dataset may be another version's; an unfinished one is only resumed by the same major and minor
        version, so that all rows of a dataset are made in the same way.

        Args:
            config: The run's configuration.
            fingerprint: The model's, see `Graph`.
            calibration: Identifies the calibration of the scores, see `Graph`.
            segmenter: Identifies the segmenter of the outlines, see `Graph`.
            depends_on: Plain values that its rows depend on, if they are not those of `config`.
            fresh: Replace the run that is there, if `may_delete` agrees or there is nothing to ask for.
            may_delete: Asked if there are rows, or files that phrasebox did not write.

        Raises:
            ResumeError: The folder holds another run, or files that phrasebox did not write.
        """
        if self.put_back():
            self.notes.append(f"the run in {self.path} that --fresh was to replace is back: nothing had replaced it")
        wanted = {
            "phrasebox_version": __version__,
            "schema_version": SCHEMA_VERSION,
            "model_fingerprint": fingerprint,
            "calibration": calibration,
            "segmenter": segmenter,
            "config": config.rows_depend_on() if depends_on is None else depends_on,
        }
        asked = may_delete if fresh else None
        return former.find(self.path, wanted, may_delete=asked, written_as=self.written_as)

    def is_done(self, noted: Mapping[str, Any]) -> bool:
        """Return whether the folder holds all rows of a run that has noted these values. Raise ResumeError."""
        return former.is_complete(self.path, noted)

    def begin(self, found: FormerRun, noted: Mapping[str, Any] | None = None, *, same_input: bool = False) -> None:
        """Make the folder ready for rows, store what they depend on, and take over what is done.

        A run to replace is moved aside, see `put_back`. Shards that cannot be read are moved aside and made again. A
        finished dataset is open again for new rows. Raise ResumeError if it cannot get rows of this version.

        noted: More to store of the run, plain values: a resumed run finds it in `FormerRun.run`.
        same_input: Whether the input is that of the run in the folder: parts of it that are done are not read again.
        """
        self._replaces = found.replaces
        if found.replaces:
            replaced.set_aside(self.path)
        if found.state == "complete":
            former.reject_more_rows(self.path, found)
        self._goes_on = found.state != "new"
        if found.manifest:
            journal.forget(self._own)
        self.data.mkdir(parents=True, exist_ok=True)
        run = {**found.run, **found.wanted, **(noted or {}), **({replaced.REPLACES: True} if found.replaces else {})}
        write_text(self._run, json.dumps(sign(run), indent=2))
        if found.manifest:
            self._manifest.unlink()
        self.journal = journal.take_over(self._own, self.data, same_input=same_input, set_aside=self._set_damaged_aside)
        if gone := self.journal.gone:
            self.notes.append(f"shards of {self.data} that are gone: {gone:,}. Their rows are done again")

    def note(self, found: FormerRun, noted: Mapping[str, Any]) -> None:
        """Store more about the run of a finished dataset. Its signature does not cover that, and stays as it is."""
        manifest = {**found.manifest, "run": {**found.manifest["run"], **noted}}
        write_text(self._manifest, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")

    def keep_presence(self, calibration: str | None, noted: Mapping[str, Any]) -> None:
        """Store the calibration of presence that a run has fitted, if it has, and what is to be noted about it."""
        if calibration is not None:
            write_text(self.presence, calibration)
        run = json.loads(self._run.read_text(encoding="utf-8"))
        write_text(self._run, json.dumps({**run, **noted}, indent=2))

    def keep_precision(self, config: RunConfig, calibration: str | None) -> None:
        """Store the precision that the workers of a run have decided, and the calibration for it, see `look`."""
        run = json.loads(self._run.read_text(encoding="utf-8"))
        decided = {"config": config.rows_depend_on(), "calibration": calibration}
        write_text(self._run, json.dumps(sign({**run, **decided}), indent=2))

    def drop_replaced(self) -> None:
        """Delete the run to replace, once this one has written a file."""
        if self._replaces and replaced.drop(self.path):
            self._replaces = False

    def put_back(self) -> bool:
        """Put the run to replace back, unless this one has written a file; return whether it did."""
        return replaced.settle(self.path)

    def _set_damaged_aside(self, path: AnyPath, fault: str) -> None:
        place = self._own / "damaged" / path.name
        place.parent.mkdir(exist_ok=True)
        move(path, place)
        self.notes.append(f"{path} is damaged ({fault}): moved to {place}, its rows are done again")

    def forget(self) -> None:
        """Delete the mark of a run that was rejected before its first row: once fixed, it is another run."""
        if not self.shards:
            journal.forget(self._own)
            self._run.unlink(missing_ok=True)
            self.presence.unlink(missing_ok=True)

    def close_again(self, found: FormerRun) -> None:
        """Finish a dataset that was opened for more rows, of which none came."""
        if found.state == "complete" and self.shards == list(found.shards):
            self.note(found, {})
            journal.forget(self._own)
            self._run.unlink(missing_ok=True)

    def finish(
        self,
        config: RunConfig,
        report: Report,
        *,
        model: dict[str, str],
        calibration: str | None = None,
        fitted_to: str | None = None,
        doubt: str | None = None,
        presence: str | None = None,
        own: bool = True,
        environment: Mapping[str, Any] | None = None,
    ) -> Tally:
        """Count the shards, check that no sample was lost, and write categories, card and manifest.

        Args:
            config: The run's configuration.
            report: The engine's counts.
            model: Its `name`, for the card, and what was recognised of it, see `Graph`.
            calibration: Identifies the calibration of the scores; None if they are no probabilities.
            fitted_to, doubt, presence: See `dataset_card`.
            own: Whether this user's runs made all rows, so that the manifest may be signed.
            environment: Surroundings in which the rows were made, see `environment_here`; by default those here.

        Raises:
            ResumeError: The input has changed since the run was begun.
            RuntimeError: Rows were lost or doubled, which is a fault of the program.
        """
        if self._lease is not None:
            self._lease.check()
        for path in self.journal.strangers(self.data):
            path.unlink()
        written = self.shards
        with rows_of(written) as rows:
            total = rows.tally(len(written))
            if total.rows != report.samples_read:
                counts = f"{report.samples_read} samples were read but {total.rows} rows written"
                if self._goes_on:
                    raise ResumeError(
                        f"{counts}: the input is not what it was when the run was started. --fresh starts over"
                    )
                raise RuntimeError(counts)
            set_apart(rows, written)
            write_categories(rows, self.path / "categories.parquet")
        run = json.loads(self._run.read_text(encoding="utf-8"))
        for key in ("signature", replaced.REPLACES):  # it signs a part of the configuration, the manifest all of it
            run.pop(key, None)
        scores = {"fitted_to": fitted_to, "doubt": doubt, "presence": presence}
        source = None if config.source.kind == HEAT_MAPS else SOURCES[config.source.kind]
        card = dataset_card(
            total,
            dataset_schema(**config.output.columns),
            model=model["name"],
            precision=None if config.model.precision == AUTO else config.model.precision,
            explainer=config.explain.kind,
            **scores,
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
            "scores": scores,
            "config": with_absolute_paths(config.model_dump(mode="json")),
            "counts": {
                "read": report.samples_read,
                **total.counts(),
                "skipped_by_reason": dict(sorted(report.skipped.items())),
            },
            "wall_time_s": round(report.wall_time_s, 3),
            "stages": {name: stage.to_json() for name, stage in report.stages.items()},
            "environment": environment or environment_here(config.phrases.spacy_model),
            "card_sha256": hashlib.sha256(card.encode()).hexdigest(),
            "run": run,
        }
        manifest = sign(manifest) if own else manifest
        write_text(self._manifest, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
        self.drop_replaced()
        journal.forget(self._own)
        self._run.unlink()
        return total
