"""What the scores of a run mean: probabilities, or ranks and why; and what may be wrong with them.

`dataset.json` has the answer under `calibration` and `scores` (`phrasebox.pipeline.output.manifest`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from phrasebox.pipeline.run.domain_shift import DomainShift
from phrasebox.stages.scores.score import Calibration
from phrasebox.stages.write import ScoreOrigin, Tally

NO_CALIBRATION: Final = (
    "No calibration fits this model with these settings; phrasebox calibrate fits one, and regions.calibration=generic "
    "takes one of other models"
)
NO_PRESENCE: Final = "The calibration of other models needs presence, which is not known"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreMeaning:
    """The meaning of the scores of a run.

    Attributes:
        calibration: The calibration of scores, or of presence alone; None without one.
        reason: Why scores only rank, and are no probabilities; None if they are.
        caveat: Why the calibration in use may be wrong here.
    """

    calibration: Calibration | None = None
    reason: str | None = None
    caveat: str | None = None

    @classmethod
    def of_heat_maps(
        cls, calibration: Calibration | None, shift: DomainShift | None, choice: Path | str, precision: str
    ) -> ScoreMeaning:
        """Judge scores of regions that are cut from heat maps.

        Args:
            calibration: The calibration in use.
            shift: How the images differ from those of the fit.
            choice: `regions.calibration`.
            precision: The precision of the maps.
        """
        if calibration is not None and calibration.of_regions:
            faults = (None if shift is None else shift.what, precision_fault(calibration, precision))
            return cls(
                calibration=calibration, caveat=". ".join(fault for fault in faults if fault) or None
            )
        reason = NO_CALIBRATION
        if shift is not None and shift.in_regions:
            reason = shift.what
        elif calibration is None and choice not in ("auto", "none"):
            reason = NO_PRESENCE
        elif calibration is not None and choice != "auto":
            reason = f"{choice} knows presence alone"
        return cls(calibration=calibration, reason=reason)

    @property
    def scores(self) -> ScoreOrigin:
        """Return what `dataset.json` says of the scores."""
        calibration = self.calibration
        fitted_to = None if calibration is None else calibration.fitted_to
        is_calibrated = self.reason is None
        origin = ScoreOrigin(
            fitted_to=fitted_to if is_calibrated else None,
            doubt=self.caveat,
            presence=None if is_calibrated else fitted_to,
        )
        if calibration is not None and is_calibrated and calibration.margin is not None:
            origin["estimated_margin"] = calibration.margin
        return origin

    def in_words(self, total: Tally, model: str | None) -> str:
        """Return the same in sentences for people; `total` counts the dataset, and `model` is `model.name`."""
        margin = None if self.calibration is None or self.reason is not None else self.calibration.margin
        if margin is not None:
            doubt = "" if self.caveat is None else f" {self.caveat}."
            return (
                "Scores are estimated: the calibration was fitted to the maps of other models, and on models that it "
                f"had not seen scores were up to {margin:g} too high.{doubt} "
                f"With that margin {total.advised_in_words}. A review or phrasebox eval measures it."
            )
        if self.caveat is not None:
            return (
                f"Scores are calibrated, but may be too high or too low here. {self.caveat}. A review or phrasebox "
                "eval measures it."
            )
        if self.reason is None:
            return f"Scores are calibrated: on images like those of the fit, {total.advised_in_words}."
        parts = [
            "Scores are not calibrated: use them for ranking, not as probabilities.",
            f"{self.reason}.",
        ]
        if self.calibration is not None:
            parts.append(
                f"Presence, by which they are multiplied, was fitted to {self.calibration.fitted_to}."
            )
        if model == "demo":
            parts.append("demo knows synthetic scenes only: photographs need another --model.")
        return " ".join(parts)


def precision_fault(calibration: Calibration, precision: str) -> str | None:
    """Return that a calibration was not shown to hold in the precision of a run's maps; None if it was."""
    if precision in calibration.precisions:
        return None
    return f"The calibration was fitted to maps in {calibration.precisions[0]}, and model.precision is {precision}"
