"""What becomes of a worker's process."""

import signal
import subprocess
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import ray

from phrasebox.pipeline.run.engines.ray_ledger import Ledger
from phrasebox.pipeline.run.engines.ray_workers import READ_TASKS, PieceSource, run_with_retries
from phrasebox.stages.read import Piece

PROGRAM = """
import ctypes
from phrasebox.pipeline.run.engines.ray_exit import leave_at_exit

# As Ray's C++ side does, whose handler may wait for ever.
libc = ctypes.CDLL(None)
libc.on_exit(libc.abort, None)
for _ in range({times}):
    leave_at_exit()
print("said", end="")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="on_exit is glibc's")
@pytest.mark.parametrize(("times", "code"), [(0, -signal.SIGABRT), (1, 0), (2, 0)])
def test_a_worker_ends_without_what_others_want_to_do_at_its_end(times: int, code: int) -> None:
    command = [sys.executable, "-c", PROGRAM.format(times=times)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert done.stdout == "said"


@pytest.mark.parametrize(
    ("pieces", "tasks"), [(1000, 1000), (READ_TASKS, READ_TASKS), (READ_TASKS + 1, 2001)]
)
def test_a_read_task_that_dies_repeats_one_shard_of_a_part(pieces: int, tasks: int) -> None:
    """Ray repeats tasks as a whole. A part of 10 million images is 1,000 tars of img2dataset."""
    source = PieceSource(None, [(n, Piece(url=f"{n}.tar", name=f"{n}.tar")) for n in range(pieces)], None)  # type: ignore[arg-type]
    assert source.tasks == tasks


@pytest.mark.parametrize("deaths", [0, 1])
def test_a_batch_is_noted_before_its_turn_and_a_sample_in_it(deaths: int, monkeypatch) -> None:
    """A device that has computed one batch does not wait until the ledger has answered for the next."""
    seen: list[str] = []
    ledger = Ledger()

    def noting(name: str, call) -> SimpleNamespace:
        return SimpleNamespace(remote=lambda *given: [seen.append(name), call(*given)][1])

    @contextmanager
    def turn():
        seen.append("turn")
        yield
        seen.append("end of turn")

    monkeypatch.setattr(ray, "get", lambda answer: answer)
    names = ("begin", "begin_sample", "finish")
    remote = SimpleNamespace(**{name: noting(name, getattr(ledger, name)) for name in names})
    for _ in range(deaths):
        ledger.begin("rows:1+1")
    record = SimpleNamespace(sample=SimpleNamespace(key=1), error=None)
    assert run_with_retries((), [record], remote, turn=turn()) == [record]  # type: ignore[list-item]
    alone = ["begin_sample", "finish"] if deaths else []
    assert seen == ["begin", "turn", *alone, "end of turn", "finish"]
