"""What goes wrong around the ray engine's workers: they die, their code differs, the disk is full."""

import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.soak.cluster import SmallCluster
from phrasebox.pipeline import __version__
from phrasebox.pipeline.config.run_config import EngineConfig
from phrasebox.pipeline.run.engines.ray_cluster import connected
from phrasebox.stages.contract.errors import ConfigError
from tests.pipeline.light import (
    ROOT,
    answers_by_node,
    ended,
    light_command,
    light_run,
    rows_of,
    write_captions,
)

pytestmark = pytest.mark.ray


@pytest.mark.slow
def test_a_sample_that_kills_its_worker_becomes_a_row_and_its_neighbours_are_unharmed(tmp_path) -> None:
    """c7 always kills, c50 once: its batch is tried one by one, and it passes."""
    captions = ["cat"] * 100
    captions[7] = "die"
    captions[50] = "die 1"
    report = light_run(write_captions(tmp_path, captions), tmp_path / "out")
    rows = {row["sample_id"]: row for row in rows_of(tmp_path / "out")}
    assert len(rows) == 100
    assert (report["read"], report["deaths"]) == (100, 5)
    assert {name for name, row in rows.items() if row["error"] is not None} == {"c7"}
    assert rows["c7"]["error"] == "worker_died"
    assert rows["c7"]["error_detail"].startswith("captions.jsonl:8: 3 workers died at it in phrases")
    assert all(row["phrase_count"] == 1 for name, row in rows.items() if name != "c7")
    assert int((tmp_path / "c7").read_text()) == 4, "once with its batch, three times alone"
    assert int((tmp_path / "c50").read_text()) == 1


@pytest.mark.slow
def test_an_input_that_kills_its_readers_ends_the_run_with_its_name(tmp_path) -> None:
    captions = write_captions(tmp_path, ["cat"] * 60 + ["die here"] + ["cat"] * 19)
    done = ended(light_command(captions, tmp_path / "out"))
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("InputError")]
    assert line == (
        "InputError: 10 workers died while they read captions.jsonl, out of memory or by a fault in a library"
    )


