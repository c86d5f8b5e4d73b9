"""Counts, histograms and frequent words of the hits of a search: `phrasebox stats` and the viewer's figures."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Final

from phrasebox.pipeline.dataset.index import SCORE_EDGES, Index
from phrasebox.pipeline.dataset.selection import SIZES, Search
from phrasebox.stages.contract.records import GIVEN
from phrasebox.stages.contract.values import Json

AREA_EDGES: Final = (0.0, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # Shares of the image
QUANTILES: Final = (0.05, 0.25, 0.5, 0.75, 0.95)
BINS_PER_IMAGE: Final = 13  # Most bins of a count per image


def statistics(index: Index, search: Search | None = None, *, most: int = 30) -> Json:
    """Return counts, histograms and the most frequent words.

    samples            by `Status`, and `all`
    regions, phrases, heads   number of regions, of different phrases, of different head nouns
    given              number of regions whose box came with the input
    score, area_share  of the regions: {edges, counts, quantiles}; the last bin holds its upper edge
    thresholds         [{precision, score, regions, share, sizes}], see `ScoreRanking.table`, and
                       the sizes of these regions; empty if scores only rank
    estimated_margin   how much too high estimated scores may be, which precisions leave off; 0 for others
    highest_precision  that of the regions with the highest score; None if scores only rank
    sizes              of all regions by `SIZES`: name -> {share, score}, score being the mean
    phrases_per_image, regions_per_image   samples without an error by count: {labels, counts}
    objects_per_image   the same for objects; None if no phrases are linked
    absent_share       share of absent phrases by their presences; None without presences
    top_phrases, top_heads   [{text, count, score}], at most `most`, with the mean score
    errors             [{reason, count}]
    marks              mark -> samples

    Raise ConfigError if the search's condition is not an SQL condition.
    """
    search = search or Search()
    ask = partial(index.ask, search)
    by_status = dict(ask("SELECT status, count(*) FROM hit_samples GROUP BY status ORDER BY status"))
    ((regions, phrases, heads),) = ask(
        "SELECT count(*), count(DISTINCT phrase), count(DISTINCT head) FROM hit_regions"
    )
    ((given,),) = ask(f"SELECT count(*) FROM hit_regions WHERE bbox_of = '{GIVEN}'")
    ((most_objects,),) = ask("SELECT max(thing_count) FROM hit_samples")
    ((absent_share,),) = ask(
        "SELECT 1 - avg(presence) FROM presences WHERE row IN (SELECT row FROM hit_samples)"
    )
    reasons = "SELECT reason, count(*) FROM hit_samples WHERE reason IS NOT NULL GROUP BY reason ORDER BY 2 DESC, 1"
    return {
        "samples": {"all": sum(by_status.values()), **by_status},
        "regions": regions,
        "phrases": phrases,
        "heads": heads,
        "given": given,
        "score": _histogram(ask, "score", SCORE_EDGES),
        **_thresholds(index, search),
        "sizes": _sizes(ask),
        "area_share": _histogram(ask, "area_share", AREA_EDGES),
        "phrases_per_image": _per_image(ask, "phrase_count"),
        "regions_per_image": _per_image(ask, "region_count"),
        "objects_per_image": _per_image(ask, "thing_count") if most_objects else None,
        "absent_share": None if absent_share is None else round(absent_share, 3),
        "top_phrases": _most_frequent(ask, "phrase", most),
        "top_heads": _most_frequent(ask, "head", most),
        "errors": [{"reason": reason, "count": count} for reason, count in ask(reasons)],
        "marks": dict(
            ask("SELECT mark, count(*) FROM hit_samples WHERE mark IS NOT NULL GROUP BY mark ORDER BY mark")
        ),
    }


def _thresholds(index: Index, search: Search) -> Json:
    if not index.dataset.has_probabilities:
        return {"thresholds": [], "highest_precision": None, "estimated_margin": 0.0}
    scores = index.scores(search)
    thresholds = [
        {
            "precision": threshold.goal,
            "score": threshold.score,
            "regions": threshold.regions,
            "share": threshold.share,
            "sizes": _sizes(partial(index.ask, search), threshold.score),
        }
        for threshold in scores.table()
    ]
    return {
        "thresholds": thresholds,
        "highest_precision": scores.highest_precision,
        "estimated_margin": index.dataset.score_margin,
    }


def _sizes(ask: Any, min_score: float = 0.0) -> Json:
    """Return share and mean score of the regions with at least a score, by `SIZES`."""
    places = " ".join(
        f"WHEN box_share <= {edge!r} THEN {place}" for place, edge in enumerate(SIZES.values())
    )
    columns = f"CASE {places} END, count(*), avg(score)".replace("inf", "'inf'::DOUBLE")
    rows = ask(f"SELECT {columns} FROM hit_regions WHERE score >= {min_score!r}::FLOAT GROUP BY 1")
    sizes = {place: (count, score) for place, count, score in rows}
    total = sum(count for count, _ in sizes.values())
    counts = {name: sizes.get(place, (0, None)) for place, name in enumerate(SIZES)}
    return {
        name: {"share": count / max(1, total), "score": score} for name, (count, score) in counts.items()
    }


def _histogram(ask: Any, column: str, edges: Sequence[float]) -> Json:
    """Count values between edges; the last bin counts values beyond the last edge, too."""
    columns = ", ".join(f"count(*) FILTER ({column} < {edge!r}::FLOAT)" for edge in edges[1:-1])
    quantiles = f"quantile_cont({column}, {list(QUANTILES)})"
    ((*counts, total, values),) = ask(f"SELECT {columns}, count(*), {quantiles} FROM hit_regions")
    return {
        "edges": list(edges),
        "counts": [high - low for low, high in pairwise((0, *counts, total))],
        "quantiles": dict(
            zip((f"{share * 100:g}" for share in QUANTILES), values or [None] * 5, strict=True)
        ),
    }


def _per_image(ask: Any, column: str) -> dict[str, list[Any]]:
    sound = f"FROM hit_samples WHERE status <> 'failed' AND {column} IS NOT NULL"
    ((usual, most),) = ask(f"SELECT quantile_disc({column}, 0.99), max({column}) {sound}")
    width = (usual or 0) // BINS_PER_IMAGE + 1  # 99 % of the images fit
    counts = dict(
        ask(f"SELECT least({column} // {width}, {BINS_PER_IMAGE - 1}), count(*) {sound} GROUP BY 1")
    )
    bins = range(max(counts, default=0) + 1)
    labels = [
        str(number) if width == 1 else f"{number * width} to {(number + 1) * width - 1}" for number in bins
    ]
    if (most or 0) >= BINS_PER_IMAGE * width:
        labels[-1] = f"{bins[-1] * width} or more"
    return {"labels": labels, "counts": [counts.get(number, 0) for number in bins]}


def _most_frequent(ask: Any, column: str, most: int) -> list[Json]:
    rows = ask(
        f"SELECT {column}, count(*), avg(score) FROM hit_regions GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT {most:d}"
    )
    return [{"text": text, "count": count, "score": score} for text, count, score in rows]
