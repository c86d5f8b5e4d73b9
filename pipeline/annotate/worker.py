"""An annotator in one process: its stages, set up, and what its scores stand on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from phrasebox.pipeline.annotate.config import AnnotatorConfig, TableInput
from phrasebox.pipeline.annotate.estimates import Estimates
from phrasebox.pipeline.annotate.rows import MemoryReader
from phrasebox.pipeline.annotate.tables import table_of
from phrasebox.pipeline.output.previous_run import Identity
from phrasebox.pipeline.output.report import Report
from phrasebox.pipeline.run.decisions import Run
from phrasebox.pipeline.run.generic import reject_generic
from phrasebox.pipeline.run.record_maker import RecordMaker
from phrasebox.pipeline.run.source import source_of
from phrasebox.pipeline.run.stage_calls import set_up
from phrasebox.pipeline.run.steps import HeatMapSteps, build_steps, fetch_weights
from phrasebox.stages.model.config import AUTO
from phrasebox.stages.scores.foreign_captions import USUAL_SHARE

Origin = Literal["calibration", "given", "fitted", "off"]
"""Where a number comes from that a run may estimate: a calibration, the settings, `Annotator.fit`, or nowhere."""

NO_ROWS: Final[dict[str, list[str]]] = {"image": [], "caption": []}
"""The input of a worker: its stages are set up before it gets a table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Basis:
    """What the rows of an annotator stand on.

    Attributes:
        origins: Where `presence`, `absent_share`, `exponent` and `shift` come from, see `Origin`.
        open_words: What a run would estimate and the annotator does not, in words.
        notes: The same and the meaning of scores, in sentences.
    """

    origins: dict[str, Origin]
    open_words: str
    notes: tuple[str, ...]


class Worker:
    """The stages of an annotator, set up in this process.

    Args:
        config: The settings.
        estimates: What was estimated before; None: nothing was.

    Raises:
        ConfigError: The model or a setting cannot be used, or the estimates belong to others.
        WeightsError: The model cannot be loaded.
        ResourceError: The device is not there.
    """

    def __init__(self, config: AnnotatorConfig, estimates: Estimates | None) -> None:
        steps = build_steps(config)
        if estimates is None:
            reject_generic(steps, "call `fit` with them")
        else:
            estimates.check_model(steps.fingerprint)
        fetch_weights(steps.description, lambda *_: None)
        self.run = run_of(config, steps, MemoryReader(table_of(NO_ROWS), TableInput()))
        share = None
        if estimates is not None:
            share = estimates.decisions.absent_share
            self.run = self.run.source.with_stored(
                self.run, estimates.decisions, estimates.calibration, Report()
            )
        self.maker = RecordMaker(self.run.steps, share)
        self.basis = basis_of(self.run, estimates)


def run_of(config: AnnotatorConfig, steps: HeatMapSteps, reader: MemoryReader) -> Run:
    """Return a run over the rows of a table, as one in one process would be resolved."""
    pieces = reader.pieces()
    decided = config.in_precision(steps.model_stage.config.model.precision)
    final = decided.model_copy(update={"explain": steps.explainer})
    identity = Identity(model_fingerprint=steps.fingerprint, config={})
    return Run(
        config=final,
        reader=reader,
        input_pieces=pieces,
        pieces=pieces,
        source=source_of(config.source),
        steps=steps,
        identity=identity,
    )


def fit_estimates(
    config: AnnotatorConfig, reader: MemoryReader, on_progress: Callable[[int, int], None]
) -> Estimates:
    """Estimate what a run over a table would from its first images. Raise as `Worker`, and as the stages."""
    from phrasebox.stages.model.device import float32_grads  # noqa: PLC0415  it loads torch

    steps = build_steps(config)
    fetch_weights(steps.description, lambda *_: None)
    run = run_of(config, steps, reader)
    report = Report()
    with float32_grads(), set_up(steps.first_stages):
        first_images = run.source.first_look(run, None)(steps, on_progress)
    run, decisions = run.with_first_images(first_images, report)
    presence = None if decisions.presence_digest is None else first_images.calibration
    return Estimates(
        model_fingerprint=steps.fingerprint,
        settings=json.loads(json.dumps(config.settings())),
        decisions=decisions,
        presence=None if presence is None else presence.to_json(),
        notes=tuple(report.notes),
    )


def basis_of(run: Run, estimates: Estimates | None) -> Basis:
    """Return what the rows of a run with these estimates stand on."""
    regions = run.config.regions
    calibration = run.steps.calibration
    decisions = None if estimates is None else estimates.decisions
    is_fitted = decisions is not None and decisions.presence_digest is not None
    has_presence = calibration is not None and calibration.presence is not None
    origins: dict[str, Origin] = dict.fromkeys(("presence", "absent_share", "exponent", "shift"), "off")
    if has_presence:
        origins["presence"] = "fitted" if is_fitted else "calibration"
    if regions.absent_share != AUTO:
        origins["absent_share"] = "given"
    elif decisions is not None and decisions.absent_share is not None:
        origins["absent_share"] = "fitted"
    if regions.exponent != AUTO:
        origins["exponent"] = "given"
    elif decisions is not None and decisions.exponent is not None:
        origins["exponent"] = "fitted"
    elif calibration is not None and calibration.of_regions:
        origins["exponent"] = "calibration"
    if decisions is not None and decisions.shift is not None:
        origins["shift"] = "fitted"
    open_parts = []
    if estimates is None and calibration is None and regions.calibration == "auto":
        open_parts.append("presence and the power of the heat")
    if has_presence and origins["absent_share"] == "off":
        open_parts.append(f"the share of absent phrases (taken: {USUAL_SHARE:g})")
    open_words = " and ".join(open_parts)
    return Basis(origins=origins, open_words=open_words, notes=tuple(_notes(run, estimates, open_words)))


def _notes(run: Run, estimates: Estimates | None, open_words: str) -> list[str]:
    meaning = run.meaning
    if meaning.reason is None and meaning.calibration is not None:
        lines = [f"Scores are probabilities, by a fit to {meaning.calibration.fitted_to}."]
    else:
        lines = [f"Scores only rank: {meaning.reason}."]
    if meaning.caveat is not None:
        lines.append(f"{meaning.caveat}.")
    if estimates is None and run.steps.is_calibrated:
        lines.append("No image was compared with those of the calibration (shift: off).")
    if open_words:
        lines.append(
            f"Not estimated: {open_words}. Annotator.fit does, and regions.absent_share gives the share."
        )
    return [*lines, *(() if estimates is None else estimates.notes)]
