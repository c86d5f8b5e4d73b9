"""The report of a run: a line of progress while it goes, and a table at its end."""

from __future__ import annotations

import shlex
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
)
from rich.table import Table

from pipeline import terminal
from stages.contract.stage import Forwards
from stages.write import LIKELY, Tally


@dataclass(slots=True)
class StageTime:
    """The work of a stage in this run, summed over its workers.

    Attributes:
        records: Records it answered.
        busy_s: Seconds in which its workers were busy.
        images: Images that a forward pass was asked for; 0 for a stage without a model.
        devices: Images asked for, by the device that computed them.
    """

    records: int = 0
    busy_s: float = 0.0
    images: int = 0
    devices: Counter[str] = field(default_factory=Counter)

    def to_json(self) -> dict[str, Any]:
        """Plain values for `dataset.json`."""
        values = {"records": self.records, "busy_s": round(self.busy_s, 3)}
        if not self.devices:
            return values
        return {**values, "images": self.images, "devices": dict(self.devices)}


@dataclass(slots=True)
class Report:
    """The events of a run so far, as the engine reports them.

    Attributes:
        expected: Samples of the input, if the reader knows their number before reading.
        already: Rows that an earlier attempt has written.
        reads: Input shard number -> (samples, skipped by reason); a shard that is read again replaces itself.
        stages: What each stage did, by its name.
        done: Rows handed to the writer in this run.
        failed: Those of them with an error.
        deaths: Workers that died with a batch in hand, which was then given to another.
        notes: What the user should know besides the counts.
        started_s: When the run started, by `time.perf_counter`.
        first_row_s: Seconds from there to the first rows.
        first_rows: How many these were.
        first_batch_s: Seconds from there until the model had answered its first batch.
        first_batch: Records in that batch.
    """

    expected: int | None = None
    already: int = 0
    reads: dict[int, tuple[int, Counter[str]]] = field(default_factory=dict)
    stages: dict[str, StageTime] = field(default_factory=dict)
    done: int = 0
    failed: int = 0
    deaths: int = 0
    notes: list[str] = field(default_factory=list)
    started_s: float = field(default_factory=time.perf_counter)
    first_row_s: float | None = None
    first_rows: int = 0
    first_batch_s: float | None = None
    first_batch: int = 0

    def read(self, shard: int, samples: int, skipped: Counter[str]) -> None:
        """Note that a shard of the input was read to its end."""
        self.reads[shard] = (samples, skipped)

    def stage(self, name: str, records: int, busy_s: float, forwards: Forwards | None = None) -> None:
        """Note that a stage answered a batch."""
        entry = self.stages.setdefault(name, StageTime())
        entry.records += records
        entry.busy_s += busy_s
        if forwards is not None:
            if self.first_batch_s is None:
                self.first_batch_s, self.first_batch = self.wall_time_s, records
            entry.images += forwards.images
            entry.devices[forwards.device] += forwards.images

    def rows(self, done: int, failed: int) -> None:
        """Note that rows are ready to be written."""
        if self.first_row_s is None:
            self.first_row_s, self.first_rows = self.wall_time_s, done
        self.done += done
        self.failed += failed

    def died(self) -> None:
        """Note that a worker died with a batch in hand."""
        self.deaths += 1

    def note(self, text: str) -> None:
        """Note what the user should know; it is shown once."""
        self.notes.append(text)

    @property
    def seen(self) -> int:
        """Images that the model has answered, or rows where no model is asked: what progress is counted in.

        Rows come long after the model where many of them are one file.
        """
        answered = [stage.records for stage in self.stages.values() if stage.devices]
        if not answered:
            return self.done
        # What is repeated because its worker died is counted twice.
        return answered[0] if self.expected is None else min(answered[0], self.expected - self.already)

    @property
    def images_per_second(self) -> float | None:
        """The speed of `seen` after the first ones, which include the start; None until more have come."""
        first_s, first = (
            (self.first_row_s, self.first_rows)
            if self.first_batch_s is None
            else (self.first_batch_s, self.first_batch)
        )
        if first_s is None or self.seen <= first or self.wall_time_s <= first_s:
            return None
        return (self.seen - first) / (self.wall_time_s - first_s)

    @property
    def samples_read(self) -> int:
        """Samples of the shards read so far."""
        return sum(samples for samples, _ in self.reads.values())

    @property
    def skipped(self) -> Counter[str]:
        """Rows of the input that gave no sample, by reason."""
        total: Counter[str] = Counter()
        for _, skipped in self.reads.values():
            total.update(skipped)
        return total

    @property
    def wall_time_s(self) -> float:
        """Seconds since the run started."""
        return time.perf_counter() - self.started_s


