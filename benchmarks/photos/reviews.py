"""How many answers make scores probabilities: `phrasebox calibrate --reviews` with human boxes as the reviewer.

A region is right if its box has IoU 0.5 with a true one, and "not there" if its phrase stands in a caption of another
image (`exchanged`) and names nothing that the image's own captions name. Regions whose truth is not known are left out.
Answers are drawn as the review draws them; the scores are judged on all other regions.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from scipy.special import logit

from benchmarks.photos.measure import Photographs
from benchmarks.photos.moved import moved
from phrasebox.pipeline.calibrate.review_fit import fit_answers
from phrasebox.pipeline.dataset.rows import Row
from phrasebox.pipeline.evaluate.estimates import BINS
from phrasebox.pipeline.evaluate.evaluation_set import EvaluationSet, open_evaluation_set
from phrasebox.pipeline.evaluate.foreign_phrases import model_steps
from phrasebox.pipeline.evaluate.metrics import is_right
from phrasebox.pipeline.evaluate.reviews import Population, share_estimate
from phrasebox.stages.contract.records import Record, stable_id
from phrasebox.stages.contract.values import Floats
from phrasebox.stages.phrases.nouns import noun_lists, relation
from phrasebox.stages.regions.stage import RegionsStage
from phrasebox.stages.scores.score import Calibration

COUNTS: Final = (50, 100, 200, 400)
DRAWS: Final = 100
SHOWN: Final = 200  # answers of the table about what they say by themselves

UNANNOTATED: Final = (
    "regions.rule=fixed",
    "regions.threshold=0.2",
)  # no calibration fits: presence is from captions
UNCALIBRATED: Final = "not calibrated"
CAPTIONED: Final = "presence from captions"
SHIPPED: Final = "bundled calibration"

MIN_SCORE: Final = 0.5  # "as claimed" is about regions with at least this score

COLUMNS: Final = ("answers", "calibration error", "not as claimed")
OFF: Final = (
    "",
    "share of right regions",
    "share of right ones with a score of 0.5 or more",
    ["intervals that hold", "{:.0f} %"],
)

console = Console()


@dataclass(frozen=True, kw_only=True)
class Known:
    """All regions whose truth is known, (n,), and the calibration that made their scores."""

    population: Population
    features: Floats
    odds: Floats  # log odds of presence (n, 1); NaN where it is not known
    said: NDArray[np.str_]
    calibration: Calibration | None


def known_regions(judged: EvaluationSet, own: Mapping[str, list[str]] | None = None) -> Known:
    """Cut all regions from a dataset's maps again, with the settings of `judged`, and judge each once.

    own: Name -> own captions of each image, where some were exchanged.
    """
    cuts = model_steps(judged).regions_stage
    stage = RegionsStage(cuts.config, cuts.calibration)
    found: dict[tuple[Any, ...], tuple[int, float, list[float], float, str]] = {}  # captions repeat phrases
    for row, record in judged.rows_with_maps(judged.steps(pixels=stage.config.needs_pixels), console):
        if record.error is not None:
            continue
        said = _answers(judged, row, record, own)
        evidence = {
            (index, painted.box_xywh_px): each
            for index, regions in enumerate(stage.regions_of(record))
            for painted, each in regions
        }
        for region in stage.process([record])[0].regions:
            if region.phrase_index in said:
                boxes = said[region.phrase_index]
                answer = (
                    "absent"
                    if boxes is None
                    else "right"
                    if is_right(region.box_xywh_px, boxes)
                    else "wrong"
                )
                features = [*evidence[region.phrase_index, region.box_xywh_px].features.values()]
                presence = float("nan") if region.presence is None else region.presence
                phrase = record.phrases[region.phrase_index]
                judged_region = (row["id"], region.score, features, presence, answer)
                found.setdefault((row["id"], phrase.text, region.box_xywh_px), judged_region)
    images, scores, features, presences, answers = zip(*found.values(), strict=True)
    population = Population(
        rows=np.array(images, np.int64),
        ids=np.array([stable_id(f"{number}") for number in range(len(found))], np.int64),
        scores=np.array(scores),
    )
    odds = logit(np.clip(np.array(presences), 1e-6, 1 - 1e-6))[:, None]
    return Known(
        population=population,
        features=np.array(features),
        odds=odds,
        said=np.array(answers, np.str_),
        calibration=cuts.calibration,
    )


def _answers(
    judged: EvaluationSet, row: Row, record: Record, own: Mapping[str, list[str]] | None
) -> dict[int, list[Any] | None]:
    """Phrase -> its true boxes, of the phrases whose truth is known; None for those that are not there."""
    known: dict[int, list[Any] | None] = {}
    for query in judged.queries(row, record.phrases):
        if query.phrase_index is not None:
            boxes = [] if query.target is None else query.target.boxes_xywh_px
            known[query.phrase_index] = [*(known.get(query.phrase_index) or []), *boxes]
    if own is None:
        return known
    mine = set(own[row["file_name"]])
    named = {noun_lists().listed_form(target.phrase.split()[-1]) for target in judged.image_of(row).targets}
    named |= {phrase.head for phrase in record.phrases if row["captions"][phrase.caption_index] in mine}
    for index, phrase in enumerate(record.phrases):
        if row["captions"][phrase.caption_index] not in mine:
            known.pop(index, None)
            if all(relation(phrase.head, head) not in ("same", "equal", "above") for head in named):
                known[index] = None
    return known


def exchanged(captions: Path, out: Path, most: int) -> dict[str, list[str]]:
    """Write the first images with a third of their captions from other images; return the own captions by name."""
    rows = [json.loads(line) for line in captions.read_text(encoding="utf-8").splitlines()]
    rng = random.Random(0)
    mixed = []
    for row in rows[:most]:
        others = [
            rng.choice([one for one in rng.sample(rows, 2) if one is not row]) for _ in row["captions"]
        ]
        strange = [rng.choice(other["captions"]) for other in others]
        said = [
            one if rng.random() < 1 / 3 else text
            for text, one in zip(row["captions"], strange, strict=True)
        ]
        mixed.append(json.dumps({**row, "captions": said}) + "\n")
    out.write_text("".join(mixed), encoding="utf-8")
    return {row["image"]: row["captions"] for row in rows[:most]}


def calibration_error(scores: Floats, right: NDArray[np.bool_]) -> float:
    """The mean distance between score and hit rate over `BINS` bins of equal width; chance counts as error."""
    bins = np.minimum((scores * BINS).astype(np.int64), BINS - 1)
    return float(np.abs(np.bincount(bins, scores - right, BINS)).sum() / len(scores))


def judgement(scores: Floats, right: NDArray[np.bool_]) -> tuple[float, float]:
    """The calibration error, and how far the mean score of those from `MIN_SCORE` on is above their precision."""
    kept = scores >= MIN_SCORE
    gap = float(scores[kept].mean() - right[kept].mean()) if kept.any() else float("nan")
    return calibration_error(scores, right), gap


def simulated(known: Known, count: int, draw: int) -> dict[str, float]:
    """Fit to some answers and judge on all other regions; and judge what the answers alone say of the dataset."""
    population = known.population
    places = population.draw(count, draw)
    fit = fit_answers(known.features[places], known.odds[places], known.said[places], known.calibration)
    rest = np.setdiff1d(np.arange(len(known.said)), places)
    right = known.said == "right"
    error, gap = judgement(fit.scores(known.features[rest], known.odds[rest]), right[rest])
    kept = population.scores >= MIN_SCORE
    precision, likely = share_estimate(right[places]), share_estimate(right[places][kept[places]])
    return {
        "error": error,
        "gap": gap,
        "precision_off": precision.value - right.mean(),
        "likely_off": likely.value - right[kept].mean(),
        "covered": np.mean(
            [
                precision.low <= right.mean() <= precision.high,
                likely.low <= right[kept].mean() <= likely.high,
            ]
        ),
    }


def rows_of(name: str, known: Known) -> tuple[list[list[Any]], list[Any]]:
    """Rows for each number of answers, and one about what 200 of them say of the dataset.

    Means over draws, and the worst draw beside those of the fit.
    """
    right = known.said == "right"
    error, gap = judgement(known.population.scores, right)
    before = f"{name}: {len(right):,} regions, {(known.said == 'absent').mean():.3f} absent, error before {error:.3f}"
    label = f"{before}, mean score from {MIN_SCORE} on minus precision {gap:.3f}"
    rows: list[list[Any]] = []
    said: list[Any] = [name]
    for count in COUNTS:
        draws = [simulated(known, count, draw) for draw in range(DRAWS)]
        column = {key: np.array([draw[key] for draw in draws]) for key in draws[0]}
        cells = (_with_worst(column["error"]), _with_worst(np.abs(column["gap"])))
        rows.append([None if rows else label, str(count), *cells])
        if count == SHOWN:
            off = ("precision_off", "likely_off")
            said += [
                *(float(np.nanmean(np.abs(column[key]))) for key in off),
                100 * float(column["covered"].mean()),
            ]
    return rows, said


def _with_worst(values: Floats) -> dict[str, float]:
    return {"value": float(np.nanmean(values)), "worst": float(np.nanmax(values))}


def starts(
    datasets: Mapping[str, Path], truth: Path, own: Mapping[str, list[str]] | None = None
) -> tuple[list[list[Any]], list[list[Any]]]:
    """`rows_of` for the scores of datasets by their names. Those of `UNCALIBRATED` have no calibration."""
    rows, said = list[list[Any]](), list[list[Any]]()
    for name, dataset in datasets.items():
        judged = open_evaluation_set(dataset, truth, ["regions.calibration=none"] * (name == UNCALIBRATED))
        fitted, off = rows_of(name, known_regions(judged, own))
        rows += fitted
        said.append(off)
    return rows, said


def reviewed(own: Photographs, mixed: int = 80) -> list[dict[str, Any]]:
    """Tables for photographs, for the first `mixed` with captions of others among theirs, and for 200 scenes."""
    dev, drawn, settings = "flickr8k/dev", "scenes/77/200", Path("configs/photos.yaml")
    strange = own.out / "exchanged.jsonl"
    made = own.dataset(dev, "photo", "photos", file=settings)
    captions = exchanged(own.captions(dev), strange, mixed)
    alone = own.dataset(dev, "photo", "captions", *UNANNOTATED, file=settings)
    foreign = {
        CAPTIONED: own.dataset(
            dev, "photo", "exchanged-captions", f"input.path={strange}", *UNANNOTATED, file=settings
        ),
        SHIPPED: own.dataset(dev, "photo", "exchanged", f"input.path={strange}", file=settings),
    }
    scenes = own.dataset(drawn, "demo", "demo", file=Path("configs/demo.yaml"))
    photographs, said = starts({UNCALIBRATED: made, CAPTIONED: alone, SHIPPED: made}, own.truth(dev))
    known = {"split": "Flickr8k dev", "model": "photo", "settings": str(settings)}
    every = f"1,000 photographs, {DRAWS} draws"
    exchange = known | {"split": "Flickr8k dev, a third of the captions exchanged"}
    drawings = {"split": "synthetic scenes, series 77", "model": "demo", "settings": "configs/demo.yaml"}
    return [
        {
            "name": "photographs",
            "rows": photographs,
            "columns": ["1,000 photographs (dev)", *COLUMNS],
            "n": every,
            **known,
        },
        {
            "name": "scenes",
            "rows": starts({UNCALIBRATED: scenes, SHIPPED: scenes}, own.truth(drawn))[0],
            "columns": ["200 synthetic scenes", *COLUMNS],
            "n": f"200 scenes, {DRAWS} draws",
            **drawings,
        },
        {
            "name": "exchanged",
            "rows": starts(foreign, own.truth(dev), captions)[0],
            "columns": [f"{mixed} photographs (dev), a third of the captions from other images", *COLUMNS],
            "n": f"{mixed} photographs, {DRAWS} draws",
            **exchange,
        },
        {"name": "answers", "rows": said, "columns": OFF, "n": f"{every} of {SHOWN} answers", **known},
        moved(own),
    ]
