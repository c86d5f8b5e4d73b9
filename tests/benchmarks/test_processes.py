"""CPU time of processes that come and go."""

import subprocess
import sys
from pathlib import Path

from benchmarks.processes import measure_run

WORK = """
import subprocess, sys, time
if len(sys.argv) > 1:
    subprocess.Popen([sys.executable, "-c", sys.argv[1]])
while time.process_time() < 0.5:
    pass
time.sleep(0.5)
"""


START = """
import subprocess, sys, time
from pathlib import Path

def compute(seconds):
    while time.process_time() < seconds:
        pass

shard, python, program, *names = sys.argv[1:]
if names:  # of the processes that descend from this one
    command = [names[0], "-c", program, "", python, program, *names[1:]]
    child = subprocess.Popen(command, executable=python, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    child.stdout.readline()
compute(0.5)
time.sleep(0.5)  # so that somebody sees these times before the start ends
if shard:
    Path(shard).touch()
    compute(1)
else:
    print(flush=True)
    sys.stdin.read()
"""


def test_the_start_ends_with_the_first_shard_and_is_told_by_process(tmp_path: Path) -> None:
    arguments = [str(tmp_path / "0.parquet"), sys.executable, START, "raylet", "ray::MapWorker"]
    process = subprocess.Popen([sys.executable, "-c", START, *arguments])
    seconds = measure_run(process, tmp_path, by_kind=True)
    start = {kind: seconds[f"start cpu {kind}"] for kind in ("driver", "workers", "ray")}
    assert min(start.values()) >= 0.4
    assert sum(start.values()) < seconds["cpu"]
    assert seconds["start wall"] < seconds["wall"]


def test_processes_that_nobody_waits_for_count() -> None:
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import signal\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)\n{WORK}",
            WORK,
        ]
    )
    seconds = measure_run(process, Path("nowhere"), by_kind=False)
    assert seconds["cpu"] > 0.6, "more than the parent alone"
