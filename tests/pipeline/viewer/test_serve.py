"""`phrasebox inspect` as a process: where it listens, and how it ends."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.viewer.app import is_loopback
from tests.architecture.source import ROOT


@contextmanager
def started(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process and the address that it printed."""
    command = [sys.executable, "-m", "pipeline", "inspect", *arguments]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        address = re.search(r"http://\S+", line)
        assert address is not None, line + process.stdout.read()
        yield process, address.group()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def listening(process: subprocess.Popen[str]) -> set[str]:
    """Local addresses on which a process listens, as the kernel says."""
    inodes = set()
    for descriptor in Path(f"/proc/{process.pid}/fd").iterdir():
        try:
            target = descriptor.readlink().name
        except OSError:
            continue
        if match := re.fullmatch(r"socket:\[(\d+)\]", target):
            inodes.add(match.group(1))
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                found.add(fields[1].partition(":")[0])
    return found


def test_only_this_machine_reaches_it_and_ctrl_c_ends_it(viewed: Path) -> None:
    with started(str(viewed), "--port", "0") as (process, address):
        assert address.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(address) as answer:
            assert b"phrasebox" in answer.read()
        assert listening(process) == {"0100007F"}
        process.send_signal(signal.SIGINT)
        assert process.wait() == 0
        assert process.stdout is not None
        assert "Traceback" not in process.stdout.read()


def test_it_begins_with_what_was_asked_for(viewed: Path) -> None:
    with started(str(viewed), "--port", "0", "--where", "w > h", "--min-score", "0.5") as (_, address):
        assert address.endswith("/?score_min=0.5&where=w+%3E+h")


def test_it_listens_elsewhere_when_told_so(viewed: Path) -> None:
    with started(str(viewed), "--port", "0", "--host", "0.0.0.0") as (process, _):
        assert listening(process) == {"00000000"}
        assert process.stdout is not None
        assert "everyone who can reach this machine" in process.stdout.readline()


def test_a_port_that_is_taken_is_said(viewed: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        command = [sys.executable, "-m", "pipeline", "inspect", str(viewed), "--port", str(taken.getsockname()[1])]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "cannot listen on 127.0.0.1" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("host", "wanted"), [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("box", False)]
)
def test_loopback(host: str, wanted: bool) -> None:
    assert is_loopback(host) == wanted
