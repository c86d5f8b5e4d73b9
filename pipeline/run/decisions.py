"""What a run computes with, decided once and before it computes: engine, precision, calibration and presence.

`resolve` decides what the driver can decide; `Run.decide` adds what depends on the first images.
What both do for heat maps, and for regions from elsewhere, is that of a `RunSource` (`source.py`).

Precision: `phrasebox.pipeline.run.steps.precision_if_known` takes bf16 where the device is fast in it
(`phrasebox.stages.model.device.choose_precision`), else fp32. It leaves `auto` where only the workers
know the device; `CutHeatMaps.decide` then takes the first worker's. A resumed run keeps its stored
precision. It is fp32 if the workers that looked at the first images died, and for another source
whose device only workers know.

Presence: `CutHeatMaps.has_open_decision` says whether it is fitted to the first images
(`phrasebox.pipeline.run.presence_fit`). The presence of all regions is null if `regions.calibration` is `none`,
if the calibration in use, named or taken by `auto`, has none, if that fit fails, and if regions
come from another source than heat maps without such a calibration.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from phrasebox.pipeline.config.run_config import RunConfig
from phrasebox.pipeline.output.dataset_folder import DatasetFolder
from phrasebox.pipeline.output.decisions import Decisions
from phrasebox.pipeline.output.manifest import Manifest
from phrasebox.pipeline.output.previous_run import Identity, PreviousRun
from phrasebox.pipeline.output.report import LOOKING, Display, Report, ShowStep
from phrasebox.pipeline.run.domain_shift import DomainShift
from phrasebox.pipeline.run.engines import Engine, choose_engine
from phrasebox.pipeline.run.presence_fit import read_presence
from phrasebox.pipeline.run.score_meaning import ScoreMeaning
from phrasebox.pipeline.run.source import RunSource, source_of
from phrasebox.pipeline.run.stage_calls import samples_in
from phrasebox.pipeline.run.steps import AnySteps
from phrasebox.pipeline.run.warm_up import FIRST_ANSWERS_LOST, FirstAnswers
from phrasebox.stages.contract.records import Record, is_among
from phrasebox.stages.model.config import AUTO, NO_MODEL, PrecisionChoice
from phrasebox.stages.read import Piece, Reader, make_reader, plan_pieces
from phrasebox.stages.scores.score import Calibration

ROWS_PER_FILE: Final = 1000
LARGE_ROWS_PER_FILE: Final = 10_000
LARGE_INPUT: Final = 1_000_000
"""Samples above which shards are large. A file costs listings, requests and a digest, and 10^8 rows would make 10^5 of
1,000. One process would take hours for 10,000 rows, which a kill would cost, so its shards stay small."""

SAMPLES_A_TAR: Final = 1000  # at least, of those that people make; a tar does not say how many it has


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """The surroundings of a run.

    Attributes:
        folder: The folder of the dataset.
        report: The counts of the run.
        display: Shows the run to people.
        has_summary: Whether the end of the run says what it has made, and what to do with it.
    """

    folder: DatasetFolder
    report: Report
    display: Display
    has_summary: bool = True

    def show_step(self, step: str) -> None:
        """Show a step before the first image, and the report's new notes."""
        self.display.show_step(step)
        self.update()

    def update(self) -> None:
        """Show the report as it is now."""
        self.display.update(self.report)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run as the driver has resolved it.

    Attributes:
        config: The configuration with the settings that engine, model and source decide.
        reader: The reader of the input.
        input_pieces: The pieces of the whole input.
        pieces: Those that the run reads, a part of the input or all of it.
        source: The origin of the regions.
        steps: The stages.
        identity: What the rows depend on.
        shift: The difference of the images from those of the calibration.
    """

    config: RunConfig
    reader: Reader
    input_pieces: Sequence[Piece]
    pieces: Sequence[Piece]
    source: RunSource
    steps: AnySteps
    identity: Identity
    shift: DomainShift | None = None

    @property
    def rows_per_file(self) -> int:
        """The most rows of a shard: as set, or `ROWS_PER_FILE`, or `LARGE_ROWS_PER_FILE` for a large input on Ray."""
        count = samples_in(self.pieces)
        least = len(self.pieces) * SAMPLES_A_TAR if count is None else count
        is_large = self.config.engine.kind == "ray" and least > LARGE_INPUT
        return self.config.output.rows_per_file or (LARGE_ROWS_PER_FILE if is_large else ROWS_PER_FILE)

    @property
    def meaning(self) -> ScoreMeaning:
        """The meaning of the scores."""
        return self.source.score_meaning(self)

    @property
    def model(self) -> dict[str, str]:
        """The model's `name`, and where they are known `layout`, the checkpoint's project, and `described_by`."""
        description = self.steps.description
        if description is None:
            other_model = self.steps.other_model
            return {"name": NO_MODEL if other_model is None else other_model.name}
        parts = {"layout": description.layout, "described_by": description.described_by}
        named_parts = {"name": self.config.model.label, **parts}
        return {key: value for key, value in named_parts.items() if value}

    @property
    def model_in_words(self) -> str:
        """The model for people: name, layout of the checkpoint, files that describe it, and precision."""
        if self.steps.description is None:
            return self.model["name"]
        model = self.config.model
        weights = f" with {model.weights}" if model.weights else ""
        layout = self.model.get("layout", "")
        files = f" by {self.model['described_by']}" if "described_by" in self.model else ""
        origin = f" ({layout}{files})" if layout and model.name != "demo" else ""
        precision = "" if model.precision == AUTO else f" in {model.precision}"
        return f"{model.label}{weights}{origin}{precision}"

    @property
    def manifest(self) -> Manifest:
        """What made the rows; its configuration has the rule that cuts the maps, see `with_fallback_cut`."""
        meaning = self.meaning
        return Manifest(
            config=self.config.model_copy(update={"regions": self.steps.regions_stage.config}),
            model=self.model,
            calibration=None
            if meaning.reason or meaning.calibration is None
            else meaning.calibration.digest,
            scores=meaning.scores,
        )

    def expecting(self, absent_share: float | None) -> Run:
        """Return the run with a share of absent phrases that it expects; None: the share stays open."""
        return replace(self, steps=self.steps.expecting(absent_share))

    def in_precision(self, precision: str) -> Run:
        """Return the run in the precision of its workers."""
        config = self.config.in_precision(precision)
        identity = replace(self.identity, config=config.rows_depend_on())
        return replace(self, config=config, steps=self.steps.in_precision(precision), identity=identity)

    def with_stored(self, stored: Decisions, presence: Calibration | None, report: Report) -> Run:
        """Return the run with decisions that were made before. presence: See `RunSource.with_stored`."""
        return self.source.with_stored(self, stored, presence, report).expecting(stored.absent_share)

    def with_first_images(self, first_images: FirstAnswers, report: Report) -> tuple[Run, Decisions]:
        """Return the run with what its first images decide, and these decisions, which the report gets, too."""
        run, decisions = self.source.decide(self, first_images, report)
        if run.steps.has_open_share:
            report.note(first_images.share_in_words())
            decisions = replace(decisions, absent_share=first_images.share)
            run = run.expecting(first_images.share)
        return run, decisions

    def decide(
        self, session: Session, engine: Engine, previous: PreviousRun
    ) -> tuple[Run, Sequence[Record]]:
        """Return the run after all decisions of its first images, and those of their records that become rows.

        A resumed run may look at other images, so all is decided once.

        Args:
            session: Stores and reports what is decided.
            engine: Computes the first images.
            previous: The run in the folder.

        Raises:
            ResumeError: A stored decision is lost.
            PhraseboxError: As a stage raised it.
        """
        folder = session.folder
        report = session.report
        stored = previous.decisions
        fitted = read_presence(folder.presence, stored.presence_digest)
        run = self.with_stored(stored, fitted, report)
        is_open = self.source.has_open_decision(run, stored, has_rows=bool(folder.shards))
        if not is_open and not run.steps.has_open_share:
            return run, run.take_kept(session, engine)
        session.show_step(LOOKING)
        first_images = run.look(session, engine)
        run, decisions = run.with_first_images(first_images, report)
        presence = None if decisions.presence_digest is None else first_images.calibration
        folder.store_decisions(run.identity, decisions, None if presence is None else presence.to_json())
        session.show_step("loading the model")
        return run, run.take_records(first_images, session)

    def look(self, session: Session, engine: Engine) -> FirstAnswers:
        """Compute the first images with the engine; those that an attempt before has kept are not computed again."""
        first_look = self.source.first_look(self, session.folder.first_images)
        return engine.compute_first(first_look) or FIRST_ANSWERS_LOST

    @property
    def keeps_records(self) -> bool:
        """Whether records of the first images become rows.

        They do not in a run of a part, because all parts look at the same images, or where
        regions need a segmenter.
        """
        return self.config.input.part is None and self.steps.segmenter is None

    def take_kept(self, session: Session, engine: Engine) -> Sequence[Record]:
        """Return those of an attempt that was stopped after it had decided, and before they were rows."""
        written = session.folder.journal.keys
        if not self.keeps_records or all(is_among(key, written) for key in session.folder.kept_keys):
            return ()
        session.show_step(LOOKING)
        records = self.take_records(self.look(session, engine), session)
        session.show_step("loading the model")
        return records

    def take_records(self, first_images: FirstAnswers, session: Session) -> Sequence[Record]:
        """Return the records of the first images that become rows, and report the work for them."""
        if not first_images.records or not self.keeps_records:
            return ()
        for arguments in first_images.stages:
            session.report.stage(*arguments)
        written = session.folder.journal.keys
        records = [record for record in first_images.records if not is_among(record.sample.key, written)]
        if self.config.output.caption_score:
            return records
        return [replace(record, caption_scores=(), caption_presences=()) for record in records]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInput:
    """What is known of a run when its input is found, and no library of the model is loaded.

    Attributes:
        config: The configuration with the engine for so many samples.
        reader: The reader of the input.
        input_pieces: The pieces of the whole input.
        pieces: Those that the run reads, a part of the input or all of it.
    """

    config: RunConfig
    reader: Reader
    input_pieces: Sequence[Piece]
    pieces: Sequence[Piece]


def find_input(config: RunConfig) -> RunInput:
    """Find the input of a configuration, and choose the engine. Raise ConfigError or InputError."""
    reader = make_reader(config.input)
    input_pieces = plan_pieces(reader)
    pieces = config.input.take_part(input_pieces)
    engine = choose_engine(config.engine, samples_in(pieces))
    config = config.model_copy(update={"engine": engine})
    return RunInput(config=config, reader=reader, input_pieces=input_pieces, pieces=pieces)


def resolve(run_input: RunInput, precision: PrecisionChoice, show_step: ShowStep) -> Run:
    """Check everything that can be checked before any work, and decide what the driver can decide.

    Args:
        run_input: The input, and the user's configuration.
        precision: The model's, where the configuration leaves it open: that of the run in the
            folder, or `auto`.
        show_step: See `Display.show_step`.

    Raises:
        ConfigError: A setting cannot be used.
        InputError: The input cannot be read, or a pool of concepts would be empty.
        WeightsError: The model's files are missing or damaged.
    """
    show_step("loading the libraries of the model")
    is_open = run_input.config.model.precision == AUTO
    settings = run_input.config.in_precision(precision) if is_open else run_input.config
    source = source_of(settings.source)
    final, steps = source.resolve(settings, run_input.reader, run_input.input_pieces, show_step)
    identity = Identity(
        model_fingerprint=steps.fingerprint,
        calibration=steps.calibration_digest,
        segmenter=steps.segmenter,
        config=final.rows_depend_on(),
    )
    return Run(
        config=final,
        reader=run_input.reader,
        input_pieces=run_input.input_pieces,
        pieces=run_input.pieces,
        source=source,
        steps=steps,
        identity=identity,
    )
