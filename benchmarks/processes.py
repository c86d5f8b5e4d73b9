"""CPU and wall time of a run with all of its processes, and of its start by kind of process. Part of `against`."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Any, Final

import psutil

KINDS: Final = ("driver", "workers", "ray")  # of processes of a run on Ray

POLL_SECONDS: Final = 0.1  # between two looks at the processes of a run


def measure_run(process: subprocess.Popen[Any], shards: Path, *, by_kind: bool) -> dict[str, float]:
    """Wait for a process and all that descends from it, and return their seconds: `cpu`, `wall`, and `start NAME`.

    The CPU times are read again and again, because a parent that does not wait for its children, as Ray's scheduler,
    has no sum of theirs.

    Args:
        process: The run.
        shards: The folder in which the first shard ends the start.
        by_kind: Whether the start is measured, its CPU time by kind of process (`kind_of`).
    """
    begin = time.perf_counter()
    running = {psutil.Process(process.pid)}
    seconds: dict[psutil.Process, float] = {}
    kinds: dict[psutil.Process, str] = {}
    start: dict[str, float] = {}
    while running:
        for member in list(running):
            try:
                times = member.cpu_times()
                seconds[member] = times.user + times.system
                if by_kind and not start:
                    kinds[member] = kind_of(member, process.pid)
                running.update(member.children())
                has_ended = member.status() == psutil.STATUS_ZOMBIE
            except psutil.NoSuchProcess:
                has_ended = True
            if has_ended:
                running.discard(member)
        if by_kind and not start and any(shards.glob("*.parquet")):
            start = {"start wall": time.perf_counter() - begin}
            for kind in KINDS:
                members = [member for member in kinds if kinds[member] == kind]
                start[f"start cpu {kind}"] = sum(seconds[member] for member in members)
        process.poll()
        time.sleep(POLL_SECONDS)
    process.wait()  # the first thread of a process may end before the others
    return {"cpu": sum(seconds.values()), "wall": time.perf_counter() - begin, **start}


def kind_of(process: psutil.Process, driver: int) -> str:
    """Return the kind of a run's process, one of `KINDS`; Ray names those of its processes that run our code."""
    if process.pid == driver:
        return "driver"
    return "workers" if " ".join(process.cmdline()).startswith("ray::") else "ray"
