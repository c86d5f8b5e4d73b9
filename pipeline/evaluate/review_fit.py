"""`phrasebox calibrate --reviews`: scores fitted to what people say of some 200 regions of a dataset.

So few answers only correct what is known before: the calibration of the dataset's scores, or nothing where they only
rank. The fit is the most likely one a posteriori; a standardised weight has a normal prior around the known one.

right      the regression on a region's evidence, fitted to "right" and "wrong"
presence   its log odds, constant + slope * log odds with slope >= 0, fitted to "there" (right or wrong) and "not there"

Where presence is not known, "not there" counts as wrong. Where maps are cut stays as it is: an answer is about the one
cut that was shown, and a wrong box does not say whether another cut of its map would be right.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from scipy.special import logit

from pipeline.dataset.folder import open_dataset
from pipeline.evaluate.estimates import FOLDS, squared_error_gain
from pipeline.evaluate.judged import JudgedDataset, from_input, phrases_of
from pipeline.evaluate.presence import model_graph, store
from pipeline.evaluate.review_truth import reviewed_dataset
from pipeline.evaluate.reviewed import Reviewed, calibration_of, latest, reviewed_regions, share_of
from pipeline.evaluate.verdicts import review_verdict
from pipeline.graph import Graph, calibration_basis
from pipeline.logistic import Floats, LogisticFit, mean_and_scale, most_likely
from pipeline.paths import check_writable
from pipeline.presence_alone import signals_of
from stages.contract.errors import ConfigError, InputError
from stages.contract.records import Record
from stages.explain.presence import ImageStatistics
from stages.regions.score import FEATURES, Calibration, Evidence
from stages.regions.stage import RegionsStage

FEWEST: Final = 50  # answers

CERTAINTY: Final = 40.0
"""Precision of the prior of a standardised weight. With 200 answers about the 500 photographs that settings are chosen
on, precision from 0.5 on is closest to its claim with 30 to 80. Scenes show no difference from 10 to 80."""

ALIKE: Final = 0.7
"""Weight of the standardised similarity before any answer where no weight is known; that of the shipped calibrations is
0.3 to 0.5. On the same photographs 0.5 and 1 are worse, and with 0 too few regions get a score of 0.5."""

VAGUE: Final = 0.01  # the same of the constant, and

THERE: Final = 0.3  # of that of presence, which must not become certain where nobody says "not there"

_CERTAIN: Final = 1e-6  # presences are rounded to six decimals, and the log odds of 0 and 1 have no bounds

LEAST: Final = 0.5  # the score from which on regions are compared with what their scores claim


class ReviewFit(NamedTuple):
    """The probability of being right from the evidence, and of being there from the log odds of presence, if known."""

    right: LogisticFit
    there: LogisticFit | None

    def scores(self, features: Floats, odds: Floats) -> Floats:
        """Features (m, k), log odds of presence (m, 1) -> scores (m,)."""
        right = self.right.probability(features)
        return right if self.there is None else right * self.there.probability(odds)


def fit_answers(features: Floats, odds: Floats, said: NDArray[np.str_], known: Calibration | None) -> ReviewFit:
    """Fit to answers (m,); `known` made the dataset's scores. Raise ValueError if all or none is right."""
    there, right = said != "absent", said == "right"
    has_presence = known is not None and known.presence is not None
    used = there if has_presence else np.ones_like(there)
    if right[used].all() or not right.any():
        raise ValueError("expected regions that are right and others that are wrong")
    mean, scale = mean_and_scale(features[used])
    prior = np.array([0.0, *(ALIKE if name == "similarity" else 0.0 for name in FEATURES)])
    if known is not None and known.weight:
        slopes = np.array([known.weight.get(name, 0.0) / known.scale.get(name, 1.0) for name in FEATURES])
        prior[0] = known.bias + slopes @ (mean - [known.mean.get(name, 0.0) for name in FEATURES])
        prior[1:] = slopes * scale
    x = np.column_stack([np.ones(used.sum()), (features[used] - mean) / scale])
    weights = most_likely(x, right[used], prior, np.array([VAGUE, *[CERTAINTY] * len(mean)]))
    fit = LogisticFit(bias=float(weights[0]), weight=weights[1:], mean=mean, scale=scale)
    if not has_presence:
        return ReviewFit(fit, None)
    x = np.column_stack([np.ones(len(odds)), odds])
    prior, precision = np.array([0.0, 1.0]), np.array([THERE, CERTAINTY])
    found = most_likely(x, there, prior, precision)
    if found[1] < 0.0:  # presence must not fall with its odds
        found = np.array([*most_likely(x[:, :1], there, prior[:1], precision[:1]), 0.0])
    return ReviewFit(fit, LogisticFit(bias=float(found[0]), weight=found[1:], mean=np.zeros(1), scale=np.ones(1)))


