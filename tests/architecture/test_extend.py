"""Packages that add kinds and verbs, as docs/how-to/extend.md says, and a repository without some of its own."""

import json
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from tests.architecture.source import ROOT, declare, entry_points
from tests.build.datasets import manifest_of
from tests.pipeline.light import rows_of

PROGRAM = """
import contextlib, io, json, sys
from phrasebox.pipeline.commands.cli import main

for arguments in json.loads(sys.argv[1]):
    out, err, code = io.StringIO(), io.StringIO(), 0
    sys.argv = ["phrasebox", *arguments]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
    print(json.dumps([code, out.getvalue(), err.getvalue()]), flush=True)
"""

RUN = "run scenes/captions.jsonl --images scenes/images --model demo --limit 3"


def phrasebox(folder: Path, places: list[Path], *commands: str) -> list[tuple[int, str, str]]:
    """Exit code, output and errors of commands in one process, which imports from `places` before anything else."""
    paths = [*map(str, places), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps([command.split() for command in commands])],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "COLUMNS": "200"},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [(code, out, err) for code, out, err in map(json.loads, done.stdout.splitlines())]


def test_what_is_installed_is_what_pyproject_says() -> None:
    """Otherwise a new kind is unknown, and one that moved is looked for at its old place."""
    installed = {
        group: {point.name: point.value for point in metadata.entry_points(group=group)}
        for group in entry_points()
    }
    assert installed == entry_points(), "pip install -e . again"


PLUG_IN = ROOT / "tests" / "plug_in"
"""The package of docs/how-to/extend.md."""


def test_the_page_prints_the_package() -> None:
    page = (ROOT / "docs" / "how-to" / "extend.md").read_text()
    blocks = re.findall(r"^`([^`\n]+)`\n\n```\w+\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    files = [path for path in PLUG_IN.rglob("*") if path.suffix in {".py", ".toml"}]
    assert dict(blocks) == {path.relative_to(PLUG_IN).as_posix(): path.read_text() for path in files}


def test_the_package_and_its_page_stand_on_the_public_names() -> None:
    page = (ROOT / "docs" / "how-to" / "extend.md").read_text()
    texts = [page, *(path.read_text() for path in PLUG_IN.rglob("*.py"))]
    places = {
        place for text in texts for place in re.findall(r"^(?:from|import) (phrasebox[\w.]*)", text, re.M)
    }
    assert {place for place in places if not place.startswith("phrasebox_bright")} == {
        "phrasebox",
        "phrasebox.extend",
        "phrasebox.testing",
    }


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the package is installed into."""
    source = tmp_path_factory.mktemp("source") / "plug_in"
    target = tmp_path_factory.mktemp("target")
    shutil.copytree(PLUG_IN, source, ignore=shutil.ignore_patterns("__pycache__"))
    options = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--target", str(target)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(source)], check=True)
    return target


@pytest.mark.slow
def test_the_tests_of_the_package_pass(installed: Path, tmp_path: Path) -> None:
    """Of the installed package: nothing else of it is in reach."""
    shutil.copytree(PLUG_IN / "tests", tmp_path / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    paths = [str(installed), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "5 passed" in done.stdout


@pytest.mark.slow
def test_a_package_adds_kinds_and_a_verb(installed: Path, scenes_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "scenes").symlink_to(scenes_folder)
    image = next((scenes_folder / "images").iterdir()).name
    (tmp_path / "some.bars").write_text(f"scenes/images/{image}|a red house\nno bar")
    *works, unknown = phrasebox(
        tmp_path,
        [installed],
        f"{RUN} --out out --set explain.kind=bright --set explain.floor=0.1",
        "export out --format box_lines --out lines",
        "heads out",
        "--help",
        "export --list",
        "run some.bars --out middle --set source.kind=middle",
        "export middle --format yolo --out yolo",
        "finetune out --out tuned --model demo --recipe near --set batch_size=2",
        "run scenes/captions.jsonl --set explain.kind=brigth",
    )
    assert [code for code, _, _ in works] == [0] * len(works), works
    _, _, heads, shown, formats, *_ = [out for _, out, _ in works]
    rows = {row["error"]: row["annotations"] for row in rows_of(tmp_path / "middle")}
    assert {error: [region["phrase"] for region in regions] for error, regions in rows.items()} == {
        None: ["red house"],
        "bad_row": [],
    }
    assert manifest_of(tmp_path / "out")["config"]["explain"]["floor"] == 0.1
    assert len((tmp_path / "lines" / "train.jsonl").read_text().splitlines()) == 3
    assert "recipe near" in (tmp_path / "tuned" / "model" / "README.md").read_text()
    nouns = {region["head"] for row in rows_of(tmp_path / "out") for region in row["annotations"]}
    assert {line.split()[1] for line in heads.splitlines()} <= nouns
    assert "Count the head nouns of a dataset. (phrasebox-bright)\n" in shown
    assert "box_lines (phrasebox-bright): SPLIT.jsonl" in formats
    assert "did you mean bright? kinds: grad_eclip, " in unknown[2]
    assert "bright (phrasebox-bright)" in unknown[2]


@pytest.mark.slow
def test_what_does_not_load_is_one_line_and_only_where_it_is_used(tmp_path: Path) -> None:
    (tmp_path / "broken_verb.py").write_text('"""Never\nends')
    kinds = {
        "phrasebox.explainers": {"absent": "nowhere:Absent"},
        "phrasebox.readers": {"odd": "broken_verb:Odd"},
    }
    verbs = {"broken": "broken_verb:run", "gone": "nowhere.verb:run"}
    exporters = {"both": "nowhere:Both", "coco": "nowhere:Coco"}
    declare(
        tmp_path,
        "phrasebox-broken",
        {**kinds, "phrasebox.commands": verbs, "phrasebox.exporters": exporters},
    )
    declare(tmp_path, "phrasebox-rival", {"phrasebox.exporters": {"both": "nowhere:Both"}})
    for name in ("a.jsonl", "a.odd"):
        (tmp_path / name).write_text("{}\n")
    shown, formats, *refused = phrasebox(
        tmp_path,
        [tmp_path],
        "--help",
        "export --list",
        "run a.jsonl --set explain.kind=absent",
        "run a.odd --model demo",
        "export out --format both --out lines",
        "broken",
        "gone",
    )
    assert shown[0] == formats[0] == 0
    assert "cannot be used: no module nowhere.verb" in shown[1]
    assert "\ncoco: " in f"\n{formats[1]}", "ours goes before theirs"
    for (code, out, err), name in zip(refused, ("absent", "odd", "both", "broken", "gone"), strict=True):
        assert (code, out) == (2, "")
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert name in err
        assert "phrasebox-broken" in err
    assert "phrasebox-rival" in refused[2][2]
