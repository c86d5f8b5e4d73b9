"""The report of a run: a line of progress while it goes, and a table at its end."""

from __future__ import annotations

import shlex
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table

from phrasebox.pipeline import terminal
from phrasebox.pipeline.terminal import duration, say
from phrasebox.stages.contract.records import NO_PACKAGE
from phrasebox.stages.contract.score_threshold import Threshold
from phrasebox.stages.contract.stage import Forwards
from phrasebox.stages.contract.values import Json
from phrasebox.stages.phrases.languages.packages import SPACY_LANGUAGES, how_to_install
from phrasebox.stages.write import Tally

LOOKING: Final = "looking at the first images"  # the step of a run that decides how it goes on

ShowStep = Callable[..., None]
"""What `Display.show_step` is."""


@dataclass(slots=True)
class StageTime:
    """The work of a stage in this run, summed over its workers.

    Attributes:
        records: The records that the stage has answered.
        busy_s: The seconds in which its workers were busy.
        devices: The images of its forward passes by the device that computed them.
    """

    records: int = 0
    busy_s: float = 0.0
    devices: Counter[str] = field(default_factory=Counter)

    def to_json(self) -> Json:
        """Return plain values for `dataset.json`."""
        forwards = {"images": self.devices.total(), "devices": dict(self.devices)} if self.devices else {}
        return {"records": self.records, "busy_s": round(self.busy_s, 3), **forwards}


@dataclass(slots=True)
class Report:
    """The events of a run so far, as the engine reports them.

    Attributes:
        expected: The samples of the input, if the reader knows their number before reading.
        previous_rows: The rows that an earlier attempt has written.
        reads: The samples, and the skipped rows by reason, of each input piece by its number. A
            piece that is read again replaces itself.
        stages: The work of each stage by its name.
        rows_done: The rows that the writer got in this run.
        failed: The rows of these with an error.
        deaths: The workers that died with a batch in hand.
        looked_at: The first images that are computed, which decide how the run goes on, and the
            number of all of these; None before the first one.
        notes: Sentences for the user besides the counts.
        start_s: The time of the start, `time.perf_counter()`.
        first_batch: The seconds until the model had answered its first batch, and the number of
            its records; or the first rows where there is no model.
    """

    expected: int | None = None
    previous_rows: int = 0
    reads: dict[int, tuple[int, Counter[str]]] = field(default_factory=dict)
    stages: dict[str, StageTime] = field(default_factory=dict)
    rows_done: int = 0
    failed: int = 0
    deaths: int = 0
    looked_at: tuple[int, int] | None = None
    notes: list[str] = field(default_factory=list)
    start_s: float = field(default_factory=time.perf_counter)
    first_batch: tuple[float, int] | None = None

    def read(self, piece: int, samples: int, skipped: Counter[str]) -> None:
        """Note that a piece of the input was read to its end."""
        self.reads[piece] = (samples, skipped)

    def stage(self, name: str, records: int, busy_s: float, forwards: Forwards | None = None) -> None:
        """Note that a stage answered a batch."""
        entry = self.stages.setdefault(name, StageTime())
        entry.records += records
        entry.busy_s += busy_s
        if forwards is not None:
            self.first_batch = self.first_batch or (self.wall_time_s, records)
            entry.devices[forwards.device] += forwards.images

    def rows(self, count: int, failed: int) -> None:
        """Note that rows are ready to be written."""
        self.first_batch = self.first_batch or (self.wall_time_s, count)
        self.rows_done += count
        self.failed += failed

    def died(self) -> None:
        """Note that a worker died with a batch in hand; the ledger reports it by this method's name."""
        self.deaths += 1

    def look(self, done: int, total: int) -> None:
        """Note how many of the first images are computed."""
        self.looked_at = (done, total)

    def note(self, text: str) -> None:
        """Note what the user should know; it is shown once."""
        self.notes.append(text)

    @property
    def images_done(self) -> int:
        """The images that the model has answered, long before they are rows; or the rows where there is no model."""
        records = [stage.records for stage in self.stages.values() if stage.devices]
        # Those whose records an earlier attempt has kept become rows without the model.
        done = max([self.rows_done, *records[:1]])
        # A batch that is repeated after the death of its worker counts twice.
        return done if self.expected is None else min(done, self.expected - self.previous_rows)

    @property
    def images_per_second(self) -> float | None:
        """The speed of `images_done` after the first ones, which include the start; None until more have come."""
        first = self.first_batch
        if first is None or self.images_done <= first[1] or self.wall_time_s <= first[0]:
            return None
        return (self.images_done - first[1]) / (self.wall_time_s - first[0])

    @property
    def samples_read(self) -> int:
        """Samples of the pieces read so far."""
        return sum(samples for samples, _ in self.reads.values())

    @property
    def skipped(self) -> Counter[str]:
        """Rows of the input that gave no sample, by reason."""
        return sum((skipped for _, skipped in self.reads.values()), Counter[str]())

    @property
    def wall_time_s(self) -> float:
        """Seconds since the run started."""
        return time.perf_counter() - self.start_s


