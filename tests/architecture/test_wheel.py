"""What is installed, and what a source archive has: one package with its data, and nothing else."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from phrasebox.pipeline import __version__
from phrasebox.pipeline.demo.photographs import FOLDER as PHOTOGRAPHS
from phrasebox.stages.model.catalog import CATALOG
from tests.architecture.source import PACKAGES, ROOT, modules

SOURCES = {".ci", "phrasebox", "benchmarks", "configs", "docs", "tests"}
FILES = {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "Makefile"}

PUBLIC = [path for path in (ROOT / "phrasebox").rglob("*.py") if not path.is_symlink()]
"""The modules of the public names; what is below the links is not among them."""


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a source archive, and the wheel that is built from it. Their source is a copy with its links."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    ignored = shutil.ignore_patterns("__pycache__")
    for name in (*PACKAGES, *SOURCES):
        shutil.copytree(ROOT / name, source / name, ignore=ignored, symlinks=True)
    for name in FILES:
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    return out


@pytest.fixture(scope="module")
def wheel(archives: Path) -> Path:
    [built] = archives.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_it_holds_every_module(names: set[str]) -> None:
    metadata = f"phrasebox-{__version__}.dist-info"
    assert {name.split("/")[0] for name in names} == {"phrasebox", metadata}
    doors = {path.relative_to(ROOT).as_posix() for path in PUBLIC}
    ours = doors | {f"phrasebox/{path}" for path in modules()}
    assert {name for name in names if name.endswith(".py")} == ours
    assert "phrasebox/py.typed" in names
    unwanted = tuple(
        f"phrasebox/stages/model/weights/{name}" for name in ("photo", "generic")
    )  # not for everyone
    others = names - doors
    assert not [
        name for name in others if name.startswith(unwanted) or "test" in name or "__pycache__" in name
    ]
    assert (ROOT / "stages" / "model" / "weights" / "photo" / "model.safetensors").is_file()


def test_a_source_archive_holds_the_package_once_without_links(archives: Path) -> None:
    [built] = archives.glob("*.tar.gz")
    with tarfile.open(built) as archive:
        members = {member.name.partition("/")[2]: member for member in archive.getmembers()}
    tops = {name.split("/")[0] for name in members}
    assert tops - {".gitignore"} == SOURCES | FILES | {"PKG-INFO"}
    assert all(member.isfile() for member in members.values())
    assert {f"phrasebox/{path}" for path in modules()} <= members.keys()


def test_the_data_is_in_it(names: set[str]) -> None:
    assert {
        "phrasebox/stages/phrases/words.txt",
        "phrasebox/pipeline/export/chat/questions/json.yaml",
    } <= names
    for folder in ("templates", "static"):
        there = {
            f"phrasebox/{path.relative_to(ROOT).as_posix()}"
            for path in (ROOT / "pipeline" / "viewer" / folder).iterdir()
        }
        assert there
        assert there <= names
    photographs = {path.relative_to(ROOT).as_posix() for path in PHOTOGRAPHS.iterdir() if path.is_file()}
    assert len([name for name in photographs if name.endswith(".jpg")]) >= 12
    assert photographs <= names
    for key, entry in CATALOG.items():
        files = {f"phrasebox/stages/model/weights/{key}/{name}" for name in entry.files}
        assert files <= names if entry.in_wheel else not files & names


def test_the_console_script_and_the_licence(wheel: Path) -> None:
    folder = f"phrasebox-{__version__}.dist-info"
    with zipfile.ZipFile(wheel) as archive:
        entries = archive.read(f"{folder}/entry_points.txt").decode()
        assert "phrasebox = phrasebox.pipeline.commands.cli:main" in entries
        assert "Requires-Python: >=3.11" in archive.read(f"{folder}/METADATA").decode()
        assert f"{folder}/licenses/LICENSE" in archive.namelist()


@pytest.mark.slow
def test_an_empty_environment_installs_the_wheel_and_runs_the_demo(wheel: Path, tmp_path: Path) -> None:
    """As a user does it: pip takes every dependency from the index, and nothing of the repository is in reach."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    subprocess.run([str(tmp_path / "venv/bin/pip"), "install", "--quiet", str(wheel)], check=True)
    out = tmp_path / "out"
    command = [str(tmp_path / "venv/bin/phrasebox"), "demo", "--out", str(out), "--scenes", "6"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (out / "evaluation.json").is_file()
    assert "the photographs are left out" in done.stdout
