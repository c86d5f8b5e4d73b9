"""The figures against numpy over the rows."""

from collections import Counter, defaultdict
from dataclasses import replace
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from pipeline.dataset.index import _INSERTS, SCORE_EDGES, Index
from pipeline.dataset.selection import SIZES, Search
from pipeline.dataset.statistics import (
    AREA_EDGES,
    BINS_PER_IMAGE,
    _per_image,
    statistics,
)
from stages.contract.score_threshold import ScoreRanking
from tests.build.datasets import Json
from tests.pipeline.dataset.plain import find, marks_of, status_of

SEARCHES = {
    "all": Search(),
    "conditions on regions": Search(where="w > h", score_max=0.8),
    "conditions on samples": Search(regions_min=3, mark="none"),
    "both": Search(phrase="man", score_min=0.3, mark="any"),
    "failed": Search(status="failed"),
    "nothing": Search(phrase="no such words"),
}


@pytest.mark.parametrize("name", SEARCHES)
def test_all_figures(name: str, index: Index, rows: list[Json]) -> None:
    search = SEARCHES[name]
    marks = marks_of(rows)
    hits = find(rows, marks, search)
    regions = [region for one in hits for region in one.regions]
    assert bool(regions) is (name not in ("failed", "nothing"))
    figures = statistics(index, search, most=7)

    by_status = Counter(status_of(one.row) for one in hits)
    assert figures["samples"] == {"all": len(hits), **by_status}
    assert figures["regions"] == len(regions)
    assert figures["phrases"] == len({region["phrase"] for region in regions})
    assert figures["heads"] == len({region["head"] for region in regions})
    assert_histogram(figures["score"], [region["score"] for region in regions], SCORE_EDGES)
    assert_histogram(figures["area_share"], [region["area_share"] for region in regions], AREA_EDGES)
    assert (figures["thresholds"], figures["highest_precision"]) == ([], None), "scores only rank"
    assert_sizes(figures["sizes"], regions)

    sound = [one.row for one in hits if one.row["error"] is None]
    assert figures["phrases_per_image"] == per_image([row["phrase_count"] for row in sound])
    assert figures["regions_per_image"] == per_image([len(row["annotations"]) for row in sound])
    assert figures["things_per_image"] is None  # nobody linked the synthetic phrases
    for column in ("phrase", "head"):
        assert_most_frequent(
            figures[f"top_{column}s"], [(region[column], region["score"]) for region in regions], 7
        )

    reasons = Counter(one.row["error"] for one in hits if one.row["error"])
    expected = sorted(reasons.items(), key=lambda entry: (-entry[1], entry[0]))
    assert figures["errors"] == [{"reason": reason, "count": count} for reason, count in expected]
    marked = Counter(marks[one.row["sample_id"]] for one in hits if one.row["sample_id"] in marks)
    assert figures["marks"] == dict(sorted(marked.items()))
    assert figures["absent_share"] is None  # nobody told the presence of the synthetic phrases


def assert_sizes(sizes: Json, regions: list[Json]) -> None:
    places = np.searchsorted(list(SIZES.values()), [region["box_share"] for region in regions])
    for place, (name, size) in enumerate(sizes.items()):
        scores = [
            region["score"] for region, of_region in zip(regions, places, strict=True) if of_region == place
        ]
        assert size["share"] == pytest.approx(len(scores) / max(1, len(regions))), name
        assert size["score"] == (pytest.approx(np.mean(scores)) if scores else None)


