"""Clusters whose nodes are not like the driver: a folder that only the driver has, no code, too little memory."""

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import venv
from collections.abc import Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console

from benchmarks.soak.cluster import workers
from pipeline import __version__
from pipeline.engines.ray_code import code_here, reject_other_code
from pipeline.engines.ray_ledger import TRIAL_SECONDS, Ledger
from pipeline.scenes import write_scenes
from pipeline.summary import Report, summary_table
from stages.contract.errors import WorkerCodeMismatch
from stages.write import Tally
from tests.architecture.source import declare, entry_points
from tests.build.files import write_json
from tests.pipeline.light import MB, ROOT, assert_alike, ended, light_command, rows_of, write_captions

pytestmark = pytest.mark.ray

SCENES = 10

TOKEN = "0123456789abcdef" * 4


def bare_python(folder: Path) -> Path:
    """The interpreter of a new environment that has what phrasebox needs, and not phrasebox."""
    venv.create(folder, with_pip=False)
    (packages,) = folder.glob("lib/python*/site-packages")
    # What such a file adds is not searched for further ones, by which phrasebox itself may be installed.
    (packages / "libraries.pth").write_text(
        next(path for path in sys.path if path.endswith("site-packages")) + "\n"
    )
    return folder / "bin/python"


def with_token(token: str = TOKEN) -> dict[str, str]:
    """An environment in which Ray asks for a token, as it does on every machine that has one."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {**inherited, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}


@contextlib.contextmanager
def head_of(python: Path) -> Iterator[str]:
    """A cluster of one node that was started with an interpreter, as `ray start` does; its address."""
    with tempfile.TemporaryDirectory(prefix="pb-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        options = {
            "port": "0",
            "temp-dir": folder,
            "num-cpus": "10",
            "resources": '{"model": 1}',
            "object-store-memory": "100000000",
            "include-dashboard": "false",
            "dashboard-agent-listen-port": "0",
        }
        process = subprocess.Popen(
            [
                python,
                "-m",
                "ray.scripts.scripts",
                "start",
                "--head",
                "--block",
                *(f"--{k}={v}" for k, v in options.items()),
            ],
            cwd="/",
            env={**with_token(), "RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            note = Path(folder) / "ray_current_cluster"
            while not note.exists() or not note.read_text():
                assert process.poll() is None, "the cluster does not start"
                time.sleep(0.1)
            yield note.read_text()
        finally:
            for child in [*psutil.Process(process.pid).children(recursive=True), process]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
            process.wait()


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a cluster whose one node does not have phrasebox."""
    python = bare_python(tmp_path_factory.mktemp("node") / "venv")
    imports = ended([python, "-c", "import ray, torch, spacy, pipeline"], cwd="/", env=with_token())
    assert imports.stderr.endswith("No module named 'pipeline'\n")
    with head_of(python) as address:
        yield address


EXPLAINER = """
from typing import Literal

from stages.explain.config import GradEclipConfig
from stages.explain.grad_eclip import GradEclip


class MineConfig(GradEclipConfig):
    kind: Literal["mine"] = "mine"


class Mine(GradEclip):
    config_type = MineConfig
"""


def test_a_worker_without_the_package_of_a_kind_is_refused() -> None:
    ours = code_here(("pipeline", "stages"))
    reject_other_code(ours)
    with pytest.raises(WorkerCodeMismatch, match="lacks the package phrasebox_none: install it"):
        reject_other_code(replace(ours, packages=(*ours.packages, "phrasebox_none")))


