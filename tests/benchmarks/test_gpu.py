"""Every line of `make gpu`, on the CPU and with as little to measure as there can be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import gpu


@pytest.mark.slow
def test_a_device_is_measured_and_compared_with_the_cpu(tmp_path: Path) -> None:
    options = ["--device", "cpu", "--smallest", "--engine", "inline", "--out", str(tmp_path)]
    assert gpu.main(options) == 0
    tables = {table["id"]: table for table in json.loads((tmp_path / "gpu.json").read_text())["tables"]}
    assert list(tables) == ["gpu-runs", "gpu-parity", "gpu-kernels"]
    assert [row[:2] for row in tables["gpu-runs"]["rows"]] == [
        ["ViT-S-32-alt", 1.0],
        ["ViT-S-32-alt", 5.0],
        ["photo", 1.0],
        ["photo", 5.0],
    ]
    assert all(cost > 0 for row in tables["gpu-runs"]["rows"] for cost in row[4:])
    assert tables["gpu-parity"]["rows"][0] == ["fp32", 0.0, 0.0, pytest.approx(1.0), 1.0]
    clock, whole, *operations = tables["gpu-kernels"]["rows"]
    assert clock[1] > 0
    assert whole[1] > operations[0][1] > 0
    assert "aten::" in operations[0][0]
    assert (tmp_path / "gpu.md").read_text().count("cpu, ") == 3


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_without_a_card_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        gpu.main(["--out", str(tmp_path)])
    assert "--device cpu --smallest" in capsys.readouterr().err
