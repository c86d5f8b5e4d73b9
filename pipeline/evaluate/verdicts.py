"""Verdicts of `eval` and `calibrate`: one sentence of advice each, printed last.

Advice to change something needs a difference with a 95 % interval that excludes 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pipeline.evaluate.box_fit import BoxFigures
from pipeline.evaluate.estimates import Estimate, ScoreFilter

USE: Final = "Verdict: use"  # how verdicts begin that advise to use what was made

GOAL: Final = 0.5
"""Share of right regions that `eval` looks for; the lower end of the interval has to reach it."""

FEWEST: Final = 30  # regions above a score; fewer may all be right by chance

WORTH: Final = 0.005  # gain in box recall of twice the images that is worth the work

MORE_ANSWERS: Final = 100  # answers to ask for if the given answers do not decide


def interval(low: float, high: float) -> str:
    """Return an interval in words."""
    return f"95 % interval {low:.3f} to {high:.3f}"


def _error_change(gain: Estimate) -> str:
    error = "the mean squared error of the scores"
    if gain.value >= 0:
        return f"{error} falls by {gain.value:.3f} ({interval(gain.low, gain.high)})"
    return f"{error} rises by {-gain.value:.3f} ({interval(-gain.high, -gain.low)})"


def replacement_verdict(gain: Estimate) -> str:
    """Return whether to use a calibration instead of the dataset's, by the gain of `CalibrationFigures`."""
    if gain.low > 0:
        return f"{USE} it instead of the dataset's calibration: {_error_change(gain)}."
    result = "is worse" if gain.high < 0 else "is not shown to be better"
    return f"Verdict: keep the dataset's calibration. The new one {result}: {_error_change(gain)}."


def calibration_verdict(gain: Estimate) -> str:
    """Return whether to use the first calibration of a dataset, by the gain of `CalibrationFigures`."""
    error = f"{_error_change(gain)} compared with the same score for every region"
    if gain.low > 0:
        return f"{USE} it. It tells right regions from wrong ones: {error}."
    return (
        "Verdict: do not use it, it needs more images. "
        f"It is not shown to tell right regions from wrong ones: {error}."
    )


def box_verdict(figures: BoxFigures, before: str = "the boxes of the cut") -> list[str]:
    """Return whether learned boxes are used, and what more images would bring: two lines.

    before: The boxes that they are compared with.
    """
    gain = figures.gain
    result = (
        "learned boxes are used"
        if gain.low > 0
        else f"{before} stay: learned ones are not shown to be better"
    )
    change = f"box recall {gain.value:+.3f} ({interval(gain.low, gain.high)}) on images not fitted to"
    more = f"the second half of {figures.images} images brought {figures.last_half:+.3f}"
    if figures.last_half >= WORTH:
        advice = f"{figures.images} more may bring as much again"
    else:
        advice = "more images would bring little"
    return [f"boxes: {result}: {change}", f"boxes: {more}: {advice}"]


def review_verdict(gain: Estimate, present: str, *, has_better_boxes: bool = False) -> str:
    """Return whether to use the calibration of `write_reviewed_calibration`, by its `ReviewFitFigures`.

    present: What the dataset has instead, in words.
    """
    if gain.low > 0:
        return f"{USE} it: {_error_change(gain)}."
    if has_better_boxes and gain.high >= 0:
        return f"{USE} it for its boxes. Its scores are not shown to be better: {_error_change(gain)}."
    if gain.high < 0:
        return (
            f"Verdict: keep the dataset's {present}. The new calibration is worse: {_error_change(gain)}."
        )
    return (
        f"Verdict: keep the dataset's {present}, or answer {MORE_ANSWERS} more. The new calibration is not shown to be "
        f"better: {_error_change(gain)}."
    )


def evaluation_verdict(thresholds: Sequence[ScoreFilter], above_text: Estimate | None) -> str:
    """Return whether to use the regions, and from which score on.

    above_text: gain in box recall over text alone, if it is known.
    """
    unfiltered, *filters = thresholds
    if not unfiltered.precision.n:
        return "Verdict: there is no region to use."
    lines = [unfiltered, *(line for line in filters if line.precision.n >= FEWEST)]
    goal_line = next((line for line in lines if line.precision.low >= GOAL), None)
    line = goal_line or max(lines, key=lambda line: line.precision.low)
    precision = line.precision
    suffix = f" with a score of {line.score:g} or more ({line.share:.0%} of all)" if line.score else ""
    right = (
        f"of the regions{suffix} {precision.value:.0%} (95 % interval {precision.low:.0%} to {precision.high:.0%}) are "
        "right"
    )
    higher = ""
    if above_text is not None:
        text = (
            "than that of the usual place of a noun "
            f"({above_text.value:+.3f}, {interval(above_text.low, above_text.high)})"
        )
        if above_text.low <= 0:
            result = "lower" if above_text.high < 0 else "not shown to be higher"
            return f"Verdict: do not rely on the regions. Their box recall is {result} {text}; {right}."
        higher = f"; their box recall is higher {text}"
    if goal_line is None:
        return (
            "Verdict: look at the regions before you use them. "
            f"No score is shown to leave half right: {right}{higher}."
        )
    least = f" with --min-score {line.score:g}" if line.score else ""
    return f"Verdict: use the regions{least}: {right}{higher}."
