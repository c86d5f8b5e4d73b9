"""The Ray engine with a GPU that Ray counts and the worker's torch simulates."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.config import RunConfig
from pipeline.run import run
from tests.conftest import SCENES

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def rows_of(dataset: Path) -> dict[int, dict[str, Any]]:
    tables = [pq.read_table(path) for path in sorted((dataset / "data").glob("*.parquet"))]
    return {row["id"]: row for table in tables for row in table.to_pylist()}


@pytest.mark.parametrize("fails", [False, True], ids=["a whole run", "a fault of the GPU"])
def test_a_run_on_a_gpu_gives_the_rows_of_a_cpu(fails: bool, scenes_config: dict[str, Any], tmp_path: Path) -> None:
    here = run(RunConfig.model_validate({**scenes_config, "output": {"path": str(tmp_path / "here")}}))
    there, marker = tmp_path / "there", tmp_path / "fails"
    config = {**scenes_config, "engine": {"kind": "ray"}, "output": {"path": str(there)}}
    if fails:
        marker.touch()
    (tmp_path / "run.json").write_text(json.dumps({"config": config, "fails": str(marker)}))
    program = f"from tests.cuda.on_ray import main; main({str(tmp_path / 'run.json')!r})"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stdout + done.stderr
    manifest = json.loads((there / "dataset.json").read_text())
    assert manifest["stages"]["explain"]["devices"] == {"cuda:0 simulated": SCENES}
    wanted, found = rows_of(Path(str(here))), rows_of(there)
    assert found.keys() == wanted.keys()
    for key, row in wanted.items():
        assert [each["phrase"] for each in found[key]["phrases"]] == [each["phrase"] for each in row["phrases"]]
        assert found[key]["error"] is None
    note = "a GPU failed, and its worker was started again: CUDA error: an illegal memory access was encountered"
    assert (note in done.stdout) == fails, done.stdout
    assert not marker.exists()
