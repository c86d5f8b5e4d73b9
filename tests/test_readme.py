"""The Python snippets of the README run as they are printed there."""

import re
import shutil
from pathlib import Path
from typing import Any

import open_clip
import pytest
from PIL import Image

from pipeline.notebook import Located
from tests.factories import tiny_clip

SECTION = "## From Python\n"


def snippets() -> list[str]:
    """The code blocks of the section, in order."""
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    section = text[text.index(SECTION) + len(SECTION) :].partition("\n## ")[0]
    return re.findall(r"^```python\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)


@pytest.fixture
def reader(scenes_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of somebody who follows the README, with its files and a small model in place of a download."""

    def create(name: str, pretrained: str) -> tuple[Any, None, None]:
        assert pretrained in open_clip.list_pretrained_tags_by_model(name)
        return tiny_clip(), None, None

    monkeypatch.setattr(open_clip, "create_model_and_transforms", create)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(scenes_folder, tmp_path, dirs_exist_ok=True)
    shutil.copy(next((tmp_path / "images").iterdir()), "photo.jpg")
    return tmp_path


def test_the_snippets_run(reader: Path, capsys: pytest.CaptureFixture[str]) -> None:
    find, make_and_choose = snippets()
    names: dict[str, Any] = {}
    exec(find, names)
    located = names["regions"]
    assert isinstance(located, Located)
    assert located.heat_maps.shape[0] == 2
    assert isinstance(located.picture(), Image.Image)
    names = {}
    exec(make_and_choose, names)
    assert (reader / "out" / "dataset.json").is_file()
    best = names["best"].to_pylist()
    printed = capsys.readouterr().out.splitlines()[-len(best) :]  # after what the run says
    assert len(printed) == 5
    assert all(line.startswith(region["phrase"]) for region, line in zip(best, printed, strict=True))
