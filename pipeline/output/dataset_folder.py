"""The dataset's folder: whether a run may write there, what is already done, and what is written at the end.

OUT/data/*.parquet        the shards
OUT/categories.parquet    phrases with their counts
OUT/README.md             dataset card
OUT/croissant.json        its metadata for programs
OUT/presence.json         calibration of presence, if the run has fitted one to its first images
OUT/dataset.json          manifest, written last: a dataset that has one is complete
OUT/.phrasebox/           lock. Until the dataset is complete also the journal and run.json,
                          which holds what the rows depend on, in-hand.json with the samples that
                          one process computes at the moment, and first-images/, what is computed
                          of the first images. damaged/ holds shards that did not count, replaced/
                          the run that --fresh is about to replace
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from phrasebox.pipeline.config.paths import as_written
from phrasebox.pipeline.dataset.caption_doubt import find_caption_doubt
from phrasebox.pipeline.dataset.croissant import CROISSANT_FILE, CROISSANT_SHA256
from phrasebox.pipeline.dataset.shard_list import (
    DAMAGED_FILE,
    SHARDS,
    list_entries,
    manifest_text,
    names_in_words,
    unlisted_in_words,
)
from phrasebox.pipeline.dataset.signature import sign
from phrasebox.pipeline.dataset.tally import rows_of, write_categories
from phrasebox.pipeline.output import backup, journal
from phrasebox.pipeline.output.decisions import Decisions
from phrasebox.pipeline.output.first_images import kept_keys
from phrasebox.pipeline.output.ids import resolve_id_collisions
from phrasebox.pipeline.output.journal import Journal
from phrasebox.pipeline.output.lock import Holder, locked
from phrasebox.pipeline.output.manifest import Manifest
from phrasebox.pipeline.output.previous_run import (
    Identity,
    MayDelete,
    PreviousRun,
    delete_what_runs_wrote,
    read_previous_run,
)
from phrasebox.pipeline.output.report import Report
from phrasebox.pipeline.output.request import REQUEST
from phrasebox.pipeline.output.shards import keys_of, map_in_threads
from phrasebox.stages.contract.errors import ConfigError, OutputError, ResumeError, SchemaError, one_line
from phrasebox.stages.contract.values import Integers, Json
from phrasebox.stages.files.shards import ShardFile, sha256_of
from phrasebox.stages.files.storage import (
    AnyPath,
    cannot_write,
    found_in,
    is_about_writing,
    move,
    remove_tree,
    sizes_in,
    writable_place,
    write_text,
)
from phrasebox.stages.write import Tally


class DatasetFolder:
    """A dataset that a run writes, on a local or mounted file system or in object storage.

    Attributes:
        path: Its absolute path, or its URL.
        written_as: Its path as the user wrote it.
        data: The folder of its shards.
        presence: The file for a calibration of presence.
        in_hand: The file for the samples that one process has in hand, see `phrasebox.pipeline.run.engines.trials`.
        first_images: The place for records of the first images, see `phrasebox.pipeline.output.first_images`.
        journal: What is done, from `start` on.
        origin: What each new shard says of the run, from `name_origin` on.
        notes: What `claim` and `start` have done, for people.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = writable_place(path)
        self.written_as = as_written(path)
        self.data = self.path / "data"
        self.journal: Journal
        self.origin = ""
        self.notes: list[str] = []
        self.presence = self.path / backup.PRESENCE_FILE
        self._run_folder = self.path / ".phrasebox"
        self.in_hand = self._run_folder / "in-hand.json"
        self.first_images = self._run_folder / backup.FIRST_IMAGES
        self._lock = self._run_folder / "lock"
        self._run_file = self._run_folder / "run.json"
        self._manifest = self.path / "dataset.json"
        self._run: Json = {}  # what run.json holds
        self._resumes = self._replaces = False
        self._holder: Holder | None = None

    @property
    def shards(self) -> list[AnyPath]:
        """The Parquet files among the shards, by name; also those that do not count."""
        return found_in(self.data, "*.parquet")

    @property
    def check_holder(self) -> Callable[[], None]:
        """Raise ResumeError if another run has taken the folder over. It may be called in other processes, too."""
        return _hold_always if self._holder is None else self._holder.check

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

        A run that fails before its first row removes the folders that it has made.
        """
        places = (self.data, self._run_folder, self.path, *self.path.parents)
        new_folders = [place for place in places if isinstance(place, Path) and not place.exists()]
        with ExitStack() as stack:
            try:
                self._holder = stack.enter_context(locked(self._lock))
            except OSError as error:
                reason = error.strerror or one_line(error)
                raise ConfigError(f"cannot write to {self.path}: {reason}", key="output.path") from error
            try:
                yield
            except BaseException as error:
                if isinstance(error, Exception):
                    with suppress(OSError):
                        self.check_holder()  # what another run has changed meanwhile is an error that follows
                if self._run_folder in new_folders and found_in(self._run_folder, "*") == [self._lock]:
                    self._lock.unlink()
                    for place in new_folders:
                        with suppress(OSError):  # it is not empty, or was not made
                            place.rmdir()
                raise

    def recover_previous_run(self) -> PreviousRun:
        """Bring back the run that a killed `--fresh` was to replace, and return the run in the folder.

        The caller holds the lock. Raise ResumeError for what is not phrasebox's.
        """
        if self.restore_backup():
            self.notes.append(
                f"the run in {self.path} that --fresh was to replace is back: nothing had replaced it"
            )
        return read_previous_run(self.path)

    def claim(self, identity: Identity) -> PreviousRun:
        """Claim the folder for a run with an identity, and return the run that it resumes.

        The caller holds the lock. The folder stays as it is, but for `recover_previous_run`. A
        finished dataset may be another version's. An unfinished one is only resumed by the same
        major and minor version, so that all rows of a dataset are made in the same way.

        Raise ResumeError if the folder holds another run, or files that phrasebox did not write.
        """
        previous = self.recover_previous_run()
        previous.check_resumable(identity)
        if previous.recovered:
            self.notes.append(previous.recovered)
        self._run = {**previous.run, **asdict(identity)}
        return previous

    def claim_fresh(
        self, identity: Identity, may_delete: MayDelete = delete_what_runs_wrote
    ) -> PreviousRun:
        """Claim the folder as `claim` does, for a run that replaces the one in it.

        Raise ResumeError unless `may_delete` agrees, which is called if there are rows, or files
        that phrasebox did not write.
        """
        previous = self.recover_previous_run()
        if previous.state == "new":
            return self.claim(identity)
        previous.check_replaceable(may_delete, self.written_as)
        self._run = asdict(identity)
        return PreviousRun(folder=self.path, state="new", replaces=True)

    def start(self, previous: PreviousRun, run_info: Json | None = None) -> None:
        """Make the folder ready for rows, store what they depend on, and take over what is done.

        A run to replace becomes a backup, see `restore_backup`. Shards that cannot be read are
        moved aside and made again. A finished dataset is open again for new rows. Raise
        ResumeError if it cannot get rows of this version.

        Args:
            previous: The run in the folder.
            run_info: More plain values to store of this run; a resumed run has them in
                `PreviousRun.run`.
        """
        self._replaces = previous.replaces
        self.check_holder()
        if previous.replaces:
            backup.back_up(self.path)
        if previous.state == "complete":
            previous.reject_more_rows(self._run["phrasebox_version"])
        self._resumes = previous.state != "new"
        if not self._resumes:
            self.in_hand.unlink(missing_ok=True)
        if previous.manifest:
            journal.delete_journals(self._run_folder)
        self.data.mkdir(parents=True, exist_ok=True)
        self._run |= run_info or {}
        self._store_run()
        self.check_holder()
        self._manifest.unlink(missing_ok=True)
        self.journal = journal.take_over(
            self._run_folder,
            self.data,
            same_input=previous.has_same_input,
            set_aside=self._set_aside,
            listed=previous.listed or (),
        )
        (self.path / DAMAGED_FILE).unlink(missing_ok=True)
        if lost := self.journal.lost:
            self.notes.append(f"shards of {self.data} that are gone: {lost:,}. Their rows are done again")

    def update_run_info(self, previous: PreviousRun, run_info: Json) -> None:
        """Store more about the run of a finished dataset. The signature does not cover that, and stays as it is."""
        manifest = {**previous.manifest, "run": {**previous.manifest["run"], **run_info}}
        write_text(self._manifest, manifest_text(manifest))

    def name_origin(self, manifest: Manifest) -> None:
        """Let new shards say what made them; all of it is decided now.

        They do not say what a user asked for, which changes with the times of files.
        """
        values = manifest.origin({key: value for key, value in self._run.items() if key != REQUEST})
        self.origin = json.dumps(sign(values) if manifest.may_sign else values, ensure_ascii=False)

    def note_shard(self, shard: ShardFile, sample_ids: Sequence[str]) -> None:
        """Note a new shard, with the sample ids of its rows; see `note_shards`."""
        self.note_shards(journal.shard_entry(shard, keys_of(sample_ids)))

    def note_shards(self, entries: Any) -> None:
        """Note new shards in the journal. From then on the run to replace is replaced. Raise OSError."""
        self.journal.add_shards(entries)
        self.drop_backup()

    def store_decisions(
        self, identity: Identity, decisions: Decisions, presence: str | None = None
    ) -> None:
        """Store what the first images have decided.

        Args:
            identity: What the rows depend on now.
            decisions: Those that are made.
            presence: The calibration of presence that the run has fitted; None if there is none.
        """
        if presence is not None:
            write_text(self.presence, presence)
        self._run |= {**asdict(identity), **decisions.to_json()}
        self._store_run()

    @property
    def kept_keys(self) -> Integers:
        """The keys of the first images whose records an attempt has kept, sorted."""
        return kept_keys(self.first_images)

    def _store_run(self) -> None:
        replaces = {backup.REPLACES: True} if self._replaces else {}
        write_text(self._run_file, json.dumps(sign({**self._run, **replaces}), indent=2), self.check_holder)

    def drop_backup(self) -> None:
        """Delete the backup of the run to replace, once this run has written a file."""
        if self._replaces:
            self.check_holder()
            self._replaces = not backup.drop_backup(self.path)

    def restore_backup(self) -> bool:
        """Put the run to replace back, unless this run has written a file; return whether it was put back."""
        return backup.recover(self.path)

    def _set_aside(self, path: AnyPath, reason: str, *, is_lost: bool) -> None:
        """Move a shard that does not count out of the dataset; see `phrasebox.pipeline.output.journal.SetAside`."""
        place = self._run_folder / "damaged" / path.name
        place.parent.mkdir(exist_ok=True)
        move(path, place)
        rest = ", its rows are done again" if is_lost else ""
        self.notes.append(f"{path} {reason}: moved to {place}{rest}")

    def discard(self) -> None:
        """Delete the journals of a run that was rejected before its first row: once mended, it is another run."""
        if not self.shards:
            journal.delete_journals(self._run_folder)
            remove_tree(self.first_images)
            self._run_file.unlink(missing_ok=True)
            self.presence.unlink(missing_ok=True)

    def restore_manifest(self, previous: PreviousRun) -> None:
        """Finish a dataset again that was opened for more rows and got none."""
        if previous.state == "complete" and self.shards == list(previous.shards):
            self.update_run_info(previous, {})
            journal.delete_journals(self._run_folder)
            remove_tree(self.first_images)
            self._run_file.unlink(missing_ok=True)

    def _delete_leftovers(self) -> None:
        """Delete what killed attempts left: shards that their workers wrote later, and files in the making."""
        files = (self._run_file, *(self.path / name for name in backup.COMPANION_FILES))
        unwritten = (path for file in files for path in found_in(file.parent, f".{file.name}.*.tmp"))
        for path in (
            *self.journal.late_shards(self.data),
            *found_in(self.data, ".*.tmp"),
            *unwritten,
        ):
            path.unlink(missing_ok=True)

    def take_notes(self) -> list[str]:
        """Return the notes since the last call."""
        notes = self.notes
        self.notes = []
        return notes

    def _check_shards(self) -> None:
        """Raise OutputError if a shard was lost or changed while the run went on; name the files that do not count.

        On a disk all of a shard is compared, in object storage its size.
        """
        sizes = {path.name: size for path, size in sizes_in(self.data, "*.parquet").items()}

        def is_changed(shard: ShardFile) -> bool:
            if sizes.get(shard.name) != shard.size_bytes:
                return True
            path = self.data / shard.name
            return isinstance(path, Path) and sha256_of(path) != shard.sha256

        shards = tuple(self.journal.shards.values())
        changes = map_in_threads(is_changed, shards)
        if changed := [shard.name for shard, change in zip(shards, changes, strict=True) if change]:
            raise OutputError(
                f"shards of {self.data} were deleted or changed while the run wrote others "
                f"({names_in_words(changed)}): run the same command again, and only their rows are done again"
            )
        if unlisted := sizes.keys() - self.journal.shards.keys():
            self.notes.append(unlisted_in_words(self.data, unlisted))

    def _count_rows(self, samples: int, margin: float) -> Tally:
        """Count the shards, give each sample, region and phrase an id of its own, and write the categories.

        samples: The samples of the input. margin: That of estimated scores. Raises as `finish`.
        """
        shards = [self.data / name for name in sorted(self.journal.shards)]
        try:
            return self._count(shards, samples, margin)
        except SchemaError:
            for path in shards:  # nobody looks at the content of objects when a run is resumed
                if sha256_of(path) != self.journal.shards[path.name].sha256:
                    self._set_aside(path, "is damaged", is_lost=True)
            raise

    def _count(self, shards: Sequence[AnyPath], samples: int, margin: float) -> Tally:
        with rows_of(shards) as rows:
            total = rows.tally(len(shards), margin)
            if total.rows != samples:
                counts = f"{samples} samples were read but {total.rows} rows written"
                if self._resumes:
                    raise ResumeError(
                        f"{counts}: the input is not what it was when the run was started. --fresh starts over"
                    )
                raise RuntimeError(counts)
            has_estimate = Decisions.stored_in(self._run).absent_share is not None
            doubt = find_caption_doubt(rows, shards, total, expects_absent=not has_estimate)
            self.check_holder()  # counting takes its time
            for shard in resolve_id_collisions(rows, shards):
                self.journal.shards[shard.name] = shard
            write_categories(rows, self.path / "categories.parquet")
        return replace(total, doubt=doubt)

    def finish(self, report: Report, manifest: Manifest) -> Tally:
        """Count the shards, check that no sample was lost, and write categories, card, metadata and manifest.

        Args:
            report: The engine's counts.
            manifest: What made the rows.

        Raises:
            ResumeError: The input has changed since the run was begun.
            OutputError: A shard was lost or changed meanwhile.
            SchemaError: A shard is damaged, and is done again by the next run.
            RuntimeError: Rows were lost or doubled, which is a fault of the program.
        """
        self.check_holder()
        self._delete_leftovers()
        self._check_shards()
        total = self._count_rows(report.samples_read, manifest.scores.get("estimated_margin", 0.0))
        write_text(self.path / "README.md", manifest.card(total), self.check_holder)
        values = manifest.to_json(total, report, self._run)
        croissant = manifest.croissant(values)
        write_text(self.path / CROISSANT_FILE, croissant, self.check_holder)
        values[CROISSANT_SHA256] = hashlib.sha256(croissant.encode()).hexdigest()
        values = sign(values) if manifest.may_sign else values
        values[SHARDS] = list_entries(self.journal.shards.values())
        write_text(self._manifest, manifest_text(values), self.check_holder)
        self.drop_backup()
        journal.delete_journals(self._run_folder)
        self.in_hand.unlink(missing_ok=True)
        remove_tree(self.first_images)
        self._run_file.unlink()
        return total


def _hold_always() -> None:
    """Do nothing: the kernel's lock on a file is held as long as the process lives."""
