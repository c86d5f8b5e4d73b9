"""What a run does by the origin of its regions: one `RunSource` for heat maps, one for every other `source.kind`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from phrasebox.pipeline.config.run_config import RunConfig
from phrasebox.pipeline.output.decisions import Decision, Decisions
from phrasebox.pipeline.output.first_images import OnProgress
from phrasebox.pipeline.output.report import Report, ShowStep
from phrasebox.pipeline.run.concept_pool import parse_pool
from phrasebox.pipeline.run.domain_shift import DomainShift, apply_domain_shift
from phrasebox.pipeline.run.exponent import exponent_in_words
from phrasebox.pipeline.run.score_meaning import ScoreMeaning, precision_fault
from phrasebox.pipeline.run.steps import (
    AnySteps,
    build_source_steps,
    build_steps,
    overlay_of,
    precision_if_known,
)
from phrasebox.pipeline.run.warm_up import FirstAnswers, estimate_share, warm_up
from phrasebox.stages.files.storage import AnyPath
from phrasebox.stages.model.config import AUTO
from phrasebox.stages.read import Piece, Reader
from phrasebox.stages.scores.score import Calibration
from phrasebox.stages.sources.source import SOURCES, RegionSource, RegionSourceConfig

if TYPE_CHECKING:
    from phrasebox.pipeline.run.decisions import Run

FirstLook: TypeAlias = Callable[[AnySteps, OnProgress], FirstAnswers]
"""Computes the first images of a run, see `Engine.compute_first`."""


class RunSource(ABC):
    """The origin of a run's regions.

    The first images of every run may decide the share of absent phrases, see `Run.decide`. By
    default they decide nothing else.
    """

    @abstractmethod
    def resolve(
        self, config: RunConfig, reader: Reader, pieces: Sequence[Piece], show_step: ShowStep
    ) -> tuple[RunConfig, AnySteps]:
        """Return the settings that the driver has decided, and the stages. Raise as `decisions.resolve`.

        pieces: Those of the whole input.
        """

    @abstractmethod
    def score_meaning(self, run: Run) -> ScoreMeaning:
        """Return the meaning of the scores of a run."""

    @abstractmethod
    def first_look(self, run: Run, place: AnyPath | None) -> FirstLook:
        """Return what computes the first images of a run, and keeps their records in a place, if there is one."""

    def with_stored(self, run: Run, stored: Decisions, presence: Calibration | None, report: Report) -> Run:
        """Return the run with decisions that were made before.

        presence: The calibration that was fitted to the first images then; None if none was.
        """
        return run

    def has_open_decision(self, run: Run, stored: Decisions, *, has_rows: bool) -> bool:
        """Return whether the first images decide something beside the share of absent phrases."""
        return False

    def decide(self, run: Run, first_images: FirstAnswers, report: Report) -> tuple[Run, Decisions]:
        """Return the run with what the first images decide, and these decisions, which the report gets, too."""
        return run, Decisions()


class CutHeatMaps(RunSource):
    """Heat maps that are cut. The first images may decide precision, calibration and presence."""

    def resolve(
        self, config: RunConfig, reader: Reader, pieces: Sequence[Piece], show_step: ShowStep
    ) -> tuple[RunConfig, AnySteps]:
        """See `RunSource.resolve`."""
        overlay = overlay_of(config)
        if overlay is not None:
            overlay.check()
        steps = build_steps(config)
        decided = config.in_precision(steps.model_stage.config.model.precision)
        return decided.model_copy(update={"explain": steps.explainer}), steps

    def score_meaning(self, run: Run) -> ScoreMeaning:
        """See `RunSource.score_meaning`."""
        config = run.config
        return ScoreMeaning.of_heat_maps(
            run.steps.calibration, run.shift, config.regions.calibration, config.model.precision
        )

    def first_look(self, run: Run, place: AnyPath | None) -> FirstLook:
        """See `RunSource.first_look`."""
        choice = run.config.regions.calibration
        return partial(warm_up, reader=run.reader, pieces=run.input_pieces, choice=choice, place=place)

    def with_stored(self, run: Run, stored: Decisions, presence: Calibration | None, report: Report) -> Run:
        """See `RunSource.with_stored`."""
        if stored.shift is not None or not run.steps.is_calibrated:
            values = None if stored.shift is None else stored.shift.value
            run = _with_shift(run, None if values is None else DomainShift(**values), report)
        run = replace(run, steps=run.steps.with_exponent(stored.exponent))
        return run if presence is None else _with_presence(run, presence)

    def has_open_decision(self, run: Run, stored: Decisions, *, has_rows: bool) -> bool:
        """See `RunSource.has_open_decision`; where there are rows, presence is no longer open."""
        if stored.presence is not None:
            return False
        is_to_compare = run.steps.is_calibrated and stored.shift is None
        return is_to_compare or _has_open_precision(run) or (_needs_presence(run) and not has_rows)

    def decide(self, run: Run, first_images: FirstAnswers, report: Report) -> tuple[Run, Decisions]:
        """See `RunSource.decide`."""
        decisions = Decisions()
        if _has_open_precision(run):
            run = run.in_precision(first_images.precision)
            report.note(f"the model computes in {first_images.precision}")
        if run.steps.is_calibrated:
            run = _with_shift(run, first_images.shift, report)
            shift = None if run.shift is None else asdict(run.shift)
            decisions = replace(decisions, shift=Decision(shift))
        if _needs_presence(run):
            report.note(first_images.presence.in_words())
            if first_images.calibration is not None:
                run = _with_presence(run, first_images.calibration)
            if first_images.generic is not None and first_images.shift is not None:
                run = replace(run, shift=first_images.shift)
                report.note(first_images.shift.what)
                decisions = replace(decisions, shift=Decision(asdict(first_images.shift)))
            if run.steps.generic is not None and first_images.generic is None:
                _note_cut(run, report)
            decisions = replace(decisions, presence=Decision(run.steps.calibration_digest))
            if run.config.regions.exponent == AUTO and first_images.exponent is not None:
                report.note(exponent_in_words(first_images.exponent))
                run = replace(run, steps=run.steps.with_exponent(first_images.exponent))
                decisions = replace(decisions, exponent=first_images.exponent)
        return run, decisions


@dataclass(frozen=True, slots=True)
class OtherSource(RunSource):
    """A source that makes regions itself.

    Attributes:
        stage_type: The stage in the place of `explain`.
    """

    stage_type: type[RegionSource[Any]]

    def resolve(
        self, config: RunConfig, reader: Reader, pieces: Sequence[Piece], show_step: ShowStep
    ) -> tuple[RunConfig, AnySteps]:
        """See `RunSource.resolve`."""
        if self.stage_type.needs_model:
            precision = precision_if_known(config.engine, config.model)
            config = config.in_precision("fp32" if precision == AUTO else precision)
        steps = build_source_steps(config)
        most = config.source.pool_to_parse
        if most is not None:
            # Behind all that may be wrong: an input of millions of captions takes hours.
            config = config.with_pool(parse_pool(config, reader, pieces, most, show_step))
            steps = steps.with_source(config.source)
        output = config.output.model_copy(update={"heat_maps": False})
        return config.model_copy(update={"output": output}), steps

    def score_meaning(self, run: Run) -> ScoreMeaning:
        """See `RunSource.score_meaning`."""
        reason = None if run.steps.is_calibrated else f"A score is {self.stage_type.score_means}"
        return ScoreMeaning(calibration=run.steps.calibration, reason=reason)

    def first_look(self, run: Run, place: AnyPath | None) -> FirstLook:
        """See `RunSource.first_look`."""
        return partial(estimate_share, reader=run.reader, pieces=run.input_pieces, place=place)


def source_of(config: RegionSourceConfig) -> RunSource:
    """Return the source of a value of the section `source`."""
    return CutHeatMaps() if config.makes_heat_maps else OtherSource(SOURCES[config.kind])


def _has_open_precision(run: Run) -> bool:
    """Whether only the workers know the device of the model, and so its precision."""
    return run.config.engine.kind == "ray" and run.config.model.precision == AUTO


def _needs_presence(run: Run) -> bool:
    """Whether presence is to be fitted: no calibration fits, and the settings leave that open."""
    is_open = run.config.regions.calibration == "auto" or run.steps.generic is not None
    return is_open and run.steps.calibration is None


def _with_shift(run: Run, shift: DomainShift | None, report: Report) -> Run:
    """Return the run with a difference of its images; one that makes the calibration meaningless drops it.

    The report gets what this means for the scores, and where maps are cut if no calibration says
    that.
    """
    steps = apply_domain_shift(run.steps, shift, run.config.regions.calibration)
    if shift is not None:
        report.note(shift.what)
    if steps.calibration is not None and steps.is_calibrated:
        fault = precision_fault(steps.calibration, run.config.model.precision)
        if fault is not None:
            report.note(fault)
    run = replace(run, shift=shift, steps=steps)
    if steps.generic is None:
        _note_cut(run, report)
    return run


def _note_cut(run: Run, report: Report) -> None:
    """Note where maps are cut if no calibration says that."""
    cut = run.steps.regions_stage.config
    if cut != run.config.regions:
        share = f"{cut.threshold} of their highest heat (regions.rule={cut.rule})"
        report.note(f"Maps are cut at {share}: no calibration says where to cut them")


def _with_presence(run: Run, calibration: Calibration) -> Run:
    """Return the run with a calibration that was fitted to its images, or brought to them."""
    return replace(run, steps=run.steps.with_calibration(calibration))