def in_small_disk(script: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script with mounts of its own, which go away with it; needs no rights beyond user namespaces."""
    return ended(["unshare", "-rm", "bash", "-ec", script])


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(tmp_path) -> None:
    captions = write_captions(tmp_path, [f"cat {i}" for i in range(200)])
    out = tmp_path / "out"
    copy = tmp_path / "copy"
    out.mkdir()
    wanted = shlex.join(light_command(captions, out))
    script = f"""
        mount -t tmpfs -o size=160k none {out}
        {wanted} > {tmp_path}/first 2>&1 && exit 9
        mount -o remount,size=20m {out}
        {wanted} > {tmp_path}/second 2>&1
        cp -r {out} {copy}
    """
    done = in_small_disk(script)
    first = (tmp_path / "first").read_text().splitlines()
    assert first == [
        f"OutputError: cannot write to {out}: No space left on device. Finished rows are kept: fix that, and the "
        "same command resumes the run"
    ]
    assert done.returncode == 0, (done.stderr, (tmp_path / "second").read_text())
    assert len(rows_of(copy)) == 200
    report = json.loads((tmp_path / "second").read_text().splitlines()[-1])
    assert report["read"] == 200
    assert report["explain"] < 200, "what was finished is not done again"


def from_decoy(decoy: Path, wanted: list[str], before: str = "") -> subprocess.CompletedProcess[str]:
    """Run `light_command` in a folder as an installed script would, which does not import what is there."""
    script = decoy.parent / "bin/run.py"
    script.parent.mkdir()
    script.write_text(f"from tests.pipeline import light\n{before}\nlight._main()\n")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return ended([sys.executable, str(script), *wanted[3:]], cwd=decoy, env=environment)


@pytest.mark.slow
def test_a_module_named_like_a_library_where_the_run_is_started_does_no_harm(tmp_path) -> None:
    wanted = light_command(write_captions(tmp_path, ["cat"] * 3), tmp_path / "out")
    (tmp_path / "decoy").mkdir()
    (tmp_path / "decoy/pyarrow.py").write_text("raise RuntimeError(__file__)\n")
    done = from_decoy(tmp_path / "decoy", wanted)
    assert done.returncode == 0, done.stderr
    assert len(rows_of(tmp_path / "out")) == 3


@pytest.mark.slow
def test_workers_with_other_code_are_refused_before_any_work(tmp_path) -> None:
    """Here because Ray was started in the folder of a decoy, which stands first in what its workers import."""
    wanted = light_command(write_captions(tmp_path, ["cat"] * 3), tmp_path / "out")
    ignored = shutil.ignore_patterns("*.safetensors", "__pycache__")
    shutil.copytree(ROOT / "phrasebox", tmp_path / "decoy/phrasebox", ignore=ignored)
    with (tmp_path / "decoy/phrasebox/stages/contract/records.py").open("a") as file:
        file.write("\n# an older version\n")
    start = "import ray; ray.init(address='local', num_cpus=8, logging_level='ERROR', log_to_driver=False)"
    done = from_decoy(tmp_path / "decoy", wanted, start)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("WorkerCodeMismatch")]
    assert line.startswith("WorkerCodeMismatch: the worker on ")
    assert f" has {__version__}, the driver has {__version__}, and the code differs. Install " in line
    assert not list((tmp_path / "out/data").iterdir())


@pytest.mark.slow
def test_a_node_that_does_not_see_the_output_is_named_before_any_work(tmp_path) -> None:
    """As where the folder lies on the driver's own disk, which here only the driver has mounted."""
    captions = write_captions(tmp_path, ["cat"])
    disk = tmp_path / "disk"
    disk.mkdir()
    cluster = SmallCluster(nodes=1)
    try:
        wanted = shlex.join(light_command(captions, disk / "out", address=cluster.address))
        done = in_small_disk(f"mount -t tmpfs none {disk}; exec {wanted}")
    finally:
        cluster.close()
    assert done.returncode == 2
    assert done.stderr.startswith("ConfigError: output.path: the worker on ")
    assert done.stderr.endswith(f" does not see {disk}/out; all nodes need to share it\n")


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nonsense"])
def test_a_cluster_that_is_not_there_is_one_line(address, tmp_path) -> None:
    with (
        pytest.raises(
            ConfigError, match=f"^engine.address: cannot reach a Ray cluster at '{address}'"
        ) as refused,
        connected(EngineConfig(kind="ray", address=address), tmp_path),
    ):
        pass
    assert "\n" not in str(refused.value)


@pytest.mark.slow
def test_on_a_cluster_the_model_runs_where_its_resource_is_and_the_pool_grows_up_to_it(tmp_path) -> None:
    """Five workers would be allowed; two nodes have the resource for one each at a time."""
    captions = write_captions(tmp_path, ["cat"] * 400)
    marks = tmp_path / "workers"
    marks.mkdir()
    cluster = SmallCluster(nodes=2)
    try:
        settings = {"address": cluster.address, "explain_workers": "1-5", "model_resources": {"model": 1}}
        report = light_run(captions, tmp_path / "out", seconds=0.05, marks=marks, **settings)
    finally:
        cluster.close()
    assert report["explain"] == len(rows_of(tmp_path / "out")) == 400
    assert len([answers for answers in answers_by_node(marks).values() if answers]) == 2


@contextlib.contextmanager
def killed(wanted: list[str], out: Path, shards: int = 2) -> Iterator[None]:
    """Start a run, do what the block does when it has written so many shards, and kill its driver."""
    process = subprocess.Popen(wanted, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(list((out / "data").glob("*.parquet"))) < shards:
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.02)
    try:
        yield
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_an_input_smaller_than_the_pool_is_nothing_to_warn_of(tmp_path) -> None:
    wanted = light_command(write_captions(tmp_path, ["cat"] * 3), tmp_path / "out", explain_workers=2)
    assert subprocess.run(wanted, capture_output=True, text=True, check=True).stderr == ""
    assert len(rows_of(tmp_path / "out")) == 3


@pytest.mark.slow
def test_what_a_killed_run_does_again_is_bounded(tmp_path) -> None:
    """What the model had answered and no finished file holds: a file that fills, what is written, a batch in hand.

    Parts of the input whose rows are all there are not read again.
    """
    captions = write_captions(tmp_path, ["cat"] * 600)
    out = tmp_path / "out"
    marks = tmp_path / "workers"
    marks.mkdir()
    wanted = light_command(captions, out, seconds=0.02, marks=marks)
    with killed(wanted, out, shards=12):
        while len(list(out.glob(".phrasebox/journal-0001/*.parquet"))) < 3:
            time.sleep(0.05)
    reads = tmp_path / "reads"
    first = len(reads.read_text().split())
    parts = 600 // 40
    assert light_run(captions, out, seconds=0.02, marks=marks)["read"] == 600
    assert len(rows_of(out)) == 600
    print(f"{len(reads.read_text().split()) - first} of {parts} parts of the input read again")
    assert len(reads.read_text().split()) - first < parts
    answered = answers_by_node(marks).total()
    print(f"{answered - 600} of 600 answered twice")
    assert 0 <= answered - 600 <= 160
