"""Verdicts of `eval` and `calibrate`: one sentence of advice each, printed last.

Advice to change something needs a difference with a 95 % interval that excludes 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from phrasebox.pipeline.evaluate.estimates import Estimate, ScoreFilter

USE: Final = "Verdict: use"  # how verdicts begin that advise to use what was made

GOAL: Final = 0.5
"""Share of right regions that `eval` looks for; the lower end of the interval has to reach it."""

FEWEST: Final = 30  # regions above a score; fewer may all be right by chance


def interval(low: float, high: float) -> str:
    """Return an interval in words."""
    return f"95 % interval {low:.3f} to {high:.3f}"


def _error_change(gain: Estimate) -> str:
    error = "the mean squared error of the scores"
    if gain.value >= 0:
        return f"{error} falls by {gain.value:.3f} ({interval(gain.low, gain.high)})"
    return f"{error} rises by {-gain.value:.3f} ({interval(-gain.high, -gain.low)})"


def calibration_verdict(gain: Estimate) -> str:
    """Return whether to use the first calibration of a dataset, by the gain of `CalibrationFigures`."""
    error = f"{_error_change(gain)} compared with the same score for every region"
    if gain.low > 0:
        return f"{USE} it. It tells right regions from wrong ones: {error}."
    return (
        "Verdict: do not use it, it needs more images. "
        f"It is not shown to tell right regions from wrong ones: {error}."
    )


def box_verdict(gain: Estimate, before: str = "the boxes of the cut") -> str:
    """Return whether learned boxes are used, by their gain in box recall over the boxes `before`."""
    result = (
        "learned boxes are used"
        if gain.low > 0
        else f"{before} stay: learned ones are not shown to be better"
    )
    return f"boxes: {result}: box recall {gain.value:+.3f} ({interval(gain.low, gain.high)}) on images not fitted to"


def replacement_verdict(
    gain: Estimate, present: str, alternative: str = "", *, has_better_boxes: bool = False
) -> str:
    """Return whether to use a calibration instead of what the dataset has, by the gain of its figures.

    Args:
        gain: Fall of the mean squared error of the scores.
        present: What the dataset has, in words.
        alternative: What may help if the gain does not decide, in words.
        has_better_boxes: Whether the calibration brings boxes that are shown to be better.
    """
    if gain.low > 0:
        return f"{USE} it: {_error_change(gain)}."
    if has_better_boxes and gain.high >= 0:
        return f"{USE} it for its boxes. Its scores are not shown to be better: {_error_change(gain)}."
    result = "worse" if gain.high < 0 else "not shown to be better"
    advice = f"keep the dataset's {present}{alternative if gain.high >= 0 else ''}"
    return f"Verdict: {advice}. The new calibration is {result}: {_error_change(gain)}."


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