@pytest.mark.slow
def test_code_is_shipped_to_a_node_that_has_none(node, tmp_path) -> None:
    """The driver has it as a wheel lays it down, out of the node's sight; without `ship_code` that is one line.

    So it has an explainer of somebody else's package.
    """
    driver = bare_python(tmp_path / "driver")
    (packages,) = (tmp_path / "driver").glob("lib/python*/site-packages")
    for name in ("pipeline", "stages"):
        shutil.copytree(ROOT / name, packages / name, ignore=shutil.ignore_patterns("__pycache__"))
    declare(packages, "phrasebox", entry_points())
    declare(packages, "phrasebox-mine", {"phrasebox.explainers": {"mine": "mine:Mine"}})
    (packages / "mine.py").write_text(EXPLAINER)
    write_scenes(tmp_path / "scenes", SCENES, 7)
    base = {
        "input": {"kind": "jsonl", "path": "scenes/captions.jsonl", "image_root": "scenes/images"},
        "model": {"name": "demo", "threads": 1},
        "explain": {"kind": "mine"},
    }

    def run(out: str, **engine: Any) -> subprocess.CompletedProcess[str]:
        config = tmp_path / f"{out}.yaml"
        write_json(config, {**base, "engine": {"kind": "ray", **engine}, "output": {"path": out}})
        return ended([driver, "-m", "pipeline", "run", config], cwd=tmp_path, env=with_token())

    cluster = {"kind": "ray", "address": node, "explain_workers": 1, "model_resources": {"model": 1}}
    refused = run("out", **cluster)
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    assert line.startswith("error: the worker on ")
    assert (
        f" cannot import the run's code (ModuleNotFoundError: No module named 'pipeline'); the driver has "
        f"{__version__} in {packages}. Install the same wheels on every node, or set engine.ship_code=true"
        in line
    )
    done = run("out", **cluster, ship_code=True)
    assert done.returncode == 0, done.stderr
    assert run("inline", kind="inline").returncode == 0
    rows = rows_of(tmp_path / "out")
    assert len(rows) == SCENES
    assert_alike(rows, rows_of(tmp_path / "inline"))
    assert sum(len(row["annotations"]) for row in rows) > SCENES


@pytest.mark.slow
def test_a_driver_without_the_clusters_token_is_told_of_it(node, tmp_path) -> None:
    wanted = light_command(write_captions(tmp_path, ["cat"]), tmp_path / "out", address=node)
    done = ended(wanted, env=with_token("f" * 64))
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        f"ConfigError: engine.address: cannot reach a Ray cluster at '{node}'. If it has a token, "
    )
    assert "RAY_AUTH_MODE=token" in line


