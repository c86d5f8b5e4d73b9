"""Bad input of every kind through the real pipeline: one row each, and no harm to the good rows beside it.

`make corpus` prints the table of all cases with what they come to.
"""

from collections import Counter
from collections.abc import Callable
from functools import cache
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import pytest
from rich.console import Console

from pipeline.config import RunConfig
from pipeline.dataset.validate import validate
from pipeline.run import run
from stages.contract.errors import ROW_ERRORS
from tests.build.datasets import Json, rows_of
from tests.corpus.goods import meets, outcome, row_facts
from tests.corpus.runs import CASES, RUNS, Input, Wanted, good_rows
from tests.messages import assert_message


class Finished(NamedTuple):
    """A finished run: its rows in the order of the input beside what is wanted of them, and what it printed."""

    pairs: list[tuple[Wanted, Json]]
    dataset: Path
    printed: str

    @property
    def rows(self) -> list[Json]:
        return [row for _, row in self.pairs]

    def of_case(self, group: str, case: str) -> list[tuple[Wanted, Json]]:
        return [(wanted, row) for wanted, row in self.pairs if (wanted.group, wanted.case) == (group, case)]


def finished(source: Input, folder: Path) -> Finished:
    output = StringIO()
    values = {
        "input": source.config,
        "model": {"name": "demo", "threads": 1},
        "explain": {"kind": "grad_eclip", "blocks": 1, "image_size": 64},
        "regions": {"calibration": "none"},  # presence would be fitted to what else is in the input
        "engine": {"kind": "inline"},
        "output": {"path": str(folder / "out")},
    }
    dataset = run(RunConfig.model_validate(values), Console(file=output, width=200))
    rows = rows_of(dataset)
    return Finished(list(zip(source.wanted, rows, strict=True)), dataset, output.getvalue())


@pytest.fixture(scope="module")
def good_row_of(tmp_path_factory: pytest.TempPathFactory) -> Json:
    """Caption of a good sample -> all that its row says, in a run without any bad sample."""
    folder = tmp_path_factory.mktemp("good")
    rows = finished(good_rows(folder), folder).rows
    assert all(row["annotations"] for row in rows)
    return {row["captions"][0]: row_facts(row) for row in rows}


@pytest.fixture(scope="module")
def run_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Finished]:
    """Each run when it is first asked for, so that a failing one fails the tests of its own cases alone."""

    @cache
    def made(name: str) -> Finished:
        folder = tmp_path_factory.mktemp(name)
        return finished(RUNS[name](folder), folder)

    return made


@pytest.mark.parametrize(
    ("name", "group", "case"), CASES, ids=[ascii(" ".join(case))[:70] for case in CASES]
)
def test_case(
    name: str, group: str, case: str, run_of: Callable[[str], Finished], good_row_of: Json
) -> None:
    for wanted, row in run_of(name).of_case(group, case):
        good_row = good_row_of.get((row["captions"] or [""])[0])
        assert meets(row, wanted.outcome, good_row), (wanted.outcome, row["error"], row["error_detail"])
        if row["error"] is not None:
            assert_message(row["error_detail"].partition(": ")[2])  # behind the place


@pytest.mark.parametrize("name", RUNS)
def test_every_row_is_counted_and_the_summary_is_by_reason(
    name: str, run_of: Callable[[str], Finished]
) -> None:
    done = run_of(name)
    assert list(validate(done.dataset)) == []
    reasons = Counter(row["error"] for row in done.rows if row["error"] is not None)
    assert set(reasons) <= set(ROW_ERRORS)
    lines = [line.split() for line in done.printed.replace("│", " ").splitlines()]
    for reason, count in reasons.items():
        assert [reason, f"{count:,}"] in lines
    assert ["failed", f"{reasons.total():,}"] in lines


def test_errors_are_for_people(run_of: Callable[[str], Finished]) -> None:
    """One line, no addresses, no names of classes, not endless."""
    for name in RUNS:
        for row in run_of(name).rows:
            text = row["error_detail"] or ""
            assert "\n" not in text.strip() or "\n" in row["sample_id"], text
            assert not any(part in text for part in (" at 0x", "Traceback", "<class", "object at")), text
            assert len(text) < 1000 + len(row["sample_id"]), text


def test_the_table(run_of: Callable[[str], Finished]) -> None:
    """Prints case -> outcome; `make corpus` shows it."""
    assert len(set(CASES)) == len(CASES) >= 150
    for name, group, case in CASES:
        rows = [row for _, row in run_of(name).of_case(group, case)]
        outcomes = [": ".join(filter(None, (outcome(row), row["error_detail"]))) for row in rows]
        print(f"{group:16} {ascii(case)[:44]:46} -> {ascii(' | '.join(outcomes) or 'no rows')[1:-1][:200]}")
    print(f"{len(CASES)} cases")
