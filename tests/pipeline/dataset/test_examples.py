"""The examples in the docstrings of the packages, run as they are."""

import inspect
import shutil
import textwrap
from pathlib import Path
from types import ModuleType

import open_clip
import pytest
import torch

import phrasebox.pipeline.dataset
import phrasebox.pipeline.export
import phrasebox.pipeline.load
from tests.build.datasets import Json, manifest_of
from tests.build.files import write_json
from tests.factories import tiny_clip


def code_of(package: ModuleType) -> str:
    """The indented lines of its docstring."""
    lines = (inspect.getdoc(package) or "").splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("    "))
    last = max(number for number, line in enumerate(lines) if line.startswith("    "))
    return textwrap.dedent("\n".join(lines[first : last + 1]))


@pytest.fixture
def out(synthetic_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The dataset in the folder that the examples name, with scores that are probabilities."""
    dataset = shutil.copytree(synthetic_dataset, tmp_path / "out")
    manifest = manifest_of(dataset)
    write_json(dataset / "dataset.json", manifest | {"calibration": "0" * 64})
    monkeypatch.chdir(tmp_path)


def test_a_dataset_is_filtered_and_exported(out: None, capsys: pytest.CaptureFixture[str]) -> None:
    exec(code_of(phrasebox.pipeline.dataset), {})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("500 images, ")
    assert len(lines) == 1 + int(lines[0].split()[2]) > 1
    exec(code_of(phrasebox.pipeline.export), {})
    assert "{'rows': 500, 'samples': {'train': " in capsys.readouterr().out
    assert len([*Path("coco/annotations").iterdir()]) == 2


def test_a_model_is_trained(inline_dataset: Path) -> None:
    code = code_of(phrasebox.pipeline.load)
    assert len([line for line in code.splitlines() if line]) <= 40
    names: Json = {}
    exec(code, names)
    torch.manual_seed(0)
    model = tiny_clip(spread=1.0)
    losses = list(names["train"](inline_dataset, model, open_clip.get_tokenizer("ViT-B-16"), 8, 6, 1e-3))
    assert len(losses) >= 8 * 2
    first = sum(losses[:4]) / 4
    last = sum(losses[-4:]) / 4
    assert last < first / 2, losses
