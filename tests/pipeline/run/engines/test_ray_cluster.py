"""Clusters whose nodes are not like the driver: a folder that only the driver has, no code, too little memory."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from phrasebox.pipeline import __version__
from phrasebox.pipeline.demo.scenes import write_scenes
from phrasebox.pipeline.run.engines.ray_code import code_here, reject_other_code
from phrasebox.pipeline.run.engines.ray_ledger import TRIAL_SECONDS, Ledger
from phrasebox.stages.contract.errors import WorkerCodeMismatch
from tests.architecture.source import declare, entry_points
from tests.build.files import write_json
from tests.pipeline.light import ROOT, assert_alike, ended, light_command, rows_of, write_captions

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
    imports = ended([python, "-c", "import ray, torch, spacy, phrasebox"], cwd="/", env=with_token())
    assert imports.stderr.endswith("No module named 'phrasebox'\n")
    with head_of(python) as address:
        yield address


EXPLAINER = """
from typing import Literal

from phrasebox.stages.explain.config import GradEclipConfig
from phrasebox.stages.explain.grad_eclip import GradEclip


class MineConfig(GradEclipConfig):
    kind: Literal["mine"] = "mine"


class Mine(GradEclip):
    config_type = MineConfig
"""


def test_a_worker_without_the_package_of_a_kind_is_refused() -> None:
    ours = code_here(("phrasebox",))
    reject_other_code(ours)
    with pytest.raises(WorkerCodeMismatch, match="lacks the package phrasebox_none: install it"):
        reject_other_code(replace(ours, packages=(*ours.packages, "phrasebox_none")))


def test_code_behind_a_link_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkout has links where a wheel has folders: the same code has one digest, and other code another."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "part").mkdir()
    (tmp_path / "part/rows.py").write_text("old = 1\n")
    (tmp_path / "linked_code").mkdir()
    (tmp_path / "linked_code/__init__.py").touch()
    (tmp_path / "linked_code/part").symlink_to("../part")
    linked = code_here(("linked_code",))
    (tmp_path / "linked_code/part").unlink()
    shutil.copytree(tmp_path / "part", tmp_path / "linked_code/part")
    assert code_here(("linked_code",)) == linked
    (tmp_path / "linked_code/part/rows.py").write_text("new = 1\n")
    with pytest.raises(
        WorkerCodeMismatch, match="has unknown, the driver has unknown, and the code differs"
    ):
        reject_other_code(linked)


@pytest.mark.slow
def test_code_is_shipped_to_a_node_that_has_none(node, tmp_path) -> None:
    """The driver has it as a wheel lays it down, out of the node's sight; without `ship_code` that is one line.

    So it has an explainer of somebody else's package.
    """
    driver = bare_python(tmp_path / "driver")
    (packages,) = (tmp_path / "driver").glob("lib/python*/site-packages")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "phrasebox", packages / "phrasebox", ignore=ignored)
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
        return ended([driver, "-m", "phrasebox", "run", config], cwd=tmp_path, env=with_token())

    cluster = {"kind": "ray", "address": node, "explain_workers": 1, "model_resources": {"model": 1}}
    refused = run("out", **cluster)
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    assert line.startswith("error: the worker on ")
    assert (
        f" cannot import the run's code (ModuleNotFoundError: No module named 'phrasebox'); the driver has "
        f"{__version__}. Install the same wheels on every node, or set engine.ship_code=true" in line
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