def write_reviewed_calibration(path: Path, out: Path, console: Console, settings: Sequence[str] = ()) -> dict[str, Any]:
    """Fit a calibration to the answers beside a dataset, write it to `out`, and return how good it is.

    Heat maps of the reviewed images come from the shards, or are computed again. `before` and `after` have
    `calibration_of` the scores, and, for those of at least `LEAST`, their mean (`claimed`) and their `precision`;
    `after` is of five folds, each by a fit that has not seen its images. `gain` compares the two, and `replaces` says
    whether the dataset has a calibration; see `review_verdict` for `verdict`.

    Raise InputError for fewer than `FEWEST` answers, for only right or only wrong ones, and for a dataset that cannot
    be read or is now cut otherwise; ConfigError if a setting cannot be used, if the calibration of the dataset's scores
    is not found, or if `out` cannot be written.
    """
    check_writable("--out", out)
    reviewed_regions(open_dataset(path))  # before a model is loaded it says what is wrong with the answers
    judged, _ = reviewed_dataset(path, settings)
    graph, dataset = model_graph(judged), judged.dataset
    config, known = graph.settings(judged.config()), graph.cuts.calibration  # which knows presence alone, or nothing
    since = "" if known is None else known.made_from.get("answered", "")  # it was fitted to the answers until then
    reviewed = reviewed_regions(dataset, since)
    if len(reviewed.said) < FEWEST:
        which = "new answers" if since else "answers"
        raise InputError(f"{len(reviewed.said)} {which} count: a calibration needs at least {FEWEST}")
    if dataset.manifest.get("calibration") not in (None, graph.calibration):
        raise ConfigError(
            f"{path}: its scores were made with another calibration than is found now; name that one with "
            "--set regions.calibration=FILE"
        )
    mapped = judged.mapped(judged.graph(pixels=config.regions.needs_pixels or config.regions.refine == "sam"), console)
    evidence = _evidence_of(reviewed, mapped, RegionsStage(config.regions, known))
    features = np.array([[measure(each) for measure in FEATURES.values()] for each in evidence])
    presences = reviewed.field("presence").astype(np.float64)  # NaN where it is not known
    odds = logit(np.clip(presences, _CERTAIN, 1 - _CERTAIN))[:, None]
    try:
        fit = fit_answers(features, odds, reviewed.said, known)
        unseen = _out_of_fold(features, odds, reviewed, known)
    except ValueError as error:
        raise InputError(f"{len(reviewed.said)} answers count: {error}, in each fifth of the images, too") from error
    presence = None if known is None else _corrected(known, fit.there, config.regions.absent_share)
    embeddings = [] if presence is None else _embeddings_of(judged, graph, console)
    if presence is not None:  # later runs are compared with these images, and not with those of the former fit
        presence = {**presence, "corrected_on": ImageStatistics.of(np.stack(embeddings)).plain()}
    calibration = Calibration(
        bias=fit.right.bias,
        **fit.right.by_name(list(FEATURES)),
        made_with=calibration_basis(config, graph.fingerprint),
        made_from={
            "reviews": len(reviewed.said),
            "dataset": dataset.path.name,
            "answers": reviewed.counts,
            "answered": latest(review for own in reviewed.reviews for review in own),
            "reviewers": reviewed.reviewers,
            "precisions": [config.model.precision],
            "images": len(embeddings),
        },
        presence=presence,
        cut=None if known is None else known.cut,
    )
    store(calibration, out)
    before = reviewed.field("score").astype(np.float64)
    right = reviewed.said == "right"
    figures = {
        "counts": reviewed.counts,
        "reviewers": reviewed.reviewers,
        "presence": fit.there is not None,
        "before": _worth(before, reviewed),
        "after": _worth(unseen, reviewed),
        "replaces": known is not None and known.of_regions,
        "gain": squared_error_gain(before, unseen, right, reviewed.field("image_id"), reviewed.weights).plain(),
    }
    return {**figures, "verdict": review_verdict(figures)}


