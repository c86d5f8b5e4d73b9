"""What both loaders ask first: which dataset, which of its rows and regions."""

from __future__ import annotations

from pathlib import Path

from stages.dataset.folder import Dataset, open_dataset
from stages.dataset.load.pieces import Choice
from stages.dataset.selection import Selector


def opened(dataset: Dataset | Path | str) -> Dataset:
    """A dataset from its folder. Raises InputError if it holds none."""
    return dataset if isinstance(dataset, Dataset) else open_dataset(Path(dataset))


def choice_of(dataset: Dataset, min_score: float, where: str, *, keep_empty: bool, keep_failed: bool) -> Choice:
    """The choice, with people's marks for a condition on them.

    Raises ConfigError for what is no score or no condition, InputError for damaged marks.
    """
    selection = dataset.selection(where, min_score=min_score)
    Selector(selection)  # an invalid condition is refused here rather than in a worker
    return Choice(selection=selection, keep_empty=keep_empty, keep_failed=keep_failed)
