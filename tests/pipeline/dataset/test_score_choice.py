"""A choice of regions becomes a least score and a condition, against plain Python over the rows."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from phrasebox.pipeline.dataset.folder import Dataset, open_any_dataset, open_dataset
from phrasebox.pipeline.dataset.score_choice import RegionChoice
from phrasebox.stages.contract.errors import ConfigError
from tests.build.datasets import Json, copy_of
from tests.messages import expect_error
from tests.pipeline.dataset.plain import CONDITIONS, marks_of, regions_of


@pytest.fixture(scope="module")
def ranked(synthetic_dataset: Path) -> Dataset:
    """A dataset whose scores only rank."""
    return open_dataset(synthetic_dataset)


@pytest.fixture(scope="module")
def calibrated(ranked: Dataset) -> Dataset:
    """The same as if a calibration had made its scores."""
    return replace(ranked, manifest={**ranked.manifest, "calibration": "0" * 64})


def best_of(regions: list[Json], precision: float) -> list[Json]:
    """The most regions with the highest scores whose mean is at least a precision; equal scores stay together."""
    scores = np.array([region["score"] for region in regions])
    least = next(score for score in np.unique(scores) if scores[scores >= score].mean() >= precision)
    return [region for region in regions if region["score"] >= least]


@pytest.mark.parametrize("where", ["", "caption ILIKE '% beside %' -- side by side"])
@pytest.mark.parametrize("max_area", [1.0, 0.02])
def test_a_precision_is_that_of_the_regions_that_fulfil_the_rest(
    where: str, max_area: float, calibrated: Dataset, rows: list[Json]
) -> None:
    regions = [
        region
        for row in rows
        for region in regions_of(row, marks_of(rows))
        if (not where or CONDITIONS[where](region)) and region["box_share"] <= max_area
    ]
    chosen = best_of(regions, 0.7)
    assert 0 < len(chosen) < len(regions)
    selection = calibrated.selection(RegionChoice(precision=0.7, max_area=max_area, where=where))
    assert selection.threshold is not None
    assert (selection.threshold.regions, selection.threshold.total) == (len(chosen), len(regions))
    table = calibrated.regions(where, ["id"], precision=0.7, max_area=max_area)
    assert sorted(table["id"].to_pylist()) == sorted(region["id"] for region in chosen)


def test_what_cannot_be_chosen(ranked: Dataset, calibrated: Dataset, tmp_path: Path) -> None:
    with expect_error(ConfigError, key="precision"):
        ranked.regions(precision=0.7)
    with expect_error(ConfigError, key="precision"):
        calibrated.regions(precision=1.0)
    with expect_error(ConfigError, key="precision"):
        calibrated.regions("head = 'dog'", precision=1.0)
    unfinished = copy_of(Path(str(ranked.path)), tmp_path)
    (unfinished / "dataset.json").unlink()
    with expect_error(ConfigError, key="precision"):
        open_any_dataset(unfinished).regions(precision=0.7)


@pytest.mark.parametrize(
    "values",
    [
        {"precision": 1.1},
        {"keep": -0.5},
        {"max_area": 60.0},
        {"min_score": float("nan")},
        {"precision": 0.7, "keep": 0.3},
        {"min_score": 0.5, "precision": 0.7},
        {"min_score": 0.5, "keep": 0.3},
    ],
    ids=str,
)
def test_a_choice_that_is_none(values: Json) -> None:
    with expect_error(ConfigError, key=tuple(values)):
        RegionChoice(**values)


def test_a_condition_stays_within_its_brackets(ranked: Dataset) -> None:
    with expect_error(ConfigError, key="where"):
        ranked.regions("true) OR (true", max_area=0.5)
