"""The judge of a campaign: counts faults and refusals, compares rows, and notes every failure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from tests.pipeline.light import is_alike

Row = dict[str, Any]

FAILURES: Final = {
    "wrong cause": "a message that names none of the faults",
    "crash": "a life that ended in another way than well, or with a message",
    "stuck": "the same command never made a whole dataset, although its messages were followed",
    "silent": "neither run, reader nor validation named the damage of a finished dataset",
    "wrong rows": "rows were lost, doubled or different in a dataset that was read without an error",
}
"""Kinds of failures of phrasebox, with their meaning."""


@dataclass
class Judgement:
    """The faults that a campaign has injected, and the failures that it has found.

    log         receives what must not be, at once
    injected    faults by kind
    refusals    lives that ended with a message, by the kinds of the faults that it names
    failures    what must not be, by `FAILURES`
    """

    log: Callable[[str], None]
    injected: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    lives: int = 0
    failures: dict[str, list[str]] = field(default_factory=lambda: {name: [] for name in FAILURES})

    def blame(self, failure: str, line: str) -> None:
        """Note what must not be."""
        self.failures[failure].append(line)
        self.log(f"{failure}: {line}")

    def summary(self) -> Row:
        """Return all counts, and the number of each failure."""
        return {
            "faults": self.injected.total(),
            "faults_by_kind": dict(self.injected),
            "lives": self.lives,
            "refusals_by_cause": dict(self.refusals),
            **{name: len(lines) for name, lines in self.failures.items()},
        }

    def compare(self, rows: Iterable[Row], wanted: dict[str, Row], when: str) -> None:
        """Compare rows with those of a quiet run, by sample."""
        rows = list(rows)
        counts = Counter(row["sample_id"] for row in rows)
        if lost := wanted.keys() - counts.keys():
            self.blame("wrong rows", f"{len(lost)} lost {when}: {sorted(lost)[:3]}")
        if more := [name for name, count in counts.items() if count > 1 or name not in wanted]:
            self.blame("wrong rows", f"{len(more)} doubled or foreign {when}: {sorted(more)[:3]}")
        different = [
            row["sample_id"]
            for row in rows
            if row["sample_id"] in wanted and not _are_alike(row, wanted[row["sample_id"]])
        ]
        if different:
            self.blame("wrong rows", f"{len(different)} different {when}: {different[:3]}")


def _are_alike(row: Row, wanted: Row) -> bool:
    """Whether rows are equal up to rounding, and masks where their boxes are."""
    return is_alike("", row, wanted) and all(
        mine["bbox"] != theirs["bbox"] or mine["segmentation"] == theirs["segmentation"]
        for mine, theirs in zip(row["annotations"], wanted["annotations"], strict=True)
    )
