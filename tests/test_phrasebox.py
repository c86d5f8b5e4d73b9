"""`import phrasebox`: the public names, and that nothing heavy is loaded before one is used."""

import inspect
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import phrasebox
import phrasebox.pipeline
from phrasebox.pipeline.load import RegionStream
from tests.architecture.source import ROOT


def test_every_public_name_is_there_and_documented() -> None:
    assert phrasebox.__version__ == phrasebox.pipeline.__version__
    assert phrasebox.RegionStream is RegionStream
    for name in set(phrasebox.__all__) - {"__version__"}:
        assert inspect.getdoc(getattr(phrasebox, name)), name
        assert name in (phrasebox.__doc__ or ""), name
    assert set(phrasebox.__all__) <= set(dir(phrasebox))
    with pytest.raises(AttributeError, match="no attribute 'Locater'"):
        phrasebox.Locater  # noqa: B018


def test_its_example_runs(scenes_folder, tmp_path, monkeypatch, capsys) -> None:
    """With drawn scenes in the place of photographs, and their model."""
    monkeypatch.chdir(tmp_path)
    lines = (scenes_folder / "captions.jsonl").read_text().splitlines()[:2]
    Path("captions.jsonl").write_text("\n".join(lines))
    shutil.copytree(scenes_folder / "images", "photos")
    shutil.copy(next(Path("photos").iterdir()), "photo.jpg")
    example = re.findall(r"^    (.*)$", str(phrasebox.__doc__), re.MULTILINE)
    exec("\n".join(example).replace('photo"', 'demo"'), {})
    assert Path("regions.png").is_file()
    assert "'phrase': " in capsys.readouterr().out


def test_importing_it_loads_nothing_heavy() -> None:
    code = "import sys, phrasebox; print({'torch', 'ray', 'pyarrow', 'pydantic'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"
