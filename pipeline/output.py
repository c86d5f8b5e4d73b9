"""The dataset's folder: may this run write here, what is already done, and what is written at the end.

OUT/data/*.parquet        the shards
OUT/categories.parquet    phrases with their counts
OUT/README.md             dataset card
OUT/dataset.json          manifest, written last: its presence says "complete"
OUT/.phrasebox/           run.json (what the rows depend on), lock, Ray Data's checkpoint; until complete
"""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import __version__
from pipeline.config import RunConfig
from pipeline.differences import differences
from pipeline.summary import Report
from stages.errors import ConfigError, ResumeError
from stages.schema import SCHEMA_VERSION, dataset_schema
from stages.write.atomic import write_text
from stages.write.card import dataset_card
from stages.write.tally import Tally, tally, write_categories

State = Literal["new", "started", "complete"]


class DatasetFolder:
    """A dataset on a local or mounted file system."""

    def __init__(self, path: Path) -> None:
        if "://" in str(path) or ":/" in str(path):
            raise ConfigError(f"output.path: {path} is a URL; the dataset is written to a local or mounted folder")
        self.path = path.expanduser().absolute()
        self.data = self.path / "data"
        self.checkpoint = self.path / ".phrasebox" / "checkpoint"
        self._run = self.path / ".phrasebox" / "run.json"
        self._manifest = self.path / "dataset.json"
        self._goes_on = False

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for one run. Raises ResumeError if another run has it, ConfigError if it can't be made."""
        lock = self.path / ".phrasebox" / "lock"
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            file = lock.open("w")
        except OSError as error:
            raise ConfigError(f"output.path: cannot write to {self.path}: {error.strerror}") from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise ResumeError(
                    f"another run is writing to {self.path}; wait for it, or give another output.path"
                ) from error
            yield

    def begin(self, config: RunConfig, fingerprint: str, *, calibration: str | None = None, fresh: bool) -> State:
        """Decide whether this run may write here, and note what it is. Call while locked.

        fingerprint, calibration   of the model and of what its scores are calibrated with, see `Graph`

        Raises ResumeError if the folder holds another run, or data that no run of phrasebox explains.
        """
        wanted = {
            "schema_version": SCHEMA_VERSION,
            "model_fingerprint": fingerprint,
            "calibration": calibration,
            "config": config.rows_depend_on(),
        }
        if fresh:
            self._clear()
        found = self._what_is_here()
        if found is None:
            strange = [path.name for path in (*self.data.glob("*.parquet"), *self._beside()) if path.exists()]
            if strange:
                raise ResumeError(
                    f"{self.path} holds files that no run of phrasebox explains ({', '.join(sorted(strange)[:5])}): "
                    "give another output.path, or move them away"
                )
            self.data.mkdir(parents=True, exist_ok=True)
            write_text(self._run, json.dumps(wanted, indent=2))
            return "new"
        differing = list(differences(found, wanted))
        if differing:
            listed = "\n".join(f"  {line}" for line in differing)
            raise ResumeError(
                f"{self.path} holds a run with other settings:\n{listed}\n"
                "Give another output.path, or --fresh to delete that run and start over."
            )
        if self._manifest.is_file():
            return "complete"
        self._goes_on = True
        return "started"

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
            return found["run"] if path == self._manifest else found
        return None

    def _beside(self) -> list[Path]:
        """What a run writes beside the shards, the mark of a run last."""
        return [self.path / name for name in ("categories.parquet", "README.md", "dataset.json")]

    def _clear(self) -> None:
        """Delete a run's files, and nothing if there is no mark of a run."""
        try:
            if self._what_is_here() is None:
                return
        except ResumeError:
            if not self._is_damaged():
                raise
        for path in (*self.data.glob("*.parquet"), *self.data.glob(".*.tmp"), *self._beside(), self._run):
            path.unlink(missing_ok=True)
        shutil.rmtree(self.checkpoint, ignore_errors=True)

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
        for path in sorted(self.data.glob("*.parquet")):
            try:
                ids.update(pq.read_table(path, columns=["id"])["id"].to_pylist())
            except (pa.ArrowException, OSError, KeyError) as error:
                raise ResumeError(f"{path} is damaged ({error}); delete it, or --fresh starts over") from error
        return ids

    def finish(self, config: RunConfig, report: Report, *, model: str) -> Tally:
        """Count the shards, check that no sample was lost, write categories, card and manifest.

        Raises ResumeError if the input of a run that was continued has changed, RuntimeError if rows were lost or
        doubled: that is a fault of the program.
        """
        total = tally(self.data)
        if total.rows != report.samples_read:
            counts = f"{report.samples_read} samples were read but {total.rows} rows written"
            if self._goes_on:
                raise ResumeError(
                    f"{counts}: the input is not what it was when the run was started. --fresh starts over"
                )
            raise RuntimeError(counts)
        write_categories(total, self.path / "categories.parquet")
        schema = dataset_schema(embed_images=config.output.embed_images)
        run = json.loads(self._run.read_text(encoding="utf-8"))
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
            "stages": {
                name: {"records": stage.records, "busy_s": round(stage.busy_s, 3)}
                for name, stage in report.stages.items()
            },
            "run": run,
        }
        write_text(self._manifest, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
        shutil.rmtree(self.checkpoint, ignore_errors=True)
        self._run.unlink()
        return total
