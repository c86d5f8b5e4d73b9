"""Verdicts of `eval`, `tune` and `calibrate`: one sentence of advice each, printed last.

Advice to change something needs a difference with a 95 % interval that excludes 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from pipeline.terminal import duration

Figures = Mapping[str, Any]

GOAL: Final = 0.5
"""Share of right regions that `eval` looks for; the lower end of the interval has to reach it."""

FEWEST: Final = 30  # regions above a score; fewer may all be right by chance

MORE_ANSWERS: Final = 100  # answers to ask for if the given answers do not decide


def _percent(figure: Figures) -> str:
    return f"{figure['value']:.0%} (95 % interval {figure['low']:.0%} to {figure['high']:.0%})"


def _between(figure: Figures) -> str:
    return f"95 % interval {figure['low']:.3f} to {figure['high']:.3f}"


def _error_change(gain: Figures) -> str:
    error = "the mean squared error of the scores"
    if gain["value"] >= 0:
        return f"{error} falls by {gain['value']:.3f} ({_between(gain)})"
    return f"{error} rises by {-gain['value']:.3f} ({_between({'low': -gain['high'], 'high': -gain['low']})})"


def calibration_verdict(figures: Figures) -> str:
    """Return whether to use the calibration of `write_calibration`."""
    gain = figures["gain"]
    if figures["replaces"]:
        if gain["low"] > 0:
            return f"Verdict: use it instead of the dataset's calibration: {_error_change(gain)}."
        result = "is worse" if gain["high"] < 0 else "is not shown to be better"
        return f"Verdict: keep the dataset's calibration. The new one {result}: {_error_change(gain)}."
    error = f"{_error_change(gain)} compared with the same score for every region"
    if gain["low"] > 0:
        return f"Verdict: use it. It tells right regions from wrong ones: {error}."
    return (
        f"Verdict: do not use it, it needs more images. It is not shown to tell right regions from wrong ones: {error}."
    )


def review_verdict(figures: Figures) -> str:
    """Return whether to use the calibration of `write_reviewed_calibration`."""
    gain = figures["gain"]
    if gain["low"] > 0:
        return f"Verdict: use it: {_error_change(gain)}."
    present = "calibration" if figures["replaces"] else "scores, which only rank"
    if gain["high"] < 0:
        return f"Verdict: keep the dataset's {present}. The new calibration is worse: {_error_change(gain)}."
    return (
        f"Verdict: keep the dataset's {present}, or answer {MORE_ANSWERS} more. The new calibration is not shown to be "
        f"better: {_error_change(gain)}."
    )


def tuning_verdict(figures: Figures) -> str:
    """Return whether to use the settings of `tune_settings`."""
    by = figures["by"]
    steps = figures["steps"]
    left_out = figures["left_out"]
    gain = figures["gain"]
    if figures["best"]:
        return (
            f"Verdict: use the new settings: {by} rises by {gain['value']:.3f} ({_between(gain)}) on the images that "
            "they were chosen on. Measure them on others with phrasebox eval."
        )
    if not steps and left_out:
        minutes = math.ceil(figures["baseline_s"] / 6)
        most = max(1, figures["images"] // 2)
        return (
            f"Verdict: no try was begun: the two baselines took {duration(figures['baseline_s'])}; give "
            f"--minutes {minutes} or --most {most}."
        )
    if not steps:
        return "Verdict: keep the dataset's settings. No try suits the model and the ground truth."
    rest = f"; --minutes left out {left_out:,}" if left_out else ""
    return (
        f"Verdict: keep the dataset's settings. Tries that are shown to be better in {by}: 0 of {len(steps):,}{rest}."
    )


def evaluation_verdict(figures: Figures) -> str:
    """Return whether to use the regions of `report_figures`, and from which score on."""
    unfiltered, *filters = figures["thresholds"]
    lines = [unfiltered, *(line for line in filters if line["precision"]["n"] >= FEWEST)]
    if not unfiltered["precision"]["n"]:
        return "Verdict: there is no region to use."
    best = max(lines, key=lambda line: line["precision"]["low"])
    goal_line = next((line for line in lines if line["precision"]["low"] >= GOAL), None)
    line = goal_line or best
    suffix = f" with a score of {line['score']:g} or more ({line['kept']:.0%} of all)" if line["score"] else ""
    right = f"of the regions{suffix} {_percent(line['precision'])} are right"
    above = figures["metrics"].get("box_recall_above_text")
    text = (
        "" if above is None else f" than that of the usual place of a noun ({above['value']:+.3f}, {_between(above)})"
    )
    if above is not None and above["low"] <= 0:
        result = "lower" if above["high"] < 0 else "not shown to be higher"
        return f"Verdict: do not rely on the regions. Their box recall is {result}{text}; {right}."
    higher = f"; their box recall is higher{text}" if text else ""
    if goal_line is None:
        return (
            f"Verdict: look at the regions before you use them. No score is shown to leave half right: {right}{higher}."
        )
    least = f" with --min-score {line['score']:g}" if line["score"] else ""
    return f"Verdict: use the regions{least}: {right}{higher}."
