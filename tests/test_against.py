"""The comparison of two commits: what is counted, and when it fails."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.against import ROOT, WORKLOADS, Checkout, Comparison, Inputs, Workload, check_out, compare

COUNT_ORPHANS = """
import resource, subprocess, sys
from tests.against import become_subreaper, wait_for_descendants
become_subreaper()
work = "import time\\nwhile time.process_time() < 0.5: pass"
orphan = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1]])"
subprocess.run([sys.executable, "-c", orphan, work], check=True)
wait_for_descendants()
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_utime + used.ru_stime)
"""


@pytest.mark.skipif(
    sys.platform != "linux", reason="no other system gives orphans another parent than the first process"
)
def test_processes_that_a_run_leaves_behind_count() -> None:
    done = subprocess.run([sys.executable, "-c", COUNT_ORPHANS], cwd=ROOT, capture_output=True, text=True, check=True)
    assert float(done.stdout) >= 0.5


@pytest.mark.parametrize(
    ("ours", "theirs", "has_grown"),
    [
        ([12.0, 13.0, 12.5], [10.0, 10.0, 10.0], True),
        ([10.8, 10.9, 10.7], [10.0, 10.0, 10.0], False),  # less than a tenth
        ([20.0, 9.0, 20.0], [10.0, 10.0, 10.0], False),  # the pairs do not agree
        ([5.0, 5.0, 5.0], [10.0, 10.0, 10.0], False),
    ],
)
def test_a_run_has_grown_if_all_pairs_agree(ours: list[float], theirs: list[float], has_grown: bool) -> None:
    assert Comparison(ours, theirs).has_grown == has_grown


def test_a_line_has_the_median_of_the_pairs_and_their_range() -> None:
    comparison = Comparison([10.0, 30.0, 20.0], [10.0, 10.0, 10.0])
    expected = {"ours_s": 20.0, "theirs_s": 10.0, "ratio": 2.0, "least": 1.0, "most": 3.0}
    assert comparison.plain() == expected


def test_workloads_have_names_of_their_own() -> None:
    assert len({workload.name for workload in WORKLOADS}) == len(WORKLOADS)


def test_photographs_have_the_captions_that_are_wanted(tmp_path: Path) -> None:
    workload = Workload(images="photographs", count=9, captions=5, model="demo", engine="inline")
    rows = Inputs(tmp_path).captions(workload).read_text().splitlines()
    assert len(rows) == 9
    assert all(row.count('", "') == 5 for row in rows), "the image and five captions"


def test_a_commit_that_git_does_not_know_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="git knows no commit nothing"):
        check_out("nothing", tmp_path)


@pytest.mark.slow
def test_a_workload_is_run_by_both_sides(tmp_path: Path) -> None:
    here = Checkout(ROOT, Path(sys.executable))
    workload = Workload(images="scenes", count=3, captions=1, model="demo", engine="inline")
    figures = compare(workload, Inputs(tmp_path), here, Checkout(ROOT, Path(sys.executable)), 1)
    assert {"cpu", "wall", "stage phrases", "stage explain", "stage regions"} <= figures.keys()
    assert all(figure.ours > [0] and figure.theirs > [0] for figure in figures.values())
