"""A run from configuration to dataset."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import islice
from typing import Any, Final

from rich.console import Console

from phrasebox.pipeline.config.output import OutputConfig
from phrasebox.pipeline.config.run_config import EngineConfig, RunConfig
from phrasebox.pipeline.dataset.shard_list import unlisted_in_words
from phrasebox.pipeline.output.dataset_folder import DatasetFolder
from phrasebox.pipeline.output.decisions import Decision, Decisions
from phrasebox.pipeline.output.manifest import ENVIRONMENTS, environments_with
from phrasebox.pipeline.output.previous_run import INPUT, MayDelete, PreviousRun, delete_what_runs_wrote
from phrasebox.pipeline.output.report import (
    Display,
    Report,
    export_command,
    parsers_in_words,
    summary_table,
    threshold_table,
)
from phrasebox.pipeline.output.request import REQUEST, request_fingerprint
from phrasebox.pipeline.output.shards import Changes, changes_of, list_names
from phrasebox.pipeline.run.decisions import Run, Session, find_input, resolve
from phrasebox.pipeline.run.engines import check_engine, engine_in_words
from phrasebox.pipeline.run.stage_calls import samples_in
from phrasebox.pipeline.run.start import start_engine, start_processes
from phrasebox.pipeline.run.steps import check_files, fetch_weights
from phrasebox.pipeline.terminal import counted, visible
from phrasebox.stages.contract.caption_doubt import CaptionDoubt
from phrasebox.stages.contract.errors import DoubtfulCaptions, InputError, PhraseboxError, TooManyErrors
from phrasebox.stages.contract.values import Json
from phrasebox.stages.files.storage import AnyPath
from phrasebox.stages.model.catalog import CATALOG
from phrasebox.stages.model.config import AUTO
from phrasebox.stages.read import input_notes
from phrasebox.stages.read.turns import CAPTION_ROLES
from phrasebox.stages.write import Tally

FIRST_SAMPLES: Final = 100  # of which a file of phrases has to have a caption


def run(
    config: RunConfig,
    console: Console | None = None,
    *,
    fresh: bool = False,
    may_delete: MayDelete = delete_what_runs_wrote,
    report: Report | None = None,
    has_summary: bool = True,
) -> AnyPath:
    """Run the pipeline, or resume a former run of the same command; return the dataset's folder.

    Args:
        config: The run's configuration.
        console: Receives progress and the summary; none by default.
        fresh: Replace what a former run left in `output.path`. It is deleted when this run has
            written its first file, and comes back if this run ends before.
        may_delete: Asked before `fresh` replaces rows; by default the answer is yes, unless
            files that no run wrote would be deleted too.
        report: Collects statistics for the caller.
        has_summary: Whether the end says what was made, and the next commands for it.

    Raises:
        TooManyErrors: More rows failed than `output.max_error_share` allows. The dataset is complete.
        DoubtfulCaptions: Most captions are doubtful, and `output.strict` is set. The dataset is complete.
        PhraseboxError: Before any work, if something cannot be done; later, if the surroundings
            fail.
    """
    folder = DatasetFolder(config.output.path)
    display = Display(console or Console(quiet=True))
    session = Session(folder=folder, report=report or Report(), display=display, has_summary=has_summary)
    check_engine(config.engine)
    fingerprint = check_files(config)
    with folder.locked(), folder.writing(), ExitStack() as ends:
        previous = folder.recover_previous_run()
        request = request_fingerprint(config)
        if not fresh:
            previous.check_before_model(config)
            if request is not None and previous.is_answer(fingerprint, request):
                return _end_complete(session, previous, config.output, Changes())
        with display.shown():
            precision = AUTO if fresh else previous.precision
            stored_pool = None if fresh else previous.pool
            display.show_step("reading the input")
            run_input = find_input(config.with_pool(stored_pool))
            if run_input.config.engine.kind == "ray":
                display.show_step("starting Ray")
            is_new = fresh or previous.state == "new"
            processes = ends.enter_context(start_processes(run_input, folder.path, is_new=is_new))
            resolved = resolve(run_input, precision, display.show_step)
        identity = resolved.identity
        previous = folder.claim_fresh(identity, may_delete) if fresh else folder.claim(identity)
        previous = replace(previous, has_same_input=previous.run.get(INPUT) == fingerprint)
        changes = _find_changes(resolved, session, previous)
        # Changed samples are reported each time, as long as their rows stay as they are.
        info: Json = {} if changes.changed else {INPUT: fingerprint, REQUEST: request}
        if previous.state == "complete" and not changes.new:
            if not previous.has_same_input:
                folder.update_run_info(previous, info)
            return _end_complete(session, previous, config.output, changes)
        _introduce(resolved, session, config.engine)
        if not (resolved.config.engine.kind == "ray" and resolved.config.engine.address):
            # On a cluster each node has its own disk.
            fetch_weights(resolved.steps.description, display.say)
        if resolved.meaning.reason:
            info |= Decisions(shift=Decision(None)).to_json()  # else the first images are compared
        earlier = previous.run.get(ENVIRONMENTS, []) if previous.shards else []
        info[ENVIRONMENTS] = environments_with(earlier, config.phrases.packages)
        with display.shown(), _started(session, previous, info):
            finished = _make_rows(resolved, session, previous, changes, processes)
            ends.close()
        total = folder.finish(session.report, finished.manifest)
    display.say(*folder.take_notes())
    if has_summary:
        _print_summary(finished, session, total)
    _reject_complete(folder.path, config.output)
    return folder.path


def _find_changes(resolved: Run, session: Session, previous: PreviousRun) -> Changes:
    """Compare the input with the rows, if it may differ. Raise as `changes_of` and `reject_other_phrases`."""
    source = resolved.config.input
    if previous.state == "complete" and previous.has_same_input:
        return Changes()
    with session.display.shown():
        session.display.show_step("comparing the input with the rows")
        reject_other_phrases(resolved)
        if previous.state == "new" or previous.has_same_input:
            return Changes()
        session.display.say(f"comparing {source.extent} with the rows in {session.folder.path}")
        # Another limit moves the ends of a part: rows without a sample there are another part's.
        is_limited = source.limit is not None and source.part is None
        samples = resolved.reader.samples(resolved.pieces)
        return changes_of(previous.counted_shards, samples, limited=is_limited, extent=source.extent)


def reject_other_phrases(resolved: Run) -> None:
    """Raise InputError where `input.phrases` has none of the first captions: it was made from another input."""
    precomputed = resolved.steps.before[0].precomputed
    if precomputed is None:
        return
    samples = islice(resolved.reader.samples(resolved.input_pieces), FIRST_SAMPLES)
    captions = [caption for sample in samples for caption in sample.captions]
    if captions and not any(map(precomputed.of, captions)):
        raise InputError(
            f"{precomputed.path} has none of the captions of the first {FIRST_SAMPLES} samples: phrasebox phrases "
            "INPUT --out FILE makes such a file",
            key="input.phrases",
        )


def _introduce(resolved: Run, session: Session, settings: EngineConfig) -> None:
    """Say which model and engine the run has, and note an odd input. settings: Those of the engine, as given."""
    model = resolved.config.model
    words = "no model"
    if resolved.steps.description is not None:
        words = f"model: {resolved.model_in_words}"
        if model.name in CATALOG and CATALOG[model.name].settings:
            words += ", with its own settings where none are given (--print-config shows them)"
    engine = engine_in_words(settings, resolved.config.engine, samples_in(resolved.pieces))
    session.display.say(f"{words}; engine: {engine}")
    if (concepts := resolved.config.source.concept_count) is not None:
        session.display.say(f"boxes may be called by a pool of {counted(concepts, 'concept')}")
    for note in input_notes(resolved.pieces, getattr(resolved.config.input, "turns", CAPTION_ROLES)):
        session.report.note(note)
    if resolved.input_pieces and not resolved.pieces:
        extent = resolved.config.input.extent
        session.report.note(f"{extent} is empty: the input has fewer samples than parts, or fewer tars")


@contextmanager
def _started(session: Session, previous: PreviousRun, info: Json) -> Iterator[None]:
    """Start the run in its folder for the block. If it fails before its first row, leave the folder as it was."""
    folder = session.folder
    try:
        folder.start(previous, info)
        yield
    except BaseException as error:
        folder.check_holder()  # what another run has written since stays
        if isinstance(error, PhraseboxError) and previous.state == "new":
            folder.discard()
        folder.restore_manifest(previous)
        if folder.restore_backup():
            session.display.say(f"nothing was written: the former run in {folder.path} is back")
        raise


def _make_rows(
    resolved: Run, session: Session, previous: PreviousRun, changes: Changes, processes: Any
) -> Run:
    """Make the rows that are missing; return the run with what its first images have decided. Raise as an engine."""
    display = session.display
    display.say(*session.folder.take_notes(), *_explain_changes(changes))
    if previous.state != "new":
        display.say(_explain_resumption(session.folder, samples_in(resolved.pieces)))
    session.show_step("loading the model")
    with start_engine(resolved, session, processes) as engine:
        decided, first_records = resolved.decide(session, engine, previous)
        session.folder.name_origin(decided.manifest)
        engine.make_rows(decided.steps, first_records)
    return decided


def _end_complete(
    session: Session, previous: PreviousRun, output: OutputConfig, changes: Changes
) -> AnyPath:
    """Say that there is nothing to do. Return and raise as `run`."""
    folder = session.folder
    if previous.unlisted:
        names = (path.name for path in previous.unlisted)
        folder.notes.append(unlisted_in_words(folder.data, names))
    session.display.say(*folder.take_notes(), *_explain_changes(changes))
    if session.has_summary:
        _explain_completeness(session, changes)
    _reject_complete(folder.path, output)
    return folder.path


def _explain_completeness(session: Session, changes: Changes) -> None:
    """Say that a dataset has every row, and what may be wrong with it."""
    folder = session.folder
    rest = "every sample of the input has its row" if changes.changed else "nothing to do"
    manifest = _manifest_of(folder.path)
    failed = manifest["counts"]["failed"]
    again = (
        f" Rows with an error: {failed:,}; delete their shards to have them done again." if failed else ""
    )
    session.display.say(f"{folder.path} is complete: {rest}. --fresh starts over.{again}")
    if (doubt := _doubt_in(manifest)) is not None:
        session.display.say(*map(visible, doubt.lines()))


def _explain_resumption(folder: DatasetFolder, samples: int | None) -> str:
    """Return how far a run is that goes on; `samples` is the number of all, None if that is not known."""
    total = "" if samples is None else f" of {samples:,}"
    return f"resuming the run in {folder.path}, rows so far: {len(folder.journal.keys):,}{total}"


def _explain_changes(changes: Changes) -> list[str]:
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


def _print_summary(finished: Run, session: Session, total: Tally) -> None:
    """Print the tables at the end of a run, and the next commands for the dataset."""
    meaning = finished.meaning
    is_review_due = finished.shift is not None
    is_calibrated = meaning.reason is None and not is_review_due
    path = session.folder.written_as
    say = session.display.say
    print_table = session.display.console.print
    say(f"dataset in {path}, model: {finished.model_in_words}")
    print_table(summary_table(total, session.report))
    if not total.rows:
        say(f"{finished.config.input.extent} holds no samples")
    say(*parsers_in_words(total.unparsed))
    if total.failed:
        say("The columns `error` and `error_detail` say why rows failed.")
    if total.regions:
        say(meaning.in_words(total, finished.config.model.name))
        if is_calibrated:
            print_table(threshold_table(total.thresholds))
            say(*filter(None, [total.unreached_in_words]))
        advised = total.advised if is_calibrated else None
        inspect = f"phrasebox inspect {shlex.quote(path)}"
        # No score can be recommended where images differ from those of the fit.
        use = f"Review it:   {inspect} --review" if is_review_due else export_command(path, advised)
        say(f"Look at it:  {inspect}", *([use] if total.doubt is None else ()))
    if total.doubt is not None:
        say(*map(visible, total.doubt.lines()))


def _manifest_of(dataset: AnyPath) -> Json:
    manifest: Json = json.loads((dataset / "dataset.json").read_text(encoding="utf-8"))
    return manifest


def _doubt_in(manifest: Json) -> CaptionDoubt | None:
    """Return the doubt that a manifest stores; those of earlier versions store none."""
    values = manifest.get("caption_doubt")
    return None if values is None else CaptionDoubt.of_json(values)


def _reject_complete(dataset: AnyPath, output: OutputConfig) -> None:
    """Raise TooManyErrors or DoubtfulCaptions if a complete dataset is not what `output` allows."""
    manifest = _manifest_of(dataset)
    _reject_many_errors(dataset, manifest["counts"], output.max_error_share)
    if output.strict and (doubt := _doubt_in(manifest)) is not None:
        raise DoubtfulCaptions(
            f"{doubt.what} {doubt.next_step}. The dataset in {dataset} is complete", key="output.strict"
        )


def _reject_many_errors(dataset: AnyPath, counts: Json, max_share: float | None) -> None:
    """Raise TooManyErrors if all rows of a complete dataset failed, or more than the allowed share of them."""
    failed = counts["failed"]
    rows = counts["written"]
    limit = 1.0 if max_share is None else max_share
    if failed > limit * rows or 0 < rows == failed:
        allowed = "" if max_share is None else f", at most {max_share:.2%} may"
        reasons = sorted(counts["failed_by_reason"].items(), key=lambda item: (-item[1], item[0]))
        raise TooManyErrors(
            f"{failed:,} of {counted(rows, 'row')} failed ({failed / rows:.2%}){allowed}: "
            f"{', '.join(f'{reason} {count:,}' for reason, count in reasons)}. "
            f"The dataset in {dataset} is complete; its columns `error` and `error_detail` say what is wrong",
            key="output.max_error_share" if failed > limit * rows else "",
        )