class Display:
    """A line of progress: images that the model has seen, images/s, time left, errors.

    It is redrawn on a terminal; a log gets one now and then.
    """

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[speed]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._doing = ""
        self._task = self._progress.add_task("", total=1, speed="")
        self._notes_shown = 0
        self._last_line_s = time.monotonic()

    @contextmanager
    def shown(self) -> Iterator[Display]:
        """Show the line while the block runs."""
        with self._progress:
            yield self

    def doing(self, what: str) -> None:
        """Say what is done before the first image, for example "loading the model"."""
        self._doing = what
        self._progress.update(self._task, description=what)

    def update(self, report: Report) -> None:
        """Redraw from the report, and print its new notes."""
        for note in report.notes[self._notes_shown :]:
            self._progress.console.print(note, soft_wrap=True)
        self._notes_shown = len(report.notes)
        done, speed = report.already + report.seen, report.images_per_second
        words = [] if report.seen else [self._doing or "starting"]
        if speed:
            words.append(f"{speed:,.1f} images/s")
        if speed and report.expected is not None:
            words.append(f"{duration((report.expected - done) / speed)} left")
        if report.already:
            words.append(f"{report.already:,} were done before")
        if report.failed:
            words.append(f"{report.failed:,} failed")
        if report.deaths:
            words.append(f"{report.deaths:,} workers died")
        images = f"images: {done:,}" + ("" if report.expected is None else f" of {report.expected:,}")
        said = ", ".join(words)
        if report.seen:
            self._progress.update(self._task, description=images, completed=done, total=report.expected, speed=said)
        if self._progress.disable and time.monotonic() - self._last_line_s >= terminal.LINE_SECONDS:
            self._last_line_s = time.monotonic()
            self._progress.console.print(f"{images}, {said}" if said else images, soft_wrap=True)


def duration(seconds: float) -> str:
    """Seconds for people."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def _forwards(report: Report) -> Iterator[tuple[str, str]]:
    """Lines about what the model computed."""
    for stage in report.stages.values():
        for device, images in stage.devices.items():
            yield "images computed on", device if len(stage.devices) == 1 else f"{device}: {images:,}"


def print_summary(
    console: Console, total: Tally, report: Report, path: str, *, model: str, scores: str, calibrated: bool
) -> None:
    """Print the table at the end of a run, and what can be done with the dataset.

    Args:
        console: Where to.
        total: Counts of the dataset.
        report: What happened in the run.
        path: The dataset's folder, as the user wrote it.
        model: Its name.
        scores: Sentences that say what the scores mean.
        calibrated: Whether they are probabilities.
    """
    table = Table(show_header=False)
    table.add_column(justify="left")
    table.add_column(justify="right")
    table.add_row("samples read", f"{report.samples_read:,}")
    table.add_row("rows written", f"{total.rows:,}")
    table.add_row("  annotated", f"{total.annotated:,}")
    if total.without_regions:
        table.add_row("    of these without a region", f"{total.without_regions:,}")
    table.add_row("  without phrases", f"{total.without_phrases:,}")
    if total.other_language:
        share = total.other_language / total.rows
        table.add_row("  with a caption in another language", f"{total.other_language:,} ({share:.1%})")
    table.add_row("  failed", f"{total.failed:,}")
    for reason, count in total.failed_by_reason.most_common():
        table.add_row(f"    {reason}", f"{count:,}")
    for reason, count in report.skipped.most_common():
        table.add_row(f"skipped, no row: {reason}", f"{count:,}")
    table.add_row("phrases", f"{total.phrases:,}")
    if total.absent:
        table.add_row("  judged not to be in their image", f"{total.absent:,}")
    table.add_row("regions", f"{total.regions:,}")
    if total.regions and calibrated:
        table.add_row(f"  with a score of {LIKELY} or more", f"{total.likely:,} ({total.likely / total.regions:.0%})")
    table.add_row("time", f"{report.wall_time_s:,.1f} s")
    if report.deaths:
        table.add_row("workers that died", f"{report.deaths:,}")
    for name, value in _forwards(report):
        table.add_row(name, value)
    if report.done:
        table.add_row("images/s in this run", f"{report.done / report.wall_time_s:,.1f}")
    console.print(f"dataset in {path}, model: {model}", soft_wrap=True)
    console.print(table)
    if not total.rows:
        console.print("the input holds no samples")
    if total.failed:
        console.print("The columns `error` and `error_detail` say why rows failed.", soft_wrap=True)
    if total.regions:
        least = f" --min-score {LIKELY}" if calibrated else ""
        console.print(scores, soft_wrap=True)
        console.print(
            f"Look at it:  phrasebox inspect {shlex.quote(path)}\n"
            f"Export it:   phrasebox export {shlex.quote(path)} --format coco --out coco/{least}",
            soft_wrap=True,
        )
