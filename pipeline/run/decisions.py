"""What a run computes with, decided once and before it computes: engine, precision, calibration and presence.

`resolve` decides what the driver can decide; `HeatMapRun.decide` adds what depends on the first
images.

Precision: `phrasebox.pipeline.run.steps.precision_if_known` takes bf16 where the device is fast in it
(`phrasebox.stages.model.device.choose_precision`), else fp32. It leaves `auto` where only the workers
know the device; `HeatMapRun.in_precision` then takes the first worker's. A resumed run keeps its
stored precision. It is fp32 if the workers that looked at the first images died, and for another
source whose device only workers know.

Presence: `HeatMapRun.needs_presence` says whether it is fitted to the first images
(`phrasebox.pipeline.run.presence_fit`). The presence of all regions is null if `regions.calibration` is `none`,
if the calibration in use, named or taken by `auto`, has none, if that fit fails, and if regions
come from another source than heat maps without such a calibration.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from hashlib import sha256
from typing import Self

from phrasebox.pipeline.config.run_config import RunConfig
from phrasebox.pipeline.output.dataset_folder import DatasetFolder
from phrasebox.pipeline.output.decisions import Decision, Decisions
from phrasebox.pipeline.output.manifest import Manifest
from phrasebox.pipeline.output.previous_run import Identity, PreviousRun
from phrasebox.pipeline.output.report import LOOKING, Display, Report, ShowStep
from phrasebox.pipeline.run.concept_pool import parse_pool
from phrasebox.pipeline.run.domain_shift import (
    NO_CALIBRATION,
    DomainShift,
    ScoreMeaning,
    apply_domain_shift,
    precision_fault,
)
from phrasebox.pipeline.run.engines import Engine, choose_engine
from phrasebox.pipeline.run.presence_fit import read_presence
from phrasebox.pipeline.run.stage_calls import samples_in
from phrasebox.pipeline.run.steps import (
    HeatMapSteps,
    SourceSteps,
    Steps,
    build_source_steps,
    build_steps,
    precision_if_known,
)
from phrasebox.pipeline.run.warm_up import FIRST_ANSWERS_LOST, FirstAnswers, estimate_share, warm_up
from phrasebox.stages.contract.records import Record, is_among
from phrasebox.stages.contract.values import Json
from phrasebox.stages.model.config import AUTO, NO_MODEL, PrecisionChoice
from phrasebox.stages.read import Piece, Reader, make_reader, plan_pieces
from phrasebox.stages.scores.score import Calibration
from phrasebox.stages.sources.source import HEAT_MAPS, SOURCES


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """The surroundings of a run.

    Attributes:
        folder: The folder of the dataset.
        report: The counts of the run.
        display: Shows the run to people.
    """

    folder: DatasetFolder
    report: Report
    display: Display

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
        steps: The stages.
        identity: What the rows depend on.
        score_reason: Why the scores of other regions than those of heat maps are no probabilities.
        shift: The difference of the images from those of the calibration.
    """

    config: RunConfig
    reader: Reader
    input_pieces: Sequence[Piece]
    pieces: Sequence[Piece]
    steps: Steps
    identity: Identity
    score_reason: str = NO_CALIBRATION
    shift: DomainShift | None = None

    @property
    def meaning(self) -> ScoreMeaning:
        """The meaning of the scores."""
        reason = None if self.steps.is_calibrated else self.score_reason
        return ScoreMeaning(calibration=self.steps.calibration, reason=reason)

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

    def expecting(self, absent_share: float | None) -> Self:
        """Return the run with a share of absent phrases that it expects; None: the share stays open."""
        return replace(self, steps=self.steps.expecting(absent_share))

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
        return self, ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DecidingRun(Run, ABC):
    """A run whose first images may decide how it goes on; their records become rows."""

    @abstractmethod
    def look(self, session: Session, engine: Engine) -> FirstAnswers:
        """Compute the first images with the engine; those that an attempt before has kept are not computed again."""

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
        return [record for record in first_images.records if not is_among(record.sample.key, written)]


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRun(DecidingRun):
    """A run whose regions come from another source. Where presence is known, its first images decide a share."""

    steps: SourceSteps

    def decide(
        self, session: Session, engine: Engine, previous: PreviousRun
    ) -> tuple[Run, Sequence[Record]]:
        """See `Run.decide`."""
        run = self.expecting(previous.decisions.absent_share)
        if not run.steps.has_open_share:
            return run, run.take_kept(session, engine)
        session.show_step(LOOKING)
        first_images = run.look(session, engine)
        session.report.note(first_images.share_in_words())
        session.folder.store_decisions(run.identity, Decisions(absent_share=first_images.share))
        session.show_step("loading the model")
        return run.expecting(first_images.share), run.take_records(first_images, session)

    def look(self, session: Session, engine: Engine) -> FirstAnswers:
        """See `Run.look`."""
        place = session.folder.first_images
        compute = partial(estimate_share, reader=self.reader, pieces=self.input_pieces, place=place)
        return engine.compute_first(compute) or FIRST_ANSWERS_LOST


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatMapRun(DecidingRun):
    """A run whose regions are cut from heat maps. Its first images may decide precision, calibration and presence."""

    steps: HeatMapSteps

    @property
    def meaning(self) -> ScoreMeaning:
        """See `Run.meaning`."""
        config = self.config
        return ScoreMeaning.of_heat_maps(
            self.steps.calibration, self.shift, config.regions.calibration, config.model.precision
        )

    @property
    def has_open_precision(self) -> bool:
        """Whether only the workers know the device of the model, and so its precision."""
        return self.config.engine.kind == "ray" and self.config.model.precision == AUTO

    @property
    def needs_presence(self) -> bool:
        """Whether presence is to be fitted: no calibration fits, and the settings leave that open."""
        return self.config.regions.calibration == "auto" and self.steps.calibration is None

    def in_precision(self, precision: str) -> Self:
        """Return the run in the precision of its workers."""
        config = self.config.in_precision(precision)
        steps = self.steps.in_precision(precision)
        identity = replace(self.identity, config=config.rows_depend_on())
        return replace(self, config=config, steps=steps, identity=identity)

    def with_shift(self, shift: DomainShift | None, report: Report) -> Self:
        """Return the run with a difference of its images; one that makes the calibration meaningless drops it.

        The report gets what this means for the scores, and where maps are cut if no calibration
        says that.
        """
        steps = apply_domain_shift(self.steps, shift, self.config.regions.calibration)
        if shift is not None:
            report.note(shift.what)
        if steps.calibration is not None and steps.is_calibrated:
            fault = precision_fault(steps.calibration, self.config.model.precision)
            if fault is not None:
                report.note(fault)
        cut = steps.regions_stage.config
        if cut != self.config.regions:
            share = f"{cut.threshold} of their highest heat (regions.rule={cut.rule})"
            report.note(f"Maps are cut at {share}: no calibration says where to cut them")
        return replace(self, shift=shift, steps=steps)

    def with_presence(self, calibration: Calibration) -> Self:
        """Return the run with a calibration of presence alone that was fitted to its images."""
        return replace(self, steps=self.steps.with_calibration(calibration))

    def decide(
        self, session: Session, engine: Engine, previous: PreviousRun
    ) -> tuple[Run, Sequence[Record]]:
        """See `Run.decide`."""
        run = self.with_stored(previous.decisions, session)
        if not run.has_open_decision(previous.decisions, session.folder):
            return run, self.take_kept(session, engine)
        session.show_step(LOOKING)
        first_images = run.look(session, engine)
        decided = run.after_warm_up(first_images, session)
        session.show_step("loading the model")
        return decided, decided.take_records(first_images, session)

    def look(self, session: Session, engine: Engine) -> FirstAnswers:
        """See `Run.look`."""
        compute = partial(
            warm_up,
            reader=self.reader,
            pieces=self.input_pieces,
            choice=self.config.regions.calibration,
            place=session.folder.first_images,
        )
        return engine.compute_first(compute) or FIRST_ANSWERS_LOST

    def with_stored(self, stored: Decisions, session: Session) -> Self:
        """Return the run with the decisions that run.json or the manifest stores. Raise ResumeError if one is lost."""
        run = self
        if stored.shift is not None or not self.steps.is_calibrated:
            values = None if stored.shift is None else stored.shift.value
            run = self.with_shift(None if values is None else DomainShift(**values), session.report)
        run = run.expecting(stored.absent_share)
        presence = read_presence(session.folder.presence, stored.presence_digest)
        return run if presence is None else run.with_presence(presence)

    def has_open_decision(self, stored: Decisions, folder: DatasetFolder) -> bool:
        """Return whether the first images decide something; presence, where there are rows, they no longer do."""
        if stored.presence is not None:
            return False
        is_to_compare = self.steps.is_calibrated and stored.shift is None
        needs_presence = self.needs_presence and not folder.shards
        return is_to_compare or self.has_open_precision or self.steps.has_open_share or needs_presence

    def after_warm_up(self, first_images: FirstAnswers, session: Session) -> Self:
        """Return the run with what the first images decide, which is stored and reported."""
        report = session.report
        decisions = Decisions()
        run = self
        if self.has_open_precision:
            run = self.in_precision(first_images.precision)
            report.note(f"the model computes in {first_images.precision}")
        if run.steps.is_calibrated:
            run = run.with_shift(first_images.shift, report)
            shift = None if run.shift is None else asdict(run.shift)
            decisions = replace(decisions, shift=Decision(shift))
        presence = None
        if run.needs_presence:
            report.note(first_images.presence.in_words())
            digest = None
            if (calibration := first_images.presence.calibration) is not None:
                run = run.with_presence(calibration)
                presence = calibration.to_json()
                digest = sha256(presence.encode()).hexdigest()
            decisions = replace(decisions, presence=Decision(digest))
        if run.steps.has_open_share:
            report.note(first_images.share_in_words())
            decisions = replace(decisions, absent_share=first_images.share)
            run = run.expecting(first_images.share)
        session.folder.store_decisions(run.identity, decisions, presence)
        return run