@pytest.mark.slow
def test_a_home_that_cannot_hold_rays_token_is_one_line(tmp_path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    wanted = light_command(write_captions(tmp_path, ["cat"]), tmp_path / "out")
    done = ended(wanted, env={**environment, "HOME": "/proc/none"})
    assert done.returncode == 2
    assert done.stderr == (
        "ResourceError: Ray does not start on this machine: [Errno 2] No such file or directory: '/proc/none'\n"
    )


class MemoryOfCaptionWorkers:
    """A container's limit for a run, as Ray reads it from the kernel's files, which here a thread writes.

    Counted is what caption workers have, so that neither what else runs on the machine nor what Ray itself needs makes
    a difference. All that follows is Ray's: its monitor, its choice of workers, its kill.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        total = min(6_000_000_000, psutil.virtual_memory().total)
        folder.mkdir()
        (folder / "memory.max").write_text(f"{total}\n")
        (folder / "memory.stat").write_text("inactive_file 0\nactive_file 0\n")
        self._write(0)
        self.settings = {
            "RAY_memory_usage_threshold": str(limit / total),
            "RAY_memory_monitor_refresh_ms": "100",
        }
        self.most = 0
        self.workers: set[int] = set()

    def run(self, wanted: list[str]) -> subprocess.CompletedProcess[str]:
        script = f"mount --bind {self.folder} /sys/fs/cgroup; exec {shlex.join(wanted)}"
        process = subprocess.Popen(
            ["unshare", "-rm", "bash", "-ec", script],
            cwd=ROOT,
            env={**os.environ, **self.settings},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        done = threading.Event()
        watch = threading.Thread(target=self._watch, args=(process.pid, done))
        watch.start()
        try:
            out, told = process.communicate()
        finally:
            done.set()
            watch.join()
            process.kill()
        return subprocess.CompletedProcess(wanted, process.returncode, out, told)

    def _watch(self, pid: int, done: threading.Event) -> None:
        while not done.wait(0.05):
            used = 0
            with contextlib.suppress(psutil.NoSuchProcess):
                for worker in workers("caption worker", pid):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        memory = worker.memory_info()
                        used += memory.rss - memory.shared
                        self.workers.add(worker.pid)
            self.most = max(self.most, used)
            self._write(used)

    def _write(self, used: int) -> None:
        (self.folder / "new").write_text(f"{used}\n")
        (self.folder / "new").rename(self.folder / "memory.current")


@pytest.mark.slow
@pytest.mark.parametrize("alone_mb", [60, 700], ids=["a batch", "a sample"])
def test_what_takes_too_much_memory_is_taken_one_by_one(alone_mb, tmp_path) -> None:
    """Ten samples of 60 MB are too much at once and none is alone; with one of 700 MB for one of them, it alone is."""
    captions = ["cat"] * 3 + ["eat 60"] * 9 + [f"eat {alone_mb}"] + ["cat"] * 3
    wanted = light_command(
        write_captions(tmp_path, captions), tmp_path / "out", seconds=0.05, cpu_workers=1, num_cpus=7
    )
    memory = MemoryOfCaptionWorkers(tmp_path / "cgroup", limit=450 * MB)
    done = memory.run(wanted)
    assert done.returncode == 0, done.stderr
    rows = {row["sample_id"]: row for row in rows_of(tmp_path / "out")}
    assert len(rows) == len(captions)
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["read"] == len(captions)
    assert memory.most > 450 * MB
    errors = {
        name: f"{row['error']}: {row['error_detail']}"
        for name, row in rows.items()
        if row["error"] is not None
    }
    if alone_mb == 60:
        assert errors == {}
        assert report["deaths"] == 1, "once with its batch"
        assert len(memory.workers) == 2
    else:
        assert set(errors) == {"c12"}
        assert errors["c12"].startswith(
            "worker_died: captions.jsonl:13: 3 workers died at it in phrases, out of memory or "
        )
        assert report["deaths"] == 4, "once with its batch, three times alone"
        assert len(memory.workers) == 5
    assert all(row["phrase_count"] == 1 for name, row in rows.items() if name not in errors)


def test_samples_that_workers_died_at_are_tried_one_after_the_other() -> None:
    """As the youngest workers die with the one that takes too much, that one must not make others look guilty."""
    ledger = Ledger()
    assert [ledger.begin_sample(work) for work in ("greedy", "neighbour")] == [0, 0]
    assert ledger.begin_sample("greedy") == 1
    assert ledger.begin_sample("neighbour") is None, "both died: one is tried, the other waits"
    assert ledger.begin_sample("fresh") == 0
    assert ledger.begin_sample("greedy") == 2
    assert ledger.begin_sample("neighbour") is None
    ledger.finish("greedy")
    assert ledger.begin_sample("neighbour") == 1, "what it waited is not held against it"
    assert ledger.begin_sample("fresh") is None
    ledger.finish("neighbour")
    assert ledger.begin_sample("fresh") == 1


def test_a_sample_does_not_wait_for_a_worker_that_never_comes_back(monkeypatch) -> None:
    ledger = Ledger()
    for work in ("gone", "other", "gone"):
        ledger.begin_sample(work)
    assert ledger.begin_sample("other") is None
    now = time.monotonic()
    monkeypatch.setattr("time.monotonic", lambda: now + TRIAL_SECONDS + 1)
    assert ledger.begin_sample("other") == 1


def test_workers_that_died_are_told_of_once_each() -> None:
    ledger = Ledger()
    report = Report()
    for _ in range(3):
        ledger.begin("batch")
        ledger.begin_sample("sample")
    for name, event in ledger.take_events():
        getattr(report, name)(*event)
    assert report.deaths == 2
    console = Console(file=StringIO(), width=100)
    console.print(summary_table(Tally(), report))
    assert re.search(r"workers that died +│ +2 │", console.file.getvalue())
