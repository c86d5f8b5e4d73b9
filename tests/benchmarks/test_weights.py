"""Models on the bundled photographs: the table of `make weights`."""

from pathlib import Path

import open_clip
import pytest
import yaml
from PIL import Image
from safetensors.torch import save_file

from benchmarks import weights
from tests.architecture.source import ROOT
from tests.factories import tiny_clip
from tests.stages.model.saved import save_json


@pytest.mark.slow
def test_a_checkpoint_gets_a_row_and_a_picture_and_a_missing_one_does_not_cost_it(tmp_path: Path) -> None:
    folder = tmp_path / "my-clip"
    folder.mkdir()
    save_json(folder).rename(folder / "open_clip_config.json")
    state = {key: value.contiguous() for key, value in tiny_clip().state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    with pytest.raises(SystemExit, match="nothing-here"):
        weights.main([f"{tmp_path / 'nothing-here'}/", f"{folder}/", "--out", str(tmp_path / "out")])
    head, _, row = (tmp_path / "out" / "table.md").read_text().splitlines()
    assert row.startswith(f"| {folder}/ | 0.")
    assert row.count("|") == head.count("|")
    assert row.count(" (0.") == len(weights.COLUMNS) + 1
    [picture] = (tmp_path / "out").glob("*my-clip/overlays.png")
    with Image.open(picture) as sheet:
        assert sheet.width > 1000


def test_the_workflow_names_weights_of_open_clip() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "weights.yml").read_text())
    [models] = (
        step["env"]["DEFAULTS"].split() for step in workflow["jobs"]["weights"]["steps"] if "env" in step
    )
    assert len(models) == 4
    assert {tuple(model.split("/")) for model in models} <= set(open_clip.list_pretrained())


def test_the_workflow_of_calibrations_names_ten_weights_of_open_clip() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "calibrations.yml").read_text())
    [models] = (
        step["env"]["DEFAULTS"].split()
        for step in workflow["jobs"]["calibrations"]["steps"]
        if "env" in step
    )
    assert len(models) == 10
    assert {tuple(model.split("/")) for model in models} <= set(open_clip.list_pretrained())
