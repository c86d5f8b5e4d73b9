"""How people choose regions: by size and condition, and by a least score, a precision or a share of all.

A precision or a share becomes a least score from the scores of the regions that fulfil the other
conditions. Only the columns of the choice are read: scores, and with a size or a condition
`CONDITION_COLUMNS`, but never images or masks. It takes 4 bytes of memory a region.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from phrasebox.pipeline.config.errors import Checked
from phrasebox.pipeline.dataset.selection import Selection, Selector, Share, join_conditions, regions_in
from phrasebox.stages.contract.errors import ConfigError
from phrasebox.stages.contract.score_threshold import ScoreRanking, Threshold, useful_threshold

if TYPE_CHECKING:
    from phrasebox.pipeline.dataset.folder import Dataset

_ROWS_AT_ONCE: Final = 8192

SCORE_COUNTS: Final = """
SELECT score, count(*) AS regions FROM {} WHERE score IS NOT NULL GROUP BY score ORDER BY score DESC
"""
"""SQL for `ranking_of`, with room for a table of regions."""


class RegionChoice(Checked):
    """A choice of regions; at most one of `min_score`, `precision` and `keep` chooses by score.

    Raise ConfigError for a number outside 0 .. 1, and for two that choose by score.

    Attributes:
        min_score: The least score of a region.
        precision: Take the lowest score at which the mean score of the regions is at least this.
        keep: Take the best regions, this share of all; an equal score is taken too.
        max_area: The largest share of the image that the box of a region covers.
        where: SQL condition on regions, see `phrasebox.pipeline.dataset.selection`.
    """

    min_score: Share = 0.0
    precision: Share | None = None
    keep: Share | None = None
    max_area: Share = 1.0
    where: str = ""

    def model_post_init(self, context: Any, /) -> None:
        """Reject several choices by score."""
        by_score = [key for key in ("precision", "keep") if getattr(self, key) is not None]
        if len(by_score) + (self.min_score > 0) > 1:
            raise ConfigError(
                "a least score, a precision and a share exclude each other: give one", key=by_score[-1]
            )

    @property
    def is_by_score(self) -> bool:
        """Whether it chooses by score."""
        return self.min_score > 0 or self.precision is not None or self.keep is not None

    @property
    def condition(self) -> str:
        """SQL condition of size and `where`; "" if every region fulfils it."""
        return join_conditions([f"box_share <= {self.max_area!r}"] if self.max_area < 1 else [], self.where)


def select(dataset: Dataset, choice: RegionChoice, marks: dict[str, str]) -> Selection:
    """Return a choice with its least score; `marks` are those of the samples.

    Raise ConfigError for an invalid condition, for a precision where scores only rank, and for one
    that no score reaches; InputError for a damaged shard.
    """
    if choice.where.strip():
        Selector(Selection(where=choice.where))  # separately: beside another it could close its brackets
    selection = Selection(min_score=choice.min_score, where=choice.condition, marks=marks)
    if choice.precision is not None:
        _reject_ranks(dataset)
        threshold = _find_precision(count_scores(dataset, selection), choice.precision)
    elif choice.keep is not None:
        threshold = count_scores(dataset, selection).at_share(choice.keep)
    else:
        return selection
    return replace(selection, min_score=0.0 if threshold is None else threshold.score, threshold=threshold)


def _reject_ranks(dataset: Dataset) -> None:
    if not dataset.has_probabilities:
        reason = (
            "no calibration made probabilities of them"
            if dataset.is_finished
            else "the run has not finished"
        )
        raise ConfigError(
            f"the scores of {dataset.path} only rank ({reason}): --keep 0.3, keep=0.3 in Python, takes the best 30 %",
            key="precision",
        )


def _find_precision(scores: ScoreRanking, precision: float) -> Threshold | None:
    """Return the threshold of a precision; None without regions. Raise ConfigError if no score reaches it."""
    threshold = scores.at_precision(precision)
    if threshold is None and scores.total:
        highest = f"{scores.highest_precision:.3f}, of {scores.regions[0]:,} of {scores.total:,} regions"
        raise ConfigError(
            f"no score reaches {precision:g}: the highest precision is {highest}", key="precision"
        )
    return threshold


def count_scores(dataset: Dataset, selection: Selection) -> ScoreRanking:
    """Count the scores of the chosen regions of a dataset, less their margin. Raise InputError for a damaged shard."""
    selector = Selector(selection)
    tables = (
        selector.choose(table) for table in dataset.tables(selection.columns, batch_rows=_ROWS_AT_ONCE)
    )
    parts = [regions_in(table)[0].field("score").to_numpy() for table in tables]
    return ScoreRanking.of(np.concatenate([np.zeros(0, np.float32), *parts])).less(dataset.score_margin)


def ranking_of(answer: Any) -> ScoreRanking:
    """Return the scores that DuckDB has counted by `SCORE_COUNTS`."""
    columns = answer.fetchnumpy()
    return ScoreRanking.of_different(columns["score"], columns["regions"])


def advice(scores: ScoreRanking) -> str:
    """Return how many of some regions are right by their scores, and a precision to ask for; "" if all are likely."""
    threshold = useful_threshold(scores.table())
    if threshold is None or threshold.regions == threshold.total:
        return ""
    return (
        f"by their scores {scores.precisions[-1]:.0%} of the regions are right; "
        f"--precision {threshold.goal:g} keeps {threshold.regions:,} of {threshold.total:,}"
    )
