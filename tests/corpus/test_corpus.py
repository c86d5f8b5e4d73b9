"""Bad input of every kind through the real pipeline: one row each, and no harm to the good rows beside it.

`make corpus` prints the table of all cases with what they come to.
"""

import re
from collections import Counter
from collections.abc import Callable
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from pipeline.config import RunConfig
from pipeline.dataset.validate import validate
from pipeline.run import run
from stages.contract.errors import ROW_ERRORS
from tests.corpus.goods import meets, outcome, seen
from tests.corpus.runs import CASES, RUNS, Input, Wanted, good_rows

Row = dict[str, Any]


class Finished(NamedTuple):
    """A finished run: what was asked, its rows in the order of the input, its dataset, what it printed."""

    input: Input
    rows: list[Row]
    dataset: Path
    printed: str

    def of_case(self, group: str, case: str) -> list[tuple[Wanted, Row | None]]:
        """The case's rows beside what is wanted of them; None where there is no row, or too many."""
        wanted = [one for one in self.input.wanted if (one.group, one.case) == (group, case)]
        if not (wanted and not wanted[0].file) and any(one.file for one in self.input.wanted):
            found = [row for row in self.rows if row["sample_id"].startswith((f"{case}:", f"{case}/"))]
            extra = [Wanted(group, case, "no more rows", case)] * (len(found) - len(wanted))
            padded = found + [None] * (len(wanted) - len(found))
            return list(zip([*wanted, *extra], padded, strict=True))
        rows = zip(self.input.wanted, self.rows, strict=True)
        return [(one, row) for one, row in rows if (one.group, one.case) == (group, case)]


def finished(given: Input, folder: Path) -> Finished:
    output = StringIO()
    values = {
        "input": given.config,
        "model": {"name": "demo", "threads": 1},
        "explain": {"kind": "grad_eclip", "blocks": 1, "image_size": 64},
        "regions": {"calibration": "none"},  # presence would be fitted to what else is in the input
        "engine": {"kind": "inline"},
        "output": {"path": str(folder / "out")},
    }
    dataset = run(RunConfig.model_validate(values), Console(file=output, width=200))
    files = sorted((dataset / "data").glob("*.parquet"))
    rows = [row for path in files for row in pq.read_table(path).to_pylist()]
    return Finished(given, rows, dataset, output.getvalue())


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Caption of a good sample -> all that its row says, in a run without any bad sample."""
    folder = tmp_path_factory.mktemp("good")
    rows = finished(good_rows(folder), folder).rows
    assert all(row["annotations"] for row in rows)
    return {row["captions"][0]: seen(row) for row in rows}


@pytest.fixture(scope="module")
def run_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Finished]:
    """Each run when it is first asked for, so that a failing one fails the tests of its own cases alone."""

    @cache
    def made(name: str) -> Finished:
        folder = tmp_path_factory.mktemp(name)
        return finished(RUNS[name](folder), folder)

    return made


def is_met(one: Wanted, row: Row | None, alone: dict[str, Any]) -> bool:
    return row is not None and meets(row, one.outcome, alone.get((row["captions"] or [""])[0]))


@pytest.mark.parametrize(("name", "group", "case"), CASES, ids=[ascii(" ".join(case))[:70] for case in CASES])
def test_case(name: str, group: str, case: str, run_of: Callable[[str], Finished], alone: dict[str, Any]) -> None:
    wrong = [(one, row) for one, row in run_of(name).of_case(group, case) if not is_met(one, row, alone)]
    assert [(one.outcome, "no row" if row is None else outcome(row)) for one, row in wrong] == []


@pytest.mark.parametrize("name", RUNS)
def test_good_rows_are_as_they_are_alone(name: str, run_of: Callable[[str], Finished], alone: dict[str, Any]) -> None:
    done = run_of(name)
    good = [row for row in done.rows if row["file_name"].startswith("good ") and row["error"] is None]
    if name in ("pictures", "rows"):
        beside = [row for row in done.rows if re.fullmatch(r"good \d+", row["sample_id"])]
        assert [row["sample_id"] for row in beside] == [f"good {number}" for number in range(len(beside))]
        assert len(beside) > len(done.rows) // 4
        assert all(meets(row, "good", alone[row["captions"][0]]) for row in beside)
    assert good or name == "webdataset"


@pytest.mark.parametrize("name", RUNS)
def test_every_row_is_counted_and_the_summary_is_by_reason(name: str, run_of: Callable[[str], Finished]) -> None:
    done = run_of(name)
    assert list(validate(done.dataset)) == []
    assert len(done.rows) == len(done.input.wanted)
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
        outcomes = [
            "no row" if row is None else "good" if one.outcome == "good" else outcome(row)
            for one, row in run_of(name).of_case(group, case)
        ]
        print(f"{group:16} {ascii(case)[:44]:46} -> {ascii(' | '.join(outcomes) or 'no rows')[1:-1][:200]}")
    print(f"{len(CASES)} cases")
