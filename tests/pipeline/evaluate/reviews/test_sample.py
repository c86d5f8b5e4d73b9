"""Regions for review: every beginning is a sample of the whole dataset."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.dataset.folder import open_dataset
from pipeline.evaluate.reviews.sample import Population, kind_of, population_of, sample_for_review
from tests.build.datasets import Json


def population(count: int) -> Population:
    rng = np.random.default_rng(3)
    return Population(
        rows=np.arange(count),
        ids=rng.integers(1, 2**53, count),
        scores=rng.random(count) ** 2,
        kinds=np.array(["people", "animals", "vehicles"])[rng.choice(3, count, p=[0.8, 0.19, 0.01])],
    )


def test_a_larger_sample_continues_a_smaller_one() -> None:
    regions = population(3000)
    places = regions.draw(400, 0)
    assert len(set(places.tolist())) == 400
    for count in (50, 100, 203):
        assert (regions.draw(count, 0) == places[:count]).all()
    assert not np.isin(places, regions.draw(400, 1)).all()


def test_samples_are_like_the_dataset() -> None:
    """Over 100 samples."""
    regions = population(3000)
    samples = [regions.draw(200, seed) for seed in range(100)]
    assert np.mean([regions.scores[places].mean() for places in samples]) == pytest.approx(
        regions.scores.mean(), abs=0.01
    )
    rare = regions.kinds == "vehicles"
    assert np.mean([rare[places].mean() for places in samples]) == pytest.approx(rare.mean(), abs=0.003)


@pytest.mark.parametrize("count", [0, 1, 3, 40])
def test_of_few_regions_all_are_drawn(count: int) -> None:
    assert sorted(population(count).draw(200, 0).tolist()) == list(range(count))


def test_regions_are_those_of_the_dataset(synthetic_dataset: Path) -> None:
    dataset = open_dataset(synthetic_dataset)
    regions = population_of(dataset)
    rows = list(dataset.rows())
    annotations = [
        (number, annotation) for number, row in enumerate(rows) for annotation in row["annotations"]
    ]
    first: dict[tuple[object, ...], tuple[int, Json]] = {}  # captions repeat phrases
    for number, annotation in annotations:
        first.setdefault((number, annotation["phrase"], *annotation["bbox"]), (number, annotation))
    distinct = list(first.values())
    assert len(distinct) < len(annotations)
    assert regions.ids.tolist() == [annotation["id"] for _, annotation in distinct]
    assert regions.rows.tolist() == [number for number, _ in distinct]
    assert regions.scores == pytest.approx([annotation["score"] for _, annotation in distinct])
    assert regions.kinds.tolist() == [kind_of(annotation["head"]) for _, annotation in distinct]
    regions_of_rows = [distinct[regions.places[annotation["id"]]] for _, annotation in annotations]
    assert [(row, one["phrase"], one["bbox"]) for row, one in regions_of_rows] == [
        (row, one["phrase"], one["bbox"]) for row, one in annotations
    ]
    for number, region in sample_for_review(dataset, 20, seed=4):
        assert region in {annotation["id"] for annotation in rows[number]["annotations"]}


def test_kinds() -> None:
    assert [kind_of(head) for head in ("girl", "dogs", "zyzzyva")] == ["people", "animals", "other"]
