"""The figures against numpy over the rows."""

from collections import Counter
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

from phrasebox.pipeline.dataset.folder import open_dataset
from phrasebox.pipeline.dataset.index import SCORE_EDGES, Index
from phrasebox.pipeline.dataset.selection import SIZES, Search
from phrasebox.pipeline.dataset.statistics import (
    AREA_EDGES,
    BINS_PER_IMAGE,
    QUANTILES,
    _per_image,
    statistics,
)
from phrasebox.stages.contract.score_threshold import ScoreRanking
from tests.build.cases import cases
from tests.build.datasets import Json, change_rows, copy_of
from tests.pipeline.dataset.plain import find, marks_of, status_of


@cases(
    "search",
    {
        "all": Search(),
        "conditions on regions": Search(where="w > h", score_max=0.8),
        "conditions on samples": Search(regions_min=3, mark="none"),
        "both": Search(phrase="man", score_min=0.3, mark="any"),
        "failed": Search(status="failed"),
    },
)
def test_all_figures(search: Search, index: Index, rows: list[Json]) -> None:
    marks = marks_of(rows)
    hits = find(rows, marks, search)
    regions = [region for one in hits for region in one.regions]
    assert bool(regions) is (search.status != "failed")
    figures = statistics(index, search, most=7)
    sound = [one.row for one in hits if one.row["error"] is None]
    phrases = Counter(region["phrase"] for region in regions)
    reasons = Counter(one.row["error"] for one in hits if one.row["error"])
    expected = {
        "samples": {"all": len(hits), **Counter(status_of(one.row) for one in hits)},
        "regions": len(regions),
        "phrases": len(phrases),
        "heads": len({region["head"] for region in regions}),
        "thresholds": [],  # scores only rank
        "highest_precision": None,
        "phrases_per_image": per_image([row["phrase_count"] for row in sound]),
        "regions_per_image": per_image([len(row["annotations"]) for row in sound]),
        "objects_per_image": None,  # nobody linked the synthetic phrases
        "absent_share": None,  # nobody told the presence of the synthetic phrases
        "errors": [{"reason": reason, "count": count} for reason, count in in_order(reasons)],
        "marks": Counter(marks[one.row["sample_id"]] for one in hits if one.row["sample_id"] in marks),
    }
    assert {name: figures[name] for name in expected} == expected
    for entry, (phrase, count) in zip(figures["top_phrases"], in_order(phrases)[:7], strict=True):
        score = np.mean([region["score"] for region in regions if region["phrase"] == phrase])
        assert entry == {"text": phrase, "count": count, "score": pytest.approx(score, rel=1e-5)}
    for name, edges in (("score", SCORE_EDGES), ("area_share", AREA_EDGES)):
        values = [region[name] for region in regions]
        assert figures[name]["counts"] == np.histogram(values, np.float32(edges))[0].tolist()
        quantiles = [*figures[name]["quantiles"].values()]
        expected_quantiles = np.quantile(values, QUANTILES).tolist() if values else []
        assert quantiles == (pytest.approx(expected_quantiles, rel=1e-5) if values else [None] * 5)
    assert_sizes(figures["sizes"], regions)


def in_order(counts: Counter[str]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))


def per_image(counts: list[int]) -> dict[str, list[Any]]:
    """Images by count, each count its own bin."""
    bins = range(max(counts, default=0) + 1)
    return {"labels": [str(each) for each in bins], "counts": [counts.count(each) for each in bins]}


def assert_sizes(sizes: Json, regions: list[Json]) -> None:
    places = np.searchsorted(list(SIZES.values()), [region["box_share"] for region in regions])
    scores = np.array([region["score"] for region in regions])
    for place, size in enumerate(sizes.values()):
        chosen = scores[places == place]
        assert size["share"] == pytest.approx(len(chosen) / max(1, len(scores)))
        assert size["score"] == (pytest.approx(np.mean(chosen)) if len(chosen) else None)


def test_thresholds_where_scores_are_probabilities(
    index: Index, rows: list[Json], monkeypatch: pytest.MonkeyPatch
) -> None:
    search = Search(where="w > h", score_min=0.3)
    calibrated = replace(index.dataset, manifest={**index.dataset.manifest, "calibration": "0" * 64})
    monkeypatch.setattr(index, "dataset", calibrated)
    figures = statistics(index, search)
    regions = [region for one in find(rows, marks_of(rows), search) for region in one.regions]
    ranking = ScoreRanking.of(np.float32([region["score"] for region in regions]))
    assert figures["highest_precision"] == pytest.approx(ranking.highest_precision)
    assert len(figures["thresholds"]) > 2
    for shown, threshold in zip(figures["thresholds"], ranking.table(), strict=True):
        assert (shown["precision"], shown["score"]) == (threshold.goal, threshold.score)
        assert (shown["regions"], shown["share"]) == (threshold.regions, threshold.share)
        assert_sizes(shown["sizes"], [region for region in regions if region["score"] >= threshold.score])


def test_a_region_without_a_score_has_no_place_among_the_scores(
    synthetic_dataset: Path, tmp_path: Path
) -> None:
    """Such as one of a damaged row."""
    dataset = open_dataset(copy_of(synthetic_dataset, tmp_path))

    def remove_score(rows: list[Json]) -> None:
        next(row for row in rows if row["annotations"])["annotations"][0]["score"] = None

    change_rows(dataset.shards[0], remove_score)
    with closing(Index(replace(dataset, footers={}), {})) as index:
        index.build()
        regions = statistics(index)["regions"]
        assert index.scores(Search()).total == regions - 1


def test_the_share_counts_each_phrase_of_an_image_once(inline_dataset: Path) -> None:
    dataset = open_dataset(inline_dataset)
    presences = {
        (row["id"], entry["phrase"]): entry["presence"]
        for row in dataset.rows()
        for entry in (*row["annotations"], *row["absent"])
    }
    with closing(Index(dataset, {})) as index:
        index.build()
        assert statistics(index)["absent_share"] == round(1 - np.mean([*presences.values()]), 3)


@pytest.mark.parametrize(
    ("values", "bins"),
    [
        ([0, 13, 25], {"0 to 1": 1, "12 to 13": 1, "24 to 25": 1}),
        ([3] * 500 + [40], {"3": 500, "12 or more": 1}),
        ([], {"0": 0}),
    ],
)
def test_bins_of_counts_per_image_are_as_wide_as_most_images_need(values, bins) -> None:
    """The bins that hold something, and the first."""
    query = "CREATE TABLE hit_samples AS SELECT unnest(?::BIGINT[]) AS n, 'regions' AS status"
    with duckdb.connect() as connection:
        connection.execute(query, [values])
        figures = _per_image(lambda query: connection.execute(query).fetchall(), "n")
    shown = dict(zip(figures["labels"], figures["counts"], strict=True))
    assert shown.items() >= bins.items()
    assert (sum(shown.values()), len(shown) <= BINS_PER_IMAGE) == (len(values), True)
