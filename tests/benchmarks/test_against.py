"""The comparison of two commits: what is counted, and when it fails."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.against import (
    ROOT,
    WORKLOADS,
    Checkout,
    Comparison,
    Inputs,
    check_out,
    compare,
    main,
)
from phrasebox.pipeline.config.run_config import RunConfig
from phrasebox.pipeline.run.steps import build_steps


@pytest.mark.parametrize(
    ("ours", "theirs", "has_grown"),
    [
        ([12.0, 13.0, 12.5], [10.0, 10.0, 10.0], True),
        ([10.8, 10.9, 10.7], [10.0, 10.0, 10.0], False),  # less than a tenth
        ([20.0, 9.0, 20.0], [10.0, 10.0, 10.0], False),  # the pairs do not agree
        ([0.02, 0.09, 0.05], [0.01, 0.01, 0.0], False),  # by milliseconds
        ([0.2, 0.3, 0.4], [0.0, 0.0, 0.0], True),
    ],
)
def test_a_run_has_grown_if_all_pairs_agree(
    ours: list[float], theirs: list[float], has_grown: bool
) -> None:
    assert Comparison(ours, theirs).has_grown == has_grown


def test_a_line_has_the_median_of_the_pairs_and_their_range() -> None:
    comparison = Comparison([10.0, 30.0, 20.0], [10.0, 10.0, 10.0])
    expected = {"ours_s": 20.0, "theirs_s": 10.0, "ratio": 2.0, "least": 1.0, "most": 3.0}
    assert comparison.plain() == expected


@pytest.mark.parametrize(
    ("figure", "engine", "is_cpu_time"),
    [
        ("cpu", "ray", True),
        ("wall", "inline", False),
        ("stage regions", "inline", True),
        ("stage regions", "ray", False),
        ("start cpu workers", "ray", True),
        ("start wall", "ray", False),
    ],
)
def test_the_time_of_a_stage_is_cpu_time_in_one_process(
    figure: str, engine: str, is_cpu_time: bool
) -> None:
    assert replace(WORKLOADS[0], engine=engine).is_cpu_time(figure) == is_cpu_time


@pytest.mark.parametrize(("count", "pairs", "expected"), [(100, 4, 4), (3000, 4, 2), (3000, 1, 1)])
def test_long_runs_have_half_of_the_pairs(count: int, pairs: int, expected: int) -> None:
    assert replace(WORKLOADS[0], count=count).pairs(pairs) == expected


@pytest.mark.parametrize("options", [["--only", "no workload"], ["--pairs", "0"]])
def test_a_comparison_of_nothing_is_rejected(
    options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["against", "HEAD", *options])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "--pairs has to be 1 or more, and --only a part of a workload's name" in capsys.readouterr().err


def test_photographs_have_the_captions_that_are_wanted(tmp_path: Path) -> None:
    workload = replace(WORKLOADS[0], images="photographs", count=9, captions=5)
    rows = Inputs(tmp_path).captions(workload).read_text().splitlines()
    assert len(rows) == 9
    captions = [caption for row in rows for caption in json.loads(row)["captions"]]
    assert len(captions) == 45
    assert len(set(captions)) == 45, "a cache of texts would hide what they cost"


def test_a_run_with_learned_boxes_is_compared() -> None:
    """They cost more than all else of the regions stage."""
    settings = {workload.settings for workload in WORKLOADS if workload.model == "photo"}
    assert settings == {()}
    config = RunConfig.model_validate(
        {"input": {"kind": "jsonl", "path": "x.jsonl"}, "model": {"name": "photo"}}
    )
    stage = build_steps(config).regions_stage
    assert stage.calibration is not None
    assert stage.calibration.box is not None


def test_a_commit_that_git_does_not_know_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="git knows no commit nothing"):
        check_out("nothing", tmp_path)


class Stopwatch(Checkout):
    """A commit whose runs take no time, and whose last stage has the name of its folder."""

    def measure(self, engine: str, arguments: list[str], out: Path) -> dict[str, float]:
        return {"cpu": 1.0, f"stage {self.path.name}": 1.0}


def test_a_stage_of_one_commit_alone_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours, theirs = (Stopwatch(Path(name), Path(sys.executable)) for name in ("regions", "boxes"))
    workload = replace(WORKLOADS[0], count=1)
    assert list(compare(workload, Inputs(tmp_path), ours, theirs, 1)) == ["cpu"]
    assert (
        "not compared, since only one commit has it: stage boxes, stage regions" in capsys.readouterr().err
    )


@pytest.mark.parametrize("folder", ["", "phrasebox/"])
@pytest.mark.parametrize("engine", ["inline", "ray"])
def test_a_commit_is_run_by_the_name_that_its_package_has(tmp_path: Path, folder: str, engine: str) -> None:
    """Commits before the package phrasebox have their modules at the top."""
    (tmp_path / folder / "pipeline").mkdir(parents=True)
    for package in (folder, f"{folder}pipeline"):
        (tmp_path / package / "__init__.py").touch()
    (tmp_path / folder / "pipeline/__main__.py").write_text(
        "import json, pathlib, sys\nout = pathlib.Path(sys.argv[-1])\nout.mkdir()\n"
        "(out / 'dataset.json').write_text(json.dumps({'stages': {'explain': {'busy_s': 2.0}}}))\n"
    )
    commit = Checkout(tmp_path, Path(sys.executable))
    assert commit.measure(engine, [], tmp_path / "out")["stage explain"] == 2.0


@pytest.mark.slow
def test_a_workload_is_run_by_both_sides(tmp_path: Path) -> None:
    here = Checkout(ROOT, Path(sys.executable))
    workload = replace(WORKLOADS[0], count=3)
    figures = compare(workload, Inputs(tmp_path), here, Checkout(ROOT, Path(sys.executable)), 1)
    assert {"cpu", "wall", "stage phrases", "stage explain", "stage regions"} <= figures.keys()
    assert all(figure.ours > [0] and figure.theirs > [0] for figure in figures.values())
    stages = [figure.ours[0] for name, figure in figures.items() if name.startswith("stage ")]
    assert sum(stages) < figures["cpu"].ours[0], "their clock stands still while others have the processor"


@pytest.fixture
def compare_in_ci(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], subprocess.CompletedProcess[str]]:
    """Run `.ci/bench` in a repository of two commits, where `make` prints a figure and fails."""
    repository, programs = tmp_path / "repository", tmp_path / "programs"
    (repository / ".ci").mkdir(parents=True)
    shutil.copy(ROOT / ".ci" / "bench", repository / ".ci")
    programs.mkdir()
    figure = json.dumps({"run": "scenes", "figure": "cpu", **Comparison([3.75], [2.5]).plain()})
    (programs / "make").write_text(
        f"#!/bin/sh\necho installing\necho '{figure}'\necho \"$@\" >&2\nexit 2\n"
    )
    (programs / "make").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    git = ["git", "-C", str(repository), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    for _ in range(2):
        subprocess.run([*git, "commit", "--quiet", "--allow-empty", "--message", "one"], check=True)

    def run(tag: str) -> subprocess.CompletedProcess[str]:
        if tag:
            subprocess.run([*git, "tag", "v1", tag], check=True)
        return subprocess.run(
            [str(repository / ".ci" / "bench"), ""], capture_output=True, text=True, check=False
        )

    return run


@pytest.mark.parametrize("tag", ["", "HEAD"])
def test_a_first_version_is_compared_with_nothing(
    compare_in_ci: Callable[[str], subprocess.CompletedProcess[str]], tmp_path: Path, tag: str
) -> None:
    done = compare_in_ci(tag)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "No commit before this one has a tag: there is nothing to compare with.\n"
    assert (tmp_path / "repository" / "out" / "bench.md").read_text() == done.stdout


@pytest.mark.skipif(not shutil.which("jq"), reason="jq makes the table")
def test_a_comparison_with_the_last_tag_is_a_table_and_fails_as_make_does(
    compare_in_ci: Callable[[str], subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    done = compare_in_ci("HEAD^")
    assert (done.returncode, done.stderr) == (2, "--silent bench AGAINST=v1\n")
    table = (tmp_path / "repository" / "out" / "bench.md").read_text()
    assert table.splitlines()[-1] == "| scenes | cpu | 3.75 | 2.5 | 1.5 | 1.5 | 1.5 |"