class Display:
    """A line of progress: images that the model has answered, images/s, time left, errors; a log has some of these."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[speed]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._step = ""
        self._task = self._progress.add_task("", total=1, speed="")
        self._notes_shown = 0
        self._last_line_s = time.monotonic()

    @contextmanager
    def shown(self) -> Iterator[Display]:
        """Show the line while the block runs."""
        with self._progress:
            yield self

    def say(self, *lines: str) -> None:
        """Print lines above the progress."""
        for line in lines:
            say(self.console, line)

    def show_step(self, step: str, done: int = 0, total: int | None = None) -> None:
        """Show a step before the first image, for example "loading the model", and how much of a long one is done."""
        self._step = step
        if done:
            step += f": {done:,}" + ("" if total is None else f" of {total:,}")
            self._say_now_and_then(step)
        self._progress.update(self._task, description=step, completed=done, total=total if done else 1)

    def update(self, report: Report) -> None:
        """Redraw from the report, and print its new notes."""
        self.say(*report.notes[self._notes_shown :])
        self._notes_shown = len(report.notes)
        done = report.previous_rows + report.images_done
        speed = report.images_per_second
        words = [] if report.images_done else [self._step or "starting"]
        if speed:
            words.append(f"{speed:,.2f} images/s")
        if speed and report.expected is not None:
            words.append(f"{duration((report.expected - done) / speed)} left")
        if report.previous_rows:
            words.append(f"{report.previous_rows:,} were done before")
        if report.failed:
            words.append(f"{report.failed:,} failed")
        if report.deaths:
            words.append(f"{terminal.counted(report.deaths, 'worker')} died")
        images = f"images: {done:,}" + ("" if report.expected is None else f" of {report.expected:,}")
        if report.looked_at is not None and not report.images_done:
            looked_at, total = report.looked_at
            images = f"{LOOKING}: {looked_at:,} of {total:,}"
            words = words[1:] if self._step == LOOKING else words
            self._progress.update(self._task, description=images, completed=looked_at, total=total)
        details = ", ".join(words)
        if report.images_done:
            self._progress.update(
                self._task, description=images, completed=done, total=report.expected, speed=details
            )
        self._say_now_and_then(f"{images}, {details}" if details else images)

    def _say_now_and_then(self, line: str) -> None:
        """Print a line of progress where no line is redrawn, and where the last one is long ago."""
        if self._progress.disable and time.monotonic() - self._last_line_s >= terminal.LINE_SECONDS:
            self._last_line_s = time.monotonic()
            self.say(line)


def parsers_in_words(unparsed: Counter[str]) -> list[str]:
    """Return a line for each parser that captions lacked; `unparsed` is `Tally.unparsed`."""
    lines = []
    for parser, count in unparsed.most_common():
        code, _, package = parser.partition(": ")
        language = SPACY_LANGUAGES[code].name if code in SPACY_LANGUAGES else code
        remedy = (
            "no spaCy pipeline is known for it; phrases.spacy_models names one"
            if package == NO_PACKAGE
            else f"its parser is missing: {how_to_install(package)}"
        )
        lines.append(f"{terminal.counted(count, 'caption')} in {language} got no phrases, because {remedy}")
    return lines


def summary_table(total: Tally, report: Report) -> Table:
    """Return the table at the end of a run, from the counts of the dataset and of the run."""
    language, unread = (
        f"{count:,} ({count / total.rows:.1%})" if count else ""
        for count in (total.other_language, total.unread_language)
    )
    rows: list[tuple[str, int | str]] = [
        ("samples read", report.samples_read),
        ("rows written", total.rows),
        ("  annotated", total.annotated),
        ("    of these without a region", total.without_regions or ""),
        ("  without phrases", total.without_phrases),
        ("  with a caption in another language", language),
        ("  with a caption in a language that the model does not read", unread),
        ("captions without a parser", total.unparsed.total() or ""),
        ("  failed", total.failed),
        *((f"    {reason}", count) for reason, count in total.failed_by_reason.most_common()),
        *((f"skipped, no row: {reason}", count) for reason, count in report.skipped.most_common()),
        ("phrases", total.phrases),
        ("  judged not to be in their image", total.absent or ""),
        ("regions", total.regions),
        ("time", f"{report.wall_time_s:,.1f} s"),
        ("workers that died", report.deaths or ""),
        *(
            ("images computed on", device if len(stage.devices) == 1 else f"{device}: {images:,}")
            for stage in report.stages.values()
            for device, images in stage.devices.items()
        ),
        (
            "images/s in this run",
            f"{report.rows_done / report.wall_time_s:,.2f}" if report.rows_done else "",
        ),
    ]
    table = Table("", "", show_header=False)
    table.columns[1].justify = "right"
    for name, cell in rows:
        if cell != "":
            table.add_row(name, cell if isinstance(cell, str) else f"{cell:,}")
    return table


def threshold_table(thresholds: Sequence[Threshold]) -> Table:
    """Return what least scores keep, a row for each precision."""
    table = Table("precision", "score at least", "regions kept")
    for column in table.columns:
        column.justify = "right"
    for threshold in thresholds:
        kept_regions = f"{threshold.regions:,} ({threshold.share:.0%})"
        table.add_row(f"{threshold.goal:g}", f"{threshold.score:.3f}", kept_regions)
    return table


def export_command(path: str, advised: Threshold | None) -> str:
    """Return the command that exports. advised: The threshold; None if scores only rank, or none are high."""
    precision = "" if advised is None else f" --precision {advised.goal:g}"
    return f"Export it:   phrasebox export {shlex.quote(path)} --format coco --out coco/{precision}"