def _evidence_of(
    reviewed: Reviewed, mapped: Iterable[tuple[Mapping[str, Any], Record]], stage: RegionsStage
) -> list[Evidence]:
    """The evidence of each reviewed region, cut from its heat map again."""
    found: dict[tuple[Any, ...], Evidence] = {
        (row["id"], phrase.text, tuple(np.array(painted.box_xywh_px, np.float32).tolist())): evidence
        for row, record in mapped
        if record.error is None
        for phrase, own in zip(record.phrases, stage.regions_of(record), strict=True)
        for painted, evidence in own
    }
    keys = [(each.annotation["image_id"], key.phrase, key.bbox) for key, each in reviewed.regions.items()]
    if missing := [key for key in keys if key not in found]:
        raise InputError(
            f"{len(missing)} of {len(keys)} reviewed regions, such as that of {missing[0][1]!r}, are cut otherwise "
            "with these settings, or their images cannot be read"
        )
    return [found[key] for key in keys]


def _out_of_fold(features: Floats, odds: Floats, reviewed: Reviewed, known: Calibration | None) -> Floats:
    """The score (m,) of each reviewed region by a fit to other images."""
    fold = np.unique(reviewed.field("image_id"), return_inverse=True)[1] % FOLDS
    scores = np.empty(len(fold))
    for own in (fold == number for number in np.unique(fold)):
        fit = fit_answers(features[~own], odds[~own], reviewed.said[~own], known)
        scores[own] = fit.scores(features[own], odds[own])
    return scores


def _embeddings_of(judged: JudgedDataset, graph: Graph, console: Console) -> list[NDArray[np.float32]]:
    """The unit embeddings of the reviewed images."""
    phrases = {row["sample_id"]: phrases_of(row["annotations"]) for row in judged.rows()}
    prepared = from_input(graph.reader, [graph.before[1]], phrases, console, phrases)
    return [signals.embedding for _, signals in signals_of(graph.explains, prepared)]


def _corrected(known: Calibration, there: LogisticFit | None, expected: float) -> Mapping[str, Any] | None:
    """Presence as corrected, for the share of absent phrases that the dataset's run expected."""
    if known.presence is None or there is None:
        return None
    slope = float(there.weight[0])
    shift = float(logit(known.absent_share) - logit(expected))  # `at_share` in log odds
    weight = {name: slope * each for name, each in known.presence["weight"].items()}
    bias = there.bias + slope * (known.presence["bias"] + shift)
    return {**known.presence, "bias": bias, "weight": weight, "absent_share": expected}


def _worth(scores: Floats, reviewed: Reviewed) -> dict[str, Any]:
    right, weights, kept = reviewed.said == "right", reviewed.weights, scores >= LEAST
    claimed = float(np.average(scores[kept], weights=weights[kept])) if kept.any() else None
    precision = share_of(right[kept], weights[kept]).plain()
    return {**calibration_of(scores, right, weights), "claimed": claimed, "precision": precision}
