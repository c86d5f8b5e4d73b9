"""`phrasebox inspect` as a process: where it listens, and how it ends."""

import http.client
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import uvicorn
from rich.console import Console

from phrasebox.pipeline.dataset.folder import open_dataset
from phrasebox.pipeline.dataset.selection import Search
from phrasebox.pipeline.viewer.app import Viewer, create_app, serve
from phrasebox.stages.contract.errors import ConfigError
from tests.architecture.source import ROOT
from tests.build.datasets import Json
from tests.messages import expect_error
from tests.pipeline.commands.evaluated import called


@contextmanager
def started(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process and the address that it printed."""
    command = [sys.executable, "-m", "phrasebox", "inspect", *arguments, "--port", "0"]
    pipes: Json = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, **pipes)
    try:
        line = process.stdout.readline()
        address = re.search(r"http://\S+", line)
        assert address is not None, line + process.stdout.read()
        yield process, address.group()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_only_this_machine_reaches_it_and_ctrl_c_ends_it(viewed: Path, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with started(str(viewed), "--where", "w > h", "--min-score", "0.5") as (process, address):
        assert address.startswith("http://127.0.0.1:")
        assert address.endswith("/?score_min=0.5&where=w+%3E+h")
        with urllib.request.urlopen(address) as answer:
            assert b"phrasebox" in answer.read()
        sockets = psutil.Process(process.pid).net_connections("inet")  # as the kernel says
        assert {one.laddr.ip for one in sockets if one.status == psutil.CONN_LISTEN} == {"127.0.0.1"}
        process.send_signal(signal.SIGINT)
        assert process.wait() == 0
        assert "Traceback" not in process.stdout.read()
    with started(str(viewed)) as (process, _):
        process.terminate()
        process.wait()
    assert list(tmp_path.glob("phrasebox-index-*")) == []


ENDLESS = "levenshtein(repeat('a', 300000), repeat('b', 300000)) > 1"
"""DuckDB computes this before the first row, for minutes, and cannot be interrupted."""


@pytest.mark.slow
def test_ctrl_c_ends_it_whatever_it_computes(viewed: Path, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    rows = "(SELECT count(*) FROM range(1000000000) a, range(1000000000) b) > 1"  # ends only when it is interrupted
    with started(str(viewed)) as (process, address):
        for where in (ENDLESS, rows):
            asked = f"{address}?{urllib.parse.urlencode({'where': where})}"
            threading.Thread(target=answer_of, args=[asked], daemon=True).start()
        wait_for_child(process.pid)
        process.send_signal(signal.SIGINT)
        assert process.wait() == 0
    assert list(tmp_path.glob("phrasebox-index-*")) == []


def answer_of(address: str) -> None:
    with suppress(OSError, http.client.HTTPException):
        urllib.request.urlopen(address)


def wait_for_child(pid: int) -> None:
    """Wait until the condition is being checked."""
    while not psutil.Process(pid).children():
        time.sleep(0.05)


@pytest.fixture
def served_to_nobody(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A server ends at once; the addresses that it listened at."""
    addresses: list[str] = []

    def run(_: uvicorn.Server, sockets: list[socket.socket]) -> None:
        addresses.append(sockets[0].getsockname()[0])
        sockets[0].close()

    monkeypatch.setattr("uvicorn.Server.run", run)
    monkeypatch.setattr("phrasebox.pipeline.viewer.app._build", lambda index: index.close())
    return addresses


@pytest.mark.usefixtures("served_to_nobody")
def test_a_review_of_so_many_regions(viewed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states = []

    def note(viewer: Viewer, hosts: Any, token: str | None) -> Any:
        states.append(viewer.review_session.state("ann"))
        assert token is None, "on this machine alone it needs none"
        return create_app(viewer, hosts, token)

    monkeypatch.setattr("phrasebox.pipeline.viewer.app.create_app", note)
    for seed in (0, 0, 1):
        code, out, _ = called("inspect", viewed, "--answers", 3, "--seed", seed, "--port", 0)
        assert (code, "/review  (" in out) == (0, True)
    samples = [[(one["row"], one["id"]) for one in state["regions"]] for state in states]
    assert len(samples[0]) == 3
    assert samples[0] == samples[1] != samples[2]
    assert not (viewed / "reviews.jsonl").exists(), "looking writes nothing"


@pytest.mark.slow
@pytest.mark.usefixtures("served_to_nobody")
def test_it_opens_at_a_precision(viewed: Path) -> None:
    regions = open_dataset(viewed).regions("", ["score"], precision=0.8, max_area=0.5)
    least = min(regions["score"].to_pylist())
    code, out, _ = called("inspect", viewed, "--precision", 0.8, "--max-area", 0.5, "--port", 0)
    line, address = out.splitlines()
    assert code == 0
    assert line.startswith(f"0.8: score >= {least:.3f} keeps {regions.num_rows} of ")
    assert f"/?score_min={least}&where=box_share+%3C%3D+0.5  (" in address


def test_it_listens_elsewhere_when_asked_to_and_says_so(
    viewed: Path, served_to_nobody: list[str], capsys
) -> None:
    serve(Viewer(viewed), Console(), Search(), host="0.0.0.0", port=0, open_browser=False)
    words = capsys.readouterr().out
    assert "everyone who can reach this machine and knows this address" in words
    assert re.search(r"http://0\.0\.0\.0:\d+/\?token=[\w-]{20,}  \(", words)
    for host in ("127.0.0.1", "localhost"):
        serve(Viewer(viewed), Console(), Search(), host=host, port=0, open_browser=False)
        assert "everyone" not in capsys.readouterr().out
    assert served_to_nobody == ["0.0.0.0", "127.0.0.1", "127.0.0.1"]


def test_a_port_that_is_taken_is_said(viewed: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with expect_error(ConfigError, key="port"):
            serve(
                Viewer(viewed),
                Console(quiet=True),
                Search(),
                host="127.0.0.1",
                port=port,
                open_browser=False,
            )