@pytest.mark.parametrize("search", [Search(), Search(where="w > h", score_min=0.3)], ids=str)
def test_thresholds_where_scores_are_probabilities(
    search: Search, index: Index, rows: list[Json], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = replace(index.dataset, manifest={**index.dataset.manifest, "calibration": "0" * 64})
    monkeypatch.setattr(index, "dataset", dataset)
    figures = statistics(index, search)
    regions = [region for one in find(rows, marks_of(rows), search) for region in one.regions]
    counts = ScoreRanking.of(np.float32([region["score"] for region in regions]))
    assert figures["highest_precision"] == pytest.approx(counts.highest_precision)
    assert len(figures["thresholds"]) == len(counts.table()) > 2
    for shown, threshold in zip(figures["thresholds"], counts.table(), strict=True):
        expected = (threshold.goal, threshold.score, threshold.regions, threshold.share)
        assert tuple(shown[key] for key in ("precision", "score", "regions", "share")) == expected
        assert_sizes(shown["sizes"], [region for region in regions if region["score"] >= threshold.score])


def test_the_share_counts_each_phrase_once_whether_it_is_absent_or_not() -> None:
    entries = pa.list_(pa.struct({"phrase": pa.string(), "presence": pa.float32()}))
    annotations = [[("dog", 0.75), ("dog", 0.75), ("cat", None)], [("dog", 1.0)]]
    columns = {"annotations": annotations, "absent": [[("cow", 0.25), ("cow", 0.25)], []]}
    named = {
        name: pa.array(
            [[dict(zip(("phrase", "presence"), one, strict=True)) for one in row] for row in rows], entries
        )
        for name, rows in columns.items()
    }
    with duckdb.connect() as connection:
        connection.execute("CREATE TABLE presences (row BIGINT, phrase VARCHAR, presence FLOAT)")
        connection.register("part", pa.table({"row": [0, 1], **named}))
        connection.execute("".join(_INSERTS.rpartition("INSERT INTO presences")[1:]))
        presences = connection.execute("SELECT * FROM presences ORDER BY ALL").fetchall()
    assert presences == [(0, "cow", 0.25), (0, "dog", 0.75), (1, "dog", 1.0)]


def assert_histogram(histogram: Json, values: list[float], edges: tuple[float, ...]) -> None:
    """Bins hold their lower edge, the last one also the upper."""
    assert histogram["edges"] == list(edges)
    counts, _ = np.histogram(values, np.float32(edges).astype(np.float64))
    assert histogram["counts"] == counts.tolist()
    assert list(histogram["quantiles"]) == ["5", "25", "50", "75", "95"]
    if values:
        expected = np.quantile(values, [0.05, 0.25, 0.5, 0.75, 0.95])
        assert list(histogram["quantiles"].values()) == pytest.approx(expected.tolist(), rel=1e-5)
    else:
        assert set(histogram["quantiles"].values()) == {None}


def per_image(counts: list[int]) -> dict[str, list[Any]]:
    """Images by count, each count its own bin."""
    bins = range(max(counts, default=0) + 1)
    return {"labels": [str(each) for each in bins], "counts": [counts.count(each) for each in bins]}


def assert_most_frequent(entries: list[Json], scored: list[tuple[str, float]], most: int) -> None:
    scores = defaultdict(list)
    for text, score in scored:
        scores[text].append(score)
    expected = sorted(scores, key=lambda text: (-len(scores[text]), text))[:most]
    assert [entry["text"] for entry in entries] == expected
    for entry in entries:
        assert entry["count"] == len(scores[entry["text"]])
        assert entry["score"] == pytest.approx(np.mean(scores[entry["text"]]), rel=1e-5)


@pytest.mark.parametrize(
    ("values", "labels", "counts"),
    [
        ([0, 13, 25], ["0 to 1", "12 to 13", "24 to 25"], [1, 1, 1]),
        ([*range(100), 99, 99], ["0 to 9", "90 to 99"], [10, 12]),
        ([3] * 500 + [40], ["3", "12 or more"], [500, 1]),
        ([], ["0"], [0]),
    ],
)
def test_bins_of_counts_per_image_are_as_wide_as_most_images_need(values, labels, counts) -> None:
    """The bins that hold something, and the first."""
    with duckdb.connect() as connection:
        connection.execute(
            "CREATE TABLE hit_samples AS SELECT unnest(?::BIGINT[]) AS n, 'regions' AS status", [values]
        )
        bins = _per_image(lambda query: connection.execute(query).fetchall(), "n")
    assert len(bins["labels"]) == len(bins["counts"]) <= BINS_PER_IMAGE
    shown = dict(zip(bins["labels"], bins["counts"], strict=True))
    assert sum(shown.values()) == len(values)
    assert {label: shown[label] for label in labels} == dict(zip(labels, counts, strict=True))
