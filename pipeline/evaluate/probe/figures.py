"""Answers -> figures with 95 % bootstrap intervals over images, and paired differences of two models."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluate.probe.answers import Answers
from pipeline.evaluate.report import RESAMPLES, Estimate, mean_estimates, weighted_estimate

Floats = NDArray[np.float64]


def figures_of(answers: Answers, min_boxes: int = 1) -> dict[str, Any]:
    """The mean of every kind of value, as plain values: {value, low, high, n} each, and `n`, the questions.

    For regions also `mean_per_class`, the mean over classes of their top-1; its n counts classes.

    Args:
        answers: At least one.
        min_boxes: Classes with fewer regions are left out of the mean over classes.
    """
    images = np.array(answers.images, np.int64)
    values = {name: np.array(numbers, np.float64) for name, numbers in answers.values.items()}
    found = dict(zip(values, mean_estimates(list(values.values()), images), strict=True))
    if answers.classes:
        found["mean_per_class"] = _over_classes(answers, images, values["top1"], min_boxes)
    return {**{name: plain(estimate) for name, estimate in found.items()}, "n": len(images)}


def differences_of(answers: Answers, theirs: Answers, min_boxes: int = 1) -> dict[str, Any]:
    """The figures less those of another model, paired: both must have answered the same questions in the same order.

    Raises:
        ValueError: They did not.
    """
    if (answers.images, answers.classes) != (theirs.images, theirs.classes) or set(answers.values) != set(
        theirs.values
    ):
        raise ValueError("expected answers to the same questions")
    less = {
        name: (np.array(own, np.float64) - np.array(theirs.values[name], np.float64)).tolist()
        for name, own in answers.values.items()
        if name != "chance_1"
    }
    return figures_of(Answers(images=answers.images, values=less, classes=answers.classes), min_boxes)


def by_class(answers: Answers) -> dict[str, tuple[int, float]]:
    """Class -> number of regions and the share that is named right, in the order of the names."""
    totals: dict[str, list[float]] = {}
    for name, hit in zip(answers.classes, answers.values.get("top1", ()), strict=True):
        totals.setdefault(name, []).append(hit)
    return {name: (len(totals[name]), float(np.mean(totals[name]))) for name in sorted(totals)}


def _over_classes(answers: Answers, images: NDArray[np.int64], hits: Floats, min_boxes: int) -> Estimate:
    names, owner, counts = np.unique(answers.classes, return_inverse=True, return_counts=True)
    kept = counts >= min_boxes
    if not kept.any():
        return Estimate(value=math.nan, low=math.nan, high=math.nan, n=0)

    def mean(weights: Floats) -> float:
        # A resample may lack a class: the mean is then over the others.
        boxes = np.bincount(owner, weights, len(names))
        right = np.bincount(owner, weights * hits, len(names))
        there = kept & (boxes > 0)
        return float((right[there] / boxes[there]).mean()) if there.any() else math.nan

    estimate = weighted_estimate(mean, images, RESAMPLES)
    return Estimate(value=estimate.value, low=estimate.low, high=estimate.high, n=int(kept.sum()))


def plain(estimate: Estimate) -> dict[str, Any]:
    """An estimate as plain values, NaN as None."""
    return {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in asdict(estimate).items()
    }


def stored(answers: Answers) -> dict[str, Any]:
    """Answers as plain values with six digits, for a file."""
    values = {name: [round(value, 6) for value in numbers] for name, numbers in answers.values.items()}
    return {"images": answers.images, "values": values, "classes": answers.classes}


def restored(values: Mapping[str, Any]) -> Answers:
    """The reverse of `stored`. Raises TypeError, ValueError, AttributeError or KeyError for anything else."""
    answers = Answers(
        images=[int(image) for image in values["images"]],
        values={str(name): [float(value) for value in numbers] for name, numbers in values["values"].items()},
        classes=[str(name) for name in values["classes"]],
    )
    if any(len(numbers) != len(answers.images) for numbers in answers.values.values()):
        raise ValueError("expected as many values as images")
    return answers
