"""Real ranks with real workers, and memory over a long stream."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture.source import ROOT
from tests.build.files import read_json
from tests.pipeline.load.conftest import expected
from tests.synthetic import write_synthetic

FEW_CORES = ("-W", "ignore:This DataLoader will create:UserWarning")
"""Torch warns where a machine has fewer cores than a loader has workers."""

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

RANK = """
import json, sys
import torch.distributed as dist
from torch.utils.data import DataLoader
from phrasebox.pipeline.load import Contents, RegionStream, collate_regions

if __name__ == "__main__":
    folder, meeting, out, rank = sys.argv[1:]
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=int(rank), world_size=2)
    found = {}
    for even in ("no", "drop"):
        stream = RegionStream(folder, Contents(images=False, grid_hw=(7, 7)), seed=5, shuffle_rows=30, even=even)
        assert (stream.rank, stream.world_size) == (int(rank), 2)
        loader = DataLoader(stream, batch_size=8, num_workers=2, collate_fn=collate_regions, persistent_workers=True)
        found[even] = []
        for epoch in (0, 1, 0):
            stream.set_epoch(epoch)
            found[even].append([batch["sample_ids"] for batch in loader])
            dist.barrier()
    open(out, "w").write(json.dumps(found))
    dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_ranks_of_gloo_with_two_workers_each(folder: Path, tmp_path: Path) -> None:
    program = tmp_path / "rank.py"
    program.write_text(RANK)
    environment = {**ENVIRONMENT, "RANK": "7", "WORLD_SIZE": "9"}  # the group knows better
    outs = [tmp_path / f"{rank}.json" for rank in range(2)]
    command = [sys.executable, "-W", "error", *FEW_CORES, program, folder, tmp_path / "meeting"]
    ranks = [
        subprocess.Popen(
            [*map(str, [*command, out, rank])], env=environment, stderr=subprocess.PIPE, text=True
        )
        for rank, out in enumerate(outs)
    ]
    for process in ranks:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    wanted = sorted(expected(folder))
    results = [read_json(out) for out in outs]
    for even in ("no", "drop"):
        orders = [[[name for batch in epoch for name in batch] for epoch in rank[even]] for rank in results]
        for first, second in zip(*orders, strict=True):
            assert len({*first, *second}) == len(first) + len(second)
            if even == "no":
                assert sorted(first + second) == wanted
            else:
                assert len(first) == len(second) == len(wanted) // 2
        for rank in orders:
            assert rank[0] == rank[2] != rank[1]


STREAM = """
import resource, sys
from phrasebox.pipeline.load import Contents, RegionStream

def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

stream = RegionStream(sys.argv[1], Contents(grid_hw=(14, 14), square_px=16), shuffle_rows=100, where="score > 0.05")
marks = []
for epoch in range(5):
    stream.set_epoch(epoch)
    rows = sum(1 for _ in stream)
    marks.append(peak_mb())
print(rows, *marks)
"""


@pytest.mark.slow
def test_memory_stays_flat(tmp_path: Path) -> None:
    """Five times through the images, in windows of a sixth of them."""
    folder = write_synthetic(tmp_path / "dataset", 600, rows_per_file=200, embed_images=True)
    told = subprocess.check_output([sys.executable, "-c", STREAM, folder], env=ENVIRONMENT, text=True)
    rows, first, *later = map(float, told.split())
    assert rows > 450
    assert later[-1] - first < 15, told
