"""The Ray engine with a GPU that Ray counts and the worker's torch simulates."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from phrasebox.pipeline.config.run_config import RunConfig
from phrasebox.pipeline.run.run import run
from tests.build.datasets import Json, manifest_of
from tests.build.files import write_json
from tests.conftest import SCENES
from tests.pipeline.light import assert_alike, rows_of


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_on_a_gpu_gives_the_rows_of_a_cpu_also_where_the_gpu_fails_once(
    scenes_config: Json, tmp_path: Path
) -> None:
    here = tmp_path / "here"
    gpu_rows = tmp_path / "there"
    fails = tmp_path / "fails"
    # Without a calibration there is no first look, which would meet the fault. In bf16 a GPU also rounds to TF32.
    model = {**scenes_config["model"], "precision": "fp32"}
    scenes_config = {**scenes_config, "model": model, "regions": {"calibration": "none"}}
    run(RunConfig.model_validate({**scenes_config, "output": {"path": str(here)}}))
    config = {**scenes_config, "engine": {"kind": "ray"}, "output": {"path": str(gpu_rows)}}
    fails.touch()
    write_json(tmp_path / "run.json", {"config": config, "fails": str(fails)})
    program = f"from tests.cuda.on_ray import main; main({str(tmp_path / 'run.json')!r})"
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=1500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    note = "a worker was started again: the GPU reports a fault: CUDA error: an illegal memory access was encountered"
    assert note in done.stdout
    assert not fails.exists()
    manifest = manifest_of(gpu_rows)
    assert manifest["stages"]["explain"]["devices"] == {"cuda:0 simulated": SCENES}
    assert_alike(rows_of(gpu_rows), rows_of(here))
