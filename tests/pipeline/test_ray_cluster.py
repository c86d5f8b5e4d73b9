"""Clusters whose nodes are not like the driver: a folder that only the driver has, no code, too little memory."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline import __version__
from stages.scenes import write_scenes
from tests.pipeline.light import ROOT, light_command, rows_of, write_captions
from tests.soak.cluster import SmallCluster

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]

SCENES = 10

TOKEN = "0123456789abcdef" * 4


def test_a_node_that_does_not_see_the_images_is_named_before_any_work(tmp_path) -> None:
    """As where the folder lies on the driver's own disk, which here only the driver has mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    module, argument, *rest = light_command(write_captions(tmp_path, ["cat"]), tmp_path / "out")[2:]
    cluster = SmallCluster(nodes=1)
    try:
        values = json.loads(argument)
        values["input"]["image_root"] = str(disk / "images")
        values["engine"]["address"] = cluster.address
        wanted = shlex.join([sys.executable, "-m", module, json.dumps(values), *rest])
        script = f"mount -t tmpfs none {disk}; mkdir {disk}/images; exec {wanted}"
        done = subprocess.run(
            ["unshare", "-rm", "bash", "-ec", script],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
    finally:
        cluster.close()
    assert done.returncode == 2
    assert done.stderr.startswith("ConfigError: input.image_root: the worker on ")
    assert done.stderr.endswith(f" does not see {disk}/images; all nodes need to share it\n")
    assert not list((tmp_path / "out/data").iterdir())


def bare_python(folder: Path) -> Path:
    """The interpreter of a new environment that has what phrasebox needs, and not phrasebox."""
    venv.create(folder, with_pip=False)
    (packages,) = folder.glob("lib/python*/site-packages")
    # What such a file adds is not searched for further ones, by which phrasebox itself may be installed.
    (packages / "libraries.pth").write_text(next(path for path in sys.path if path.endswith("site-packages")) + "\n")
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
            deadline = time.monotonic() + 60
            while not note.exists() or not note.read_text():
                assert process.poll() is None, "the cluster does not start"
                assert time.monotonic() < deadline
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
    asked = subprocess.run(
        [python, "-c", "import ray, torch, spacy, pipeline"],
        cwd="/",
        env=with_token(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert asked.stderr.endswith("No module named 'pipeline'\n")
    with head_of(python) as address:
        yield address


def test_code_is_shipped_to_a_node_that_has_none(node, tmp_path) -> None:
    """The driver has it as a wheel lays it down, out of the node's sight; without `ship_code` that is one line."""
    driver = bare_python(tmp_path / "driver")
    (packages,) = (tmp_path / "driver").glob("lib/python*/site-packages")
    for name in ("pipeline", "stages"):
        shutil.copytree(ROOT / name, packages / name, ignore=shutil.ignore_patterns("__pycache__"))
    write_scenes(tmp_path / "scenes", SCENES, 7)
    base = {
        "input": {"kind": "jsonl", "path": "scenes/captions.jsonl", "image_root": "scenes/images"},
        "model": {"name": "demo", "threads": 1},
    }

    def run(out: str, **engine: Any) -> subprocess.CompletedProcess[str]:
        config = tmp_path / f"{out}.yaml"
        config.write_text(json.dumps({**base, "engine": engine, "output": {"path": out}}))
        return subprocess.run(
            [driver, "-m", "pipeline", "run", config],
            cwd=tmp_path,
            env=with_token(),
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )

    cluster = {"kind": "ray", "address": node, "explain_workers": 1, "model_resources": {"model": 1}}
    refused = run("out", **cluster)
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    assert line.startswith("error: the worker on ")
    assert (
        f" cannot import phrasebox (ModuleNotFoundError: No module named 'pipeline'); the driver has {__version__} in "
        f"{packages}. Install the same wheel on every node, or set engine.ship_code=true" in line
    )
    done = run("out", **cluster, ship_code=True)
    assert done.returncode == 0, done.stderr
    assert run("inline", kind="inline").returncode == 0
    rows = rows_of(tmp_path / "out")
    assert len(rows) == SCENES
    assert rows == rows_of(tmp_path / "inline")
    assert sum(len(row["annotations"]) for row in rows) > SCENES


def test_a_driver_without_the_clusters_token_is_told_of_it(node, tmp_path) -> None:
    wanted = light_command(write_captions(tmp_path, ["cat"]), tmp_path / "out", address=node)
    environment = with_token("f" * 64)
    done = subprocess.run(wanted, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"ConfigError: engine.address: cannot reach a Ray cluster at '{node}'. If it has a token, ")
    assert "RAY_AUTH_MODE=token" in line


def test_a_home_that_cannot_hold_rays_token_is_one_line(tmp_path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    wanted = light_command(write_captions(tmp_path, ["cat"]), tmp_path / "out")
    done = subprocess.run(
        wanted,
        cwd=ROOT,
        env={**environment, "HOME": "/proc/none"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == (
        "ResourceError: Ray does not start on this machine: [Errno 2] No such file or directory: '/proc/none'\n"
    )
