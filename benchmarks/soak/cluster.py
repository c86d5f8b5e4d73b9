"""A Ray cluster of several nodes on this machine, which can be taken apart with signals; and Ray's processes by kind.

Its processes are children of the one that makes it, so only these are found and killed.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]

# Before ray is imported: of what its nodes find out about each other, most by default takes half a minute.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")

STORE_BYTES = 100_000_000

WORKERS = {
    "model worker": "ray::MapWorker(MapBatches(ModelWorker))",
    "caption worker": "ray::MapWorker(MapBatches(CaptionWorker))",
    "write task": "ray::MapBatches(write_shards)",
    "read task": "ray::Read",
    "ledger": "ray::Ledger",
}
"""Kind of worker -> how its process is called, by Ray from the names of our classes and functions."""


class SmallCluster:
    """A head with the driver's processes, and `nodes` more that hold the resource "model".

    node_cpus   logical CPUs of each further node
    """

    def __init__(self, nodes: int = 2, *, head_cpus: int = 6, node_cpus: int = 4) -> None:
        from ray.cluster_utils import Cluster  # noqa: PLC0415  it reads the environment that is set above

        self.node_cpus = node_cpus
        # A folder of its own, which goes away with it; short, as sockets lie in it.
        self._folder = tempfile.TemporaryDirectory(prefix="pb-", dir="/tmp", ignore_cleanup_errors=True)
        head = {
            "temp_dir": self._folder.name,
            "num_cpus": head_cpus,
            "object_store_memory": STORE_BYTES,
            "include_dashboard": False,
            "_system_config": {
                "health_check_initial_delay_ms": 0,
                "health_check_period_ms": 1000,
                "health_check_failure_threshold": 3,
            },
        }
        # Workers import what they run from here, wherever the cluster was started.
        os.environ["PYTHONPATH"] = str(ROOT)
        (Path(tempfile.gettempdir()) / "ray").mkdir(
            exist_ok=True
        )  # Ray puts its note there; missing on a new machine
        self.cluster = Cluster(initialize_head=True, connect=False, head_node_args=head)
        self._hide()
        self.nodes = [self.add_node() for _ in range(nodes)]

    @property
    def address(self) -> str:
        """For `engine.address`."""
        address: str = self.cluster.address
        return address

    def _hide(self) -> None:
        """Take back the note by which every Ray on the machine would find and join this cluster."""
        note = Path(tempfile.gettempdir()) / "ray" / "ray_current_cluster"
        if note.is_file() and note.read_text() == self.address:
            note.unlink()

    def add_node(self) -> Any:
        """One more node."""
        return self.cluster.add_node(
            num_cpus=self.node_cpus, object_store_memory=STORE_BYTES, resources={"model": 1}, wait=False
        )

    def replace_node(self, number: int) -> int:
        """Kill a node's raylet as a spot machine goes, and start another; returns the killed process."""
        node = self.nodes[number]
        (info,) = node.all_processes["raylet"]
        pid: int = info.process.pid
        self.cluster.remove_node(node, allow_graceful=False)
        self.nodes[number] = self.add_node()
        return pid

    def close(self) -> None:
        """End all of it."""
        self.cluster.shutdown()
        self._folder.cleanup()


def name_of(process: psutil.Process) -> str:
    """Return how a process is called; "" if it is gone."""
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return ""


def workers(kind: str, above: int | None = None) -> list[psutil.Process]:
    """Processes below one (by default this one) of a kind in `WORKERS`, by age."""
    children = psutil.Process(above).children(recursive=True)
    return sorted(
        (each for each in children if name_of(each).startswith(WORKERS[kind])), key=lambda each: each.pid
    )


def kind_of(process: psutil.Process) -> str:
    """What a process of Ray's is; those that run one task after the other are "tasks"."""
    name = name_of(process)
    for kind, start in WORKERS.items():
        if name.startswith(start):
            return "tasks" if kind.endswith("task") else kind
    if name.startswith("ray::") and not name.startswith("ray::_"):
        return "tasks"
    return "raylet" if "/raylet/raylet" in name else "gcs" if "gcs_server" in name else "other"


@dataclass(frozen=True)
class Used:
    """What a process has used: seconds of cores so far, and memory in MB, its own and all it has mapped."""

    kind: str
    cpu_s: float
    own_mb: float
    rss_mb: float


class Watch:
    """The driver of a run and all processes below it."""

    def __init__(self, pid: int) -> None:
        self.driver = psutil.Process(pid)
        self.kinds: dict[int, str] = {}
        self.processes: dict[int, psutil.Process] = {}

    def look(self) -> dict[int, Used]:
        """What each process has used, by its number. Processes that are gone meanwhile are left out."""
        used = {}
        try:
            processes = [self.driver, *self.driver.children(recursive=True)]
        except psutil.NoSuchProcess:
            return {}
        for process in processes:
            pid = process.pid
            self.processes.setdefault(pid, process)
            # A worker waits under another name before it has its actor.
            if self.kinds.get(pid, "other") in ("other", "tasks"):
                self.kinds[pid] = "driver" if process is self.driver else kind_of(process)
            try:
                times, lines = (
                    process.cpu_times(),
                    Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:],
                )
            except (psutil.NoSuchProcess, psutil.AccessDenied, OSError):
                continue
            kb = {name: int(value.split()[0]) for name, value in (line.split(":") for line in lines)}
            own_mb, rss = (kb[name] * 1024 / 1e6 for name in ("Anonymous", "Rss"))
            used[pid] = Used(self.kinds[pid], times.user + times.system, own_mb, rss)
        return used

    def left_behind(self, seconds: float) -> list[str]:
        """The kinds of processes that are still there after some time."""
        _, alive = psutil.wait_procs(list(self.processes.values()), timeout=seconds)
        return sorted(self.kinds[process.pid] for process in alive)
