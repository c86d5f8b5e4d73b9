"""Regions for review: every beginning is a sample of the whole dataset."""

from pathlib import Path

import numpy as np
import pytest

from phrasebox.pipeline.dataset.folder import open_dataset
from phrasebox.pipeline.evaluate.reviews import (
    Population,
    kind_of,
    population_of,
    sample_for_review,
)
from tests.build.datasets import Json


def population(count: int) -> Population:
    rng = np.random.default_rng(3)
    return Population(
        rows=np.arange(count), ids=rng.integers(1, 2**53, count), scores=rng.random(count) ** 2
    )


def test_every_beginning_is_a_sample_of_the_dataset() -> None:
    regions = population(3000)
    samples = np.array([regions.draw(400, seed) for seed in range(100)])
    assert len(set(samples[0].tolist())) == 400
    assert (regions.draw(50, 0) == samples[0, :50]).all()
    assert regions.scores[samples[:, :50]].mean() == pytest.approx(regions.scores.mean(), abs=0.015)
    assert not np.isin(samples[0], samples[1]).all()
    for count in (0, 1, 40):
        assert sorted(population(count).draw(200, 0).tolist()) == list(range(count))


def test_regions_are_those_of_the_dataset(synthetic_dataset: Path) -> None:
    dataset = open_dataset(synthetic_dataset)
    regions = population_of(dataset)
    rows = list(dataset.rows())
    first: dict[tuple[object, ...], tuple[int, Json]] = {}  # captions repeat phrases
    for number, row in enumerate(rows):
        for annotation in row["annotations"]:
            first.setdefault((number, annotation["phrase"], *annotation["bbox"]), (number, annotation))
    assert len(first) < sum(len(row["annotations"]) for row in rows)
    assert regions.ids.tolist() == [annotation["id"] for _, annotation in first.values()]
    assert regions.rows.tolist() == [number for number, _ in first.values()]
    assert regions.scores == pytest.approx([annotation["score"] for _, annotation in first.values()])
    for number, region in sample_for_review(regions, 20, seed=4):
        assert region in {annotation["id"] for annotation in rows[number]["annotations"]}


def test_kinds() -> None:
    assert [kind_of(head) for head in ("girl", "dogs", "zyzzyva")] == ["people", "animals", "other"]
