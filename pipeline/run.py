"""A run from configuration to dataset."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from hashlib import sha256
from itertools import islice
from typing import Any, Final

from rich.console import Console

from pipeline.config import RunConfig
from pipeline.domain import NOT_COMPARED, Outside, Trust, trusted, with_presence
from pipeline.engines import WarmUp, choose_engine, load_engine
from pipeline.engines.inline import samples_in
from pipeline.first_look import FirstImages, look_at_first
from pipeline.graph import Graph, build_graph, calibration_for, check_files, fetch_weights, precision_here
from pipeline.output.command import command_of
from pipeline.output.folder import DatasetFolder
from pipeline.output.previous_run import COMMAND, MayDelete, PreviousRun, delete_what_runs_wrote
from pipeline.output.shards import Changes, changes_of, list_names
from pipeline.presence_alone import (
    PRESENCE,
    PRESENCE_IMAGES,
    grown_in_words,
    in_words,
    is_wanted,
    kept_presence,
)
from pipeline.summary import Display, Report, first_line, model_in_words, print_summary
from pipeline.terminal import counted
from stages.contract.errors import InputError, PhraseboxError, TooManyErrors
from stages.contract.records import Record, is_among
from stages.explain.stage import ExplainStage
from stages.phrases.precomputed import PrecomputedPhrases
from stages.read import Reader, Shard, SourceConfig, grouped_rows, input_fingerprint, make_reader, plan_shards
from stages.regions.stage import RegionsStage
from stages.shared.model.config import AUTO, NO_MODEL
from stages.shared.storage import AnyPath

INPUT: Final = "input_fingerprint"
"""The key of `dataset.json` and run.json that identifies the input of the rows, see `stages.read.input_fingerprint`."""

FIRST_SAMPLES: Final = 100  # of which a file of phrases has to have a caption

OUTSIDE: Final = "outside_domain"
"""Their key for how the images differ from those of the calibration, see `Outside`; null if they do not."""


def run(
    config: RunConfig,
    console: Console | None = None,
    *,
    fresh: bool = False,
    may_delete: MayDelete = delete_what_runs_wrote,
    graph: Graph | None = None,
    report: Report | None = None,
    verbose: bool = False,
) -> AnyPath:
    """Run the pipeline, or resume a former run of the same command; return the dataset's folder.

    Args:
        config: The run's configuration.
        console: Receives progress and the summary; none by default.
        fresh: Replace what a former run left in `output.path`. It is deleted when this run has written its first file,
            and comes back if this run ends before.
        may_delete: Asked before `fresh` replaces rows; by default the answer is yes, unless files that no run wrote
            would be deleted too.
        graph: Replaces the graph that the configuration describes.
        report: Collects statistics for the caller.
        verbose: Also print the statistics behind the sentences of the first lines.

    Raises:
        TooManyErrors: The dataset is complete, and more rows failed than `output.max_error_share` allows.
        PhraseboxError: Before any work, if something cannot be done; later, if the surroundings fail.
    """
    console = console or Console(quiet=True)
    folder = DatasetFolder(config.output.path)
    fingerprint = check_files(config) if graph is None else input_fingerprint(config.input)
    with folder.locked(), folder.writing():
        report, display, changes = report or Report(), Display(console), Changes()
        same = {INPUT: fingerprint, COMMAND: None if graph else command_of(config)}
        if graph is None and not fresh and folder.is_complete(same):
            return _complete(folder, config, console, changes)
        asked = config.engine.kind
        if config.model.precision == AUTO and not fresh:
            config = config.in_precision(folder.precision)
        graph, config, every = _planned(config, graph, display)
        shards = config.input.take_part(every)
        previous = folder.check_resumable(
            config,
            graph.fingerprint,
            calibration=graph.calibration,
            segmenter=graph.segmenter,
            fresh=fresh,
            may_delete=may_delete,
        )
        is_same_input = previous.run.get(INPUT) == fingerprint
        if previous.state == "complete" and is_same_input:
            return _complete(folder, config, console, changes)
        with display.shown():
            display.show_step("comparing the input with the rows")
            reject_other_phrases(graph, every)
            if previous.state != "new" and not is_same_input:
                changes = _changes(folder, graph.reader, shards, console, config.input)
        # Changed samples are reported each time, as long as their rows stay as they are.
        noted: dict[str, Any] = {} if changes.changed else {**same}
        if previous.state == "complete" and not changes.new:
            folder.update_run_info(previous, noted)
            return _complete(folder, config, console, changes)
        samples = samples_in(shards)
        _say(console, [first_line(config, graph, samples, asked)])
        elsewhere = config.engine.kind == "ray" and config.engine.address  # each node has its own disk
        if graph.loads_model and not elsewhere:
            fetch_weights(graph.described, lambda line: console.print(line, soft_wrap=True))
        _note_odd_input(report, shards, config.input.extent if every else None)
        computing = _Computing(graph, folder, report, display, every, config, verbose)
        with display.shown():
            if not graph.calibrated:
                noted |= {OUTSIDE: None}
            with _begun(folder, previous, noted, console, same_input=is_same_input):
                _say(console, [*folder.notes, *_in_words(changes)])
                if previous.state != "new":
                    _say(console, [_resuming(folder, samples)])
                display.show_step("loading the model" if config.engine.kind == "inline" else "starting Ray")
                display.update(report)
                computing.make_rows(shards, previous)
        graph, trust = computing.graph, computing.trust
        config = graph.as_cut(computing.config)
        model = {"name": config.model.label, **graph.recognised} if graph.loads_model else {"name": NO_MODEL}
        total = folder.finish(config, report, model=model, doubt=trust.misgiving, **_calibrated_by(graph))
    print_summary(
        console,
        total,
        report,
        folder.written_as,
        model=model_in_words(config, graph) if graph.loads_model else NO_MODEL,
        scores=trust.in_words(graph, config, total),
        calibrated=trust.doubt is None,
        differs=computing.outside is not None,
        extent=config.input.extent,
    )
    _reject_many_errors(folder.path, config.output.max_error_share)
    return folder.path


def _note_odd_input(report: Report, shards: Sequence[Shard], extent: str | None) -> None:
    """Note rows that become one sample, and a part without samples; `extent` is None where the whole input has none."""
    if (grouped := grouped_rows(shards)) is not None:
        report.note(grouped)
    if extent is not None and not shards:
        report.note(f"{extent} is empty: the input has fewer samples than parts, or fewer tars")


def reject_other_phrases(graph: Graph, shards: Sequence[Shard]) -> None:
    """Raise InputError where `input.phrases` has none of the first captions: it was made from another input."""
    precomputed: PrecomputedPhrases | None = getattr(graph.before[0], "precomputed", None)
    if precomputed is None:
        return
    samples = islice(graph.reader.samples(shards), FIRST_SAMPLES)
    captions = [caption for sample in samples for caption in sample.captions]
    if captions and not any(map(precomputed.of, captions)):
        raise InputError(
            f"input.phrases: {precomputed.path} has none of the captions of the first {FIRST_SAMPLES} samples: "
            "phrasebox phrases INPUT --out FILE makes such a file"
        )


@dataclass(slots=True)
class _Computing:
    """The part of a run in which rows are made, by a graph that the first images may change before."""

    graph: Graph
    folder: DatasetFolder
    report: Report
    display: Display
    every: Sequence[Shard]  # of the whole input
    config: RunConfig
    verbose: bool
    outside: Outside | None = None  # see `outside_domain`
    trust: Trust = field(default_factory=Trust)  # in the scores

    def make_rows(self, shards: Sequence[Shard], previous: PreviousRun) -> None:
        """Make the rows by the graph as it is then. Raise as an engine does."""
        first = self.first_look(previous)
        config = self.graph.as_cut(self.config)
        load_engine(config.engine.kind)(self.graph, shards, self.folder, config, self.report, self.on_progress, first)

    def on_progress(self, report: Report) -> None:
        """See `pipeline.engines.OnProgress`."""
        self.folder.drop_backup()
        self.display.update(report)

    def first_look(self, previous: PreviousRun) -> WarmUp | None:
        """Return what the first images are to decide; None if nothing, or if it was decided before.

        A resumed run may look at other images, so that all is decided once. Raise as `kept_presence`.
        """
        compares = self.graph.calibrated and OUTSIDE not in previous.run
        if not compares:
            self.judge(Outside.of(previous.run.get(OUTSIDE)))
        if PRESENCE in previous.run:
            self.graph = kept_presence(self.graph, self.folder.presence, previous.run[PRESENCE])
            if (grown := grown_in_words(self.graph, self.every, previous.run)) is not None:
                self.report.note(grown)
        elif compares or self.asks_for_precision or (is_wanted(self.graph, self.config) and not self.folder.shards):
            self.display.show_step("looking at the first images")
            self.display.update(self.report)
            look = partial(look_at_first, fits=self.config.regions.calibration == "auto")
            return WarmUp(shards=self.every, compute=look, decide=self.decided)
        return None

    @property
    def asks_for_precision(self) -> bool:
        """Whether only the workers know the device of the model, and so its precision."""
        graph, config = self.graph, self.config
        is_open = config.engine.kind == "ray" and config.model.precision == AUTO
        return is_open and graph.described is not None and isinstance(graph.model, ExplainStage)

    def judge(self, outside: Outside | None) -> None:
        """Leave a calibration out that means nothing for images that differ so from those of its fit."""
        self.outside = outside
        self.graph, self.trust = trusted(self.graph, outside, self.config, self.report, verbose=self.verbose)

    def decided(self, look: FirstImages | None) -> tuple[Graph, Sequence[Record]]:
        """Note what the first images say; see `WarmUp.decide`."""
        noted: dict[str, Any] = {}
        if self.asks_for_precision:
            self.config = self.config.in_precision("fp32" if look is None else look.precision)
            self.graph = self.graph.in_precision(self.config.model.precision)
            if (calibration := calibration_for(self.config, self.graph.described)) != self.graph.cuts.calibration:
                self.graph = self.graph.with_calibration(calibration)
                if look is not None:
                    look.records = ()  # their presence is the other calibration's
            self.folder.store_precision(self.config, self.graph.calibration)
            self.report.note(f"the model computes in {self.config.model.precision}")
        if self.graph.calibrated:
            self.judge(Outside(what=NOT_COMPARED, in_regions=False) if look is None else look.outside)
            noted[OUTSIDE] = None if self.outside is None else asdict(self.outside)
        text = None
        if is_wanted(self.graph, self.config):
            fitted = "the workers that looked at the first images died" if look is None else look.presence
            self.report.note(in_words(fitted))
            text = None if isinstance(fitted, str) else fitted.to_json()
            digest = None if text is None else sha256(text.encode()).hexdigest()
            noted |= {PRESENCE: digest, PRESENCE_IMAGES: 0 if look is None else look.images}
            if not isinstance(fitted, str):
                self.graph = with_presence(self.graph, fitted)
        self.folder.store_presence(text, noted)
        explained = self.explained_by(look)
        self.display.show_step("loading the model")
        self.display.update(self.report)
        return self.graph, explained

    def explained_by(self, look: FirstImages | None) -> Sequence[Record]:
        """Return the records of the first look that become rows, and report what it has done for them.

        There are none in a run of a part, because all parts look at the same images, or where regions need a segmenter.
        """
        if look is None or not look.records or self.config.input.part is not None or self.graph.segmenter is not None:
            return ()
        for arguments in look.stages:
            self.report.stage(*arguments)
        written = self.folder.journal.keys
        return [record for record in look.records if not is_among(record.sample.key, written)]


def _calibrated_by(graph: Graph) -> dict[str, Any]:
    """The arguments of `DatasetFolder.finish` that say which calibration made scores and presence."""
    known = graph.cuts.calibration if isinstance(graph.after[0], RegionsStage) else None
    if known is None:
        return {}
    return (
        {"calibration": graph.calibration, "fitted_to": known.fitted_to}
        if known.of_regions
        else {"presence": known.fitted_to}
    )


def _planned(config: RunConfig, graph: Graph | None, display: Display) -> tuple[Graph, RunConfig, list[Shard]]:
    """Return the graph, the configuration with what is decided here, and all parts of the input.

    The input's faults are told before a library of the model is loaded.
    """
    with display.shown():
        display.show_step("reading the input")
        reader = make_reader(config.input) if graph is None else graph.reader
        every = plan_shards(reader)
        display.show_step("loading the libraries of the model")
        config = choose_engine(config, samples_in(config.input.take_part(every)))
        graph = graph or build_graph(config, reader)
        if graph.described is not None:
            config = config.in_precision(precision_here(config))
            graph = graph.in_precision(config.model.precision)
    return graph, graph.settings(config), every


def _complete(folder: DatasetFolder, config: RunConfig, console: Console, changes: Changes) -> AnyPath:
    """Say that there is nothing to do. Return and raises as `run`."""
    _say(console, [*folder.notes, *_in_words(changes)])
    rest = "every sample of the input has its row" if changes.changed else "nothing to do"
    failed = json.loads((folder.path / "dataset.json").read_text(encoding="utf-8"))["counts"]["failed"]
    again = f" Rows with an error: {failed:,}; delete their shards to have them done again." if failed else ""
    _say(console, [f"{folder.path} is complete: {rest}. --fresh starts over.{again}"])
    _reject_many_errors(folder.path, config.output.max_error_share)
    return folder.path


@contextmanager
def _begun(
    folder: DatasetFolder, previous: PreviousRun, noted: dict[str, Any], console: Console, *, same_input: bool
) -> Iterator[None]:
    """Begin, and run the block. If it fails before its first row, leave the folder as it was."""
    try:
        folder.start(previous, noted, same_input=same_input)
        yield
    except BaseException as error:
        if isinstance(error, PhraseboxError) and previous.state == "new":
            folder.discard()
        folder.restore_manifest(previous)
        if folder.restore_backup():
            _say(console, [f"nothing was written: the former run in {folder.path} is back"])
        raise


def _changes(
    folder: DatasetFolder, reader: Reader, shards: Sequence[Shard], console: Console, source: SourceConfig
) -> Changes:
    """Compare the input, all of which is read here, with the rows. Raise as `changes_of`."""
    _say(console, [f"comparing {source.extent} with the rows in {folder.path}"])
    # Another limit moves the ends of a part: rows without a sample there are another part's.
    limited = source.limit is not None and source.part is None
    return changes_of(folder.shards, reader.samples(shards), limited=limited, extent=source.extent)


def _resuming(folder: DatasetFolder, samples: int | None) -> str:
    """Return how far a run is that goes on; `samples` is the number of all, None if that is not known."""
    total = "" if samples is None else f" of {samples:,}"
    return f"resuming the run in {folder.path}, rows so far: {len(folder.journal.keys):,}{total}"


def _say(console: Console, lines: Sequence[str]) -> None:
    for line in lines:
        console.print(line, soft_wrap=True)


def _in_words(changes: Changes) -> list[str]:
    lines = []
    if changes.new:
        lines.append(f"samples of the input that have no row yet: {changes.new:,}. They are added")
    if changes.changed:
        lines.append(
            "samples of the input with other captions, or another image, than when their rows were made: "
            f"{changes.changed:,} ({list_names(changes.names, changes.changed)}). The rows stay as they are; --fresh "
            "makes them again"
        )
    return lines


def _reject_many_errors(dataset: AnyPath, allowed: float | None) -> None:
    """Raise TooManyErrors if all rows of a complete dataset failed, or more than the allowed share of them."""
    counts = json.loads((dataset / "dataset.json").read_text(encoding="utf-8"))["counts"]
    failed, rows = counts["failed"], counts["written"]
    reasons = sorted(counts["failed_by_reason"].items(), key=lambda item: (-item[1], item[0]))
    if rows and failed == rows:
        every = "the only row" if rows == 1 else f"all {rows:,} rows"
        raise TooManyErrors(
            f"{every} failed; the column `error_detail` in {dataset} says why. "
            f"The commonest reason is {reasons[0][0]} ({counted(reasons[0][1], 'row')})"
        )
    if allowed is not None and failed > allowed * rows:
        raise TooManyErrors(
            f"{failed:,} of {counted(rows, 'row')} failed ({failed / rows:.2%}), at most {allowed:.2%} may: "
            f"{', '.join(f'{reason} {count:,}' for reason, count in reasons)}. "
            f"The dataset in {dataset} is complete; its columns `error` and `error_detail` say what is wrong",
            key="output.max_error_share",
        )
