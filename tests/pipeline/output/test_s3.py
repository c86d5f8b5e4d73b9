"""Input and output in object storage, over S3's protocol, with a server that the tests start."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.output import lock
from pipeline.output.lock import Lease, locked
from stages.contract.errors import ResumeError
from stages.model.scenes import write_scenes
from stages.storage import AnyPath, ObjectPath, found_in, place_of

pytestmark = pytest.mark.usefixtures("storage")

SCENES = 60


@pytest.fixture(scope="module")
def source(storage: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, AnyPath]:
    """Scenes on the disk, and the same in storage."""
    folder, there = tmp_path_factory.mktemp("scenes"), place_of("s3://bucket/scenes")
    write_scenes(folder, SCENES, 7)
    for path in (folder / "captions.jsonl", *(folder / "images").iterdir()):
        (there / str(path.relative_to(folder))).write_bytes(path.read_bytes())
    return folder, there


def command(source: AnyPath, out: AnyPath, *settings: str) -> list[str]:
    keys = [
        "input.kind=jsonl",
        f"input.path={source / 'captions.jsonl'}",
        f"input.image_root={source / 'images'}",
        "input.shard_size=20",
        "model.threads=2",
        f"output.path={out}",
        "output.rows_per_file=8",
        *settings,
    ]
    code = (
        "from pipeline.output import lock; lock.LEASE_SECONDS, lock.RENEW_SECONDS = 8.0, 1.0; "
        "from pipeline.cli import main; main()"
    )
    return [sys.executable, "-c", code, "run", *(part for key in keys for part in ("--set", key))]


def run(wanted: list[str]) -> str:
    done = subprocess.run(wanted, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rows_of(dataset: AnyPath) -> list[dict[str, Any]]:
    tables = [pq.read_table(pa.BufferReader(path.read_bytes())) for path in found_in(dataset / "data", "*.parquet")]
    return sorted(pa.concat_tables(tables).to_pylist(), key=lambda row: row["id"])


@pytest.fixture(scope="module")
def reference(source: tuple[Path, AnyPath], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    out = tmp_path_factory.mktemp("inline") / "out"
    run(command(source[0], out, "engine.kind=inline"))
    return rows_of(out)


@pytest.mark.ray
def test_a_killed_run_in_storage_goes_on_and_gives_the_rows_of_one_on_a_disk(source, reference) -> None:
    out = place_of("s3://bucket/ray/out")
    wanted = command(source[1], out)
    process = subprocess.Popen(wanted, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def wait_for(condition: Callable[[], bool]) -> None:
        while not condition():
            assert process.poll() is None, "the run ended before it could be killed"
            time.sleep(0.1)

    wait_for((out / ".phrasebox/lock").exists)
    second = subprocess.run(wanted, capture_output=True, text=True, check=False)
    assert second.returncode == 2
    assert second.stderr.startswith("error: another run is writing to s3://bucket/ray/out (")
    wait_for(lambda: len(found_in(out / "data", "*.parquet")) >= 2)
    process.kill()
    process.wait()
    assert "going on with the run in s3://bucket/ray/out" in run(wanted)
    assert rows_of(out) == reference
    assert "s3://bucket/ray/out: valid" in run([sys.executable, "-m", "pipeline", "validate", "s3://bucket/ray/out"])
    assert "nothing to do" in run(wanted)
    assert {path.name for path in found_in(out / ".phrasebox", "*")} <= {"damaged"}


def test_inline_into_storage(source, reference) -> None:
    out = place_of("s3://bucket/inline")
    run(command(source[0], out, "engine.kind=inline"))
    assert rows_of(out) == reference
    assert {path.name for path in found_in(out, "*")} >= {"data", "categories.parquet", "dataset.json", "README.md"}


def test_storage_that_does_not_answer_is_one_line(source, tmp_path) -> None:
    environment = {**os.environ, "AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_MAX_ATTEMPTS": "1"}
    wanted = command(source[0], place_of("s3://bucket/out"), "engine.kind=inline")
    done = subprocess.run(wanted, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert "s3://bucket" in done.stderr


@pytest.fixture
def lease_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ObjectPath:
    monkeypatch.setattr(lock, "RENEW_SECONDS", 0.1)
    monkeypatch.setattr(lock, "LEASE_SECONDS", 1.0)
    place = place_of(f"s3://bucket/{tmp_path.name}/.phrasebox/lock")
    assert isinstance(place, ObjectPath)
    return place


def test_a_lease_that_is_renewed_is_refused_and_one_that_was_given_back_is_free(lease_file: ObjectPath) -> None:
    with locked(lease_file) as first:
        assert first is not None
        other = Lease(lease_file)
        with pytest.raises(ResumeError, match=r"another run is writing to s3://bucket/\S+ \(.*, process \d+\); wait"):
            other.acquire(wait_s=60.0)
        first.check()
    assert not lease_file.exists()
    with locked(lease_file):
        pass


def test_a_lease_whose_run_was_killed_is_taken_over(lease_file: ObjectPath) -> None:
    lease_file.write_bytes(b'["other machine, process 7, abc", 3]')
    start = time.monotonic()
    with locked(lease_file) as lease:
        assert lease is not None
        lease.check()
    assert time.monotonic() - start >= lock.LEASE_SECONDS, "it may live: it was watched for so long"


def test_a_run_that_lost_its_lease_stops_before_it_finishes(lease_file: ObjectPath) -> None:
    with locked(lease_file) as lease:
        assert lease is not None
        while not lease._lost:  # again, should the first have come between a renewal's look and its write
            lease_file.write_bytes(b'["other machine, process 7, abc", 1]')
            time.sleep(lock.RENEW_SECONDS)
        with pytest.raises(ResumeError, match=r"another run took s3://bucket/\S+ over: this one stops"):
            lease.check()
    assert lease_file.read_bytes() == b'["other machine, process 7, abc", 1]'
