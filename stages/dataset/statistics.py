"""Figures of a dataset, or of what a search finds in it, as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final

from stages.dataset.index import Index
from stages.dataset.search import Search

SCORE_EDGES: Final = tuple(round(step * 0.05, 2) for step in range(21))
AREA_EDGES: Final = (0.0, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Shares of the image, in about equal steps of the logarithm."""

QUANTILES: Final = (0.05, 0.25, 0.5, 0.75, 0.95)

MOST_PER_IMAGE: Final = 12
"""Counts per image from this one upwards share a bin."""

KEPT_AT: Final = (0.5, 0.7, 0.8, 0.9)
"""Score thresholds; the statistics report the share of regions at or above each."""


def statistics(index: Index, search: Search | None = None, *, most: int = 30) -> dict[str, Any]:
    """Counts, histograms and the most frequent words.

    samples            by `Status`, and `all`
    regions, phrases, heads   number of regions, of different phrases, of different head nouns
    score, area_share  of the regions: {edges, counts, quantiles: {5, 25, 50, 75, 95: value}}; the last bin holds its
                       upper edge
    score_kept         score -> share of the regions with at least this score
    phrases_per_image, regions_per_image   samples without an error by count; the last one is "or more"
    top_phrases, top_heads   [{text, count, score}], at most `most`, with the mean score
    errors             [{reason, count}]
    marks              mark -> samples

    Raises:
        ConfigError: The search's condition is not an SQL condition.
    """
    search = search or Search()

    def ask(query: str) -> list[tuple[Any, ...]]:
        return index.ask(search, query)

    by_status = dict(ask("SELECT status, count(*) FROM hit_samples GROUP BY status ORDER BY status"))
    ((regions, phrases, heads),) = ask("SELECT count(*), count(DISTINCT phrase), count(DISTINCT head) FROM hit_regions")
    ((*kept,),) = ask(
        f"SELECT {', '.join(f'count(*) FILTER (score >= {score}::FLOAT)' for score in KEPT_AT)} FROM hit_regions"
    )
    return {
        "samples": {"all": sum(by_status.values()), **by_status},
        "regions": regions,
        "phrases": phrases,
        "heads": heads,
        "score": _histogram(ask, "score", SCORE_EDGES),
        "score_kept": {
            f"{score:g}": count / regions if regions else None for score, count in zip(KEPT_AT, kept, strict=True)
        },
        "area_share": _histogram(ask, "area_share", AREA_EDGES),
        "phrases_per_image": _per_image(ask, "phrase_count"),
        "regions_per_image": _per_image(ask, "region_count"),
        "top_phrases": _most_frequent(ask, "phrase", most),
        "top_heads": _most_frequent(ask, "head", most),
        "errors": [
            {"reason": reason, "count": count}
            for reason, count in ask(
                "SELECT reason, count(*) FROM hit_samples WHERE reason IS NOT NULL GROUP BY reason ORDER BY 2 DESC, 1"
            )
        ],
        "marks": dict(ask("SELECT mark, count(*) FROM hit_samples WHERE mark IS NOT NULL GROUP BY mark ORDER BY mark")),
    }


def _histogram(ask: Any, column: str, edges: Sequence[float]) -> dict[str, Any]:
    """Counts between edges; values that rounding puts beyond the last edge go into the last bin."""
    below = ", ".join(f"count(*) FILTER ({column} < {edge!r}::FLOAT)" for edge in edges[1:-1])
    quantiles = f"quantile_cont({column}, {list(QUANTILES)})"
    ((*counts, total, values),) = ask(f"SELECT {below}, count(*), {quantiles} FROM hit_regions")
    return {
        "edges": list(edges),
        "counts": [high - low for low, high in pairwise((0, *counts, total))],
        "quantiles": dict(zip((f"{share * 100:g}" for share in QUANTILES), values or [None] * 5, strict=True)),
    }


def _per_image(ask: Any, column: str) -> list[int]:
    rows = dict(
        ask(f"SELECT least({column}, {MOST_PER_IMAGE}), count(*) FROM hit_samples WHERE status <> 'failed' GROUP BY 1")
    )
    return [rows.get(number, 0) for number in range(MOST_PER_IMAGE + 1)]


def _most_frequent(ask: Any, column: str, most: int) -> list[dict[str, Any]]:
    rows = ask(f"SELECT {column}, count(*), avg(score) FROM hit_regions GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT {most:d}")
    return [{"text": text, "count": count, "score": score} for text, count, score in rows]
