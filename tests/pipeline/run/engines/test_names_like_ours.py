"""A folder whose modules have the names of our folders: Python looks there first, in the driver and in workers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pipeline.light import ROOT, rows_of

PROGRAM = """
import phrasebox
from importlib.metadata import entry_points

phrasebox.Locator, phrasebox.open_dataset, phrasebox.RegionStream
next(iter(entry_points(group="console_scripts", name="phrasebox"))).load()()
"""


def somebodys(folder: Path) -> Path:
    """A folder with a `pipeline.py`, `stages/` and `configs/` of which each raises where it is imported."""
    for name in ("pipeline.py", "stages/__init__.py", "configs/__init__.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("raise RuntimeError(__file__)\n")
    return folder


@pytest.mark.parametrize(
    "engine", ["inline", pytest.param("ray", marks=[pytest.mark.ray, pytest.mark.slow])]
)
def test_phrasebox_is_imported_and_runs(engine: str, scenes_folder: Path, tmp_path: Path) -> None:
    folder = somebodys(tmp_path / "project")
    images = ["--images", str(scenes_folder / "images"), "--limit", "3"]
    arguments = [str(scenes_folder / "captions.jsonl"), *images, "--model", "demo", "--engine", engine]
    places = [str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "run", *arguments, "--out", "out"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, places))},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert [row["error"] for row in rows_of(folder / "out")] == [None] * 3