def resolve(config: RunConfig, precision: PrecisionChoice, show_step: ShowStep) -> Run:
    """Check everything that can be checked before any work, and decide what the driver can decide.

    Faults of the input are raised before a library of the model is loaded.

    Args:
        config: The user's configuration.
        precision: The model's, where the configuration leaves it open: that of the run in the
            folder, or `auto`.
        show_step: See `Display.show_step`.

    Raises:
        ConfigError: A setting cannot be used.
        InputError: The input cannot be read, or a pool of concepts would be empty.
        WeightsError: The model's files are missing or damaged.
    """
    show_step("reading the input")
    reader = make_reader(config.input)
    input_pieces = plan_pieces(reader)
    pieces = config.input.take_part(input_pieces)
    show_step("loading the libraries of the model")
    engine = choose_engine(config.engine, samples_in(pieces))
    is_open = config.model.precision == AUTO
    settings = (config.in_precision(precision) if is_open else config).model_copy(update={"engine": engine})
    parts: Json = {"reader": reader, "input_pieces": input_pieces, "pieces": pieces}
    if settings.source.kind == HEAT_MAPS:
        steps = build_steps(settings)
        decided = settings.in_precision(steps.model_stage.config.model.precision)
        final = decided.model_copy(update={"explain": steps.explainer})
        identity = _identity_of(steps, final.rows_depend_on())
        return HeatMapRun(config=final, steps=steps, identity=identity, **parts)
    source = SOURCES[settings.source.kind]
    if source.needs_model:
        device_precision = precision_if_known(engine, settings.model)
        settings = settings.in_precision("fp32" if device_precision == AUTO else device_precision)
    source_steps = build_source_steps(settings)
    most = settings.source.pool_to_parse
    if most is not None:
        # Behind all that may be wrong: an input of millions of captions takes hours.
        settings = settings.with_pool(parse_pool(settings, reader, input_pieces, most, show_step))
        source_steps = source_steps.with_source(settings.source)
    final = settings.model_copy(update={"output": settings.output.model_copy(update={"heat_maps": False})})
    identity = _identity_of(source_steps, final.rows_depend_on())
    reason = f"A score is {source.score_means}"
    return SourceRun(config=final, steps=source_steps, identity=identity, score_reason=reason, **parts)


def _identity_of(steps: Steps, config: Json) -> Identity:
    return Identity(
        model_fingerprint=steps.fingerprint,
        calibration=steps.calibration_digest,
        segmenter=steps.segmenter,
        config=config,
    )
