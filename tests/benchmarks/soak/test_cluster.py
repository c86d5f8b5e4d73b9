"""The processes of a run, by kind."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from benchmarks.soak.cluster import WORKERS, workers
from tests.pipeline.light import light_command, write_captions


@pytest.mark.ray
@pytest.mark.slow
def test_each_kind_of_worker_is_seen_by_its_title(tmp_path: Path) -> None:
    captions = write_captions(tmp_path, [f"cat {number}" for number in range(400)])
    command = light_command(captions, tmp_path / "out", seconds=0.01)
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seen = set[str]()
    while driver.poll() is None:
        seen |= {kind for kind in WORKERS if workers(kind)}
        time.sleep(0.01)
    assert driver.returncode == 0
    assert seen == set(WORKERS)
