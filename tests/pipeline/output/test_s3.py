"""Input and output in object storage, over S3's protocol, with a server that the tests start."""

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader

from benchmarks.soak.resuming import measure
from phrasebox.pipeline.config.run_config import load_config
from phrasebox.pipeline.dataset import append_log
from phrasebox.pipeline.dataset.folder import open_dataset
from phrasebox.pipeline.dataset.marks import append_marks, read_marks
from phrasebox.pipeline.dataset.validate import validate as problems_of
from phrasebox.pipeline.demo.scenes import write_scenes
from phrasebox.pipeline.load import Contents, RegionStream, collate_regions
from phrasebox.pipeline.output import lock
from phrasebox.pipeline.output.lock import Lease, _read_lease, locked
from phrasebox.stages.contract.errors import PhraseboxError, ResumeError
from phrasebox.stages.files.storage import AnyPath, ObjectPath, _arrow_filesystem, found_in, place_of
from phrasebox.stages.read import input_fingerprint
from phrasebox.stages.read.webdataset import WebdatasetInput
from tests.build.datasets import Json
from tests.pipeline.commands.evaluated import printed, run_aloud

pytestmark = pytest.mark.usefixtures("storage")

SCENES = 12


@pytest.fixture(scope="module")
def source(storage: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, AnyPath]:
    """Scenes on the disk, and the same in storage."""
    folder = tmp_path_factory.mktemp("scenes")
    remote = place_of("s3://bucket/scenes")
    write_scenes(folder, SCENES, 7)
    for path in (folder / "captions.jsonl", *(folder / "images").iterdir()):
        (remote / str(path.relative_to(folder))).write_bytes(path.read_bytes())
    return folder, remote


def settings(source: AnyPath, out: AnyPath, *changes: str) -> list[str]:
    return [
        "input.kind=jsonl",
        f"input.path={source / 'captions.jsonl'}",
        f"input.image_root={source / 'images'}",
        "input.piece_size=4",
        "model.name=demo",
        "model.threads=1",
        "engine.kind=ray",
        f"output.path={out}",
        "output.rows_per_file=3",
        *changes,
    ]


def command(keys: list[str], lease_seconds: float = 8.0) -> list[str]:
    lease = f"from phrasebox.pipeline.output import lock; lock.LEASE_SECONDS, lock.RENEW_SECONDS = {lease_seconds}, 1.0"
    code = f"{lease}; from phrasebox.pipeline.commands.cli import main; main()"
    return [sys.executable, "-c", code, "run", *(part for key in keys for part in ("--set", key))]


def run_here(keys: list[str]) -> str:
    """Run in this process; what it printed."""
    return run_aloud(load_config(None, keys))[1]


def rows_of(dataset: AnyPath) -> list[Json]:
    tables = [
        pq.read_table(pa.BufferReader(path.read_bytes()))
        for path in found_in(dataset / "data", "*.parquet")
    ]
    return sorted(pa.concat_tables(tables).to_pylist(), key=lambda row: row["id"])


@pytest.fixture(scope="module")
def on_disk(source: tuple[Path, AnyPath], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished dataset on the disk."""
    out = tmp_path_factory.mktemp("inline") / "out"
    run_here(settings(source[0], out, "engine.kind=inline"))
    return out


@pytest.fixture(scope="module")
def stored(source: tuple[Path, AnyPath]) -> AnyPath:
    """The same in storage, where its images are too."""
    out = place_of("s3://bucket/inline")
    run_here(settings(source[1], out, "engine.kind=inline"))
    return out


@pytest.mark.ray
@pytest.mark.slow
def test_a_killed_run_in_storage_goes_on_and_gives_the_rows_of_one_on_a_disk(source, on_disk) -> None:
    out = place_of("s3://bucket/ray/out")
    wanted = settings(source[1], out)
    process = subprocess.Popen(command(wanted), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def wait_for(condition: Callable[[], bool]) -> None:
        while not condition():
            assert process.poll() is None, "the run ended before it could be killed"
            time.sleep(0.1)

    wait_for((out / ".phrasebox/lock").exists)
    with pytest.raises(
        ResumeError, match=r"^output\.path: another run is writing to s3://bucket/ray/out \("
    ):
        run_here(wanted)
    wait_for(lambda: len(found_in(out / "data", "*.parquet")) >= 2)
    process.kill()
    process.wait()
    again = subprocess.run(command(wanted), capture_output=True, text=True, check=True)
    assert "resuming the run in s3://bucket/ray/out" in again.stdout
    assert rows_of(out) == rows_of(on_disk)
    assert list(problems_of(out)) == []
    assert "nothing to do" in run_here(wanted)
    assert {path.name for path in found_in(out / ".phrasebox", "*")} <= {"damaged"}


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("engine", ["inline", "ray"])
def test_a_run_that_slept_longer_than_its_lease_leaves_the_dataset_of_the_next_alone(
    source, on_disk, engine: str
) -> None:
    out = place_of(f"s3://bucket/sleeping/{engine}")
    wanted = settings(source[1], out, f"engine.kind={engine}", "output.rows_per_file=1")
    sleeper = subprocess.Popen(
        command(wanted), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    while not found_in(out / "data", "*.parquet"):
        assert sleeper.poll() is None, "the run ended before it could be stopped"
        time.sleep(0.1)
    os.killpg(sleeper.pid, signal.SIGSTOP)
    next_run = subprocess.run(command(wanted), capture_output=True, text=True, check=False)
    assert next_run.returncode == 0, next_run.stdout + next_run.stderr
    finished = {path: path.read_bytes() for path in (out / "dataset.json", *found_in(out / "data", "*"))}
    os.killpg(sleeper.pid, signal.SIGCONT)
    words = sleeper.communicate()[0]
    assert sleeper.returncode == 2, words
    assert f"another run took {out} over" in words
    assert {
        path: path.read_bytes() for path in (out / "dataset.json", *found_in(out / "data", "*"))
    } == finished
    assert list(problems_of(out)) == []
    assert [row["sample_id"] for row in rows_of(out)] == [row["sample_id"] for row in rows_of(on_disk)]


@pytest.mark.slow
def test_a_dataset_in_storage_is_read_as_one_on_a_disk(stored, on_disk, tmp_path, monkeypatch) -> None:
    read_back: list[Any] = []
    for dataset in (on_disk, stored):
        out = tmp_path / dataset.name
        figures = json.loads(printed("stats", dataset, "--where", "score > 0.1", "--json"))
        assert figures.pop("dataset") == str(dataset)
        printed("export", dataset, "--format", "yolo", "--out", out)  # takes the images too
        files = {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}
        assert len(files) > SCENES
        read_back.append((figures, files, rows_of(dataset), list(problems_of(dataset))))
    assert read_back[0] == read_back[1]
    append_marks(stored, {"one": "good", "two": "good"})
    monkeypatch.setattr(append_log, "_NAME", "another")  # of another process
    append_marks(stored, {"two": "bad", "three": "good"})
    marks = {"one": "good", "two": "bad", "three": "good"}
    assert read_marks(open_dataset("s3://bucket/inline").path) == marks


def test_loaders_give_the_samples_of_one_on_a_disk(stored, on_disk) -> None:
    read_back: list[Any] = []
    for place in (on_disk, stored):
        samples = RegionStream(str(place), Contents(square_px=16, masks="full"))
        loader = DataLoader(samples, batch_size=2, num_workers=2, collate_fn=collate_regions)
        read_back.append(torch.cat([batch["masks"] for batch in loader]))
    assert torch.equal(*read_back)


def test_a_resumed_run_asks_for_no_shard_that_is_noted() -> None:
    """Requests follow from the files of the journal and the shards that are not in it."""
    few, more = (measure(shards, unnoted=3, files=2) for shards in (10, 40))
    assert few["take_over"]["requests"] == more["take_over"]["requests"] <= 40
    assert few["again"]["requests"] == more["again"]["requests"] <= 24


def test_storage_that_does_not_answer_is_one_line(source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    _arrow_filesystem.cache_clear()
    try:
        with pytest.raises(PhraseboxError, match="s3://bucket") as refused:
            run_here(settings(source[0], place_of("s3://bucket/out"), "engine.kind=inline"))
    finally:
        _arrow_filesystem.cache_clear()
    assert "\n" not in str(refused.value)


@pytest.mark.slow
def test_a_grown_input_in_storage_is_noticed(tmp_path) -> None:
    folder = place_of(f"s3://bucket/{tmp_path.name}/tars")
    for number in range(60):  # so many are listed, few are asked for one by one
        (folder / f"{number:02d}.tar").write_bytes(b"")
    for place in (folder, folder / "07.tar", folder / "0[6-7].tar"):
        source = WebdatasetInput(path=str(place))
        before = input_fingerprint(source)
        (folder / "07.tar").write_bytes(place.name.encode())
        assert input_fingerprint(source) != before


@pytest.fixture
def lease_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ObjectPath:
    monkeypatch.setattr(lock, "RENEW_SECONDS", 0.1)
    monkeypatch.setattr(lock, "LEASE_SECONDS", 1.0)
    place = place_of(f"s3://bucket/{tmp_path.name}/.phrasebox/lock")
    assert isinstance(place, ObjectPath)
    return place


def test_a_lease_that_is_renewed_is_refused_and_one_that_was_given_back_is_free(
    lease_file: ObjectPath,
) -> None:
    with locked(lease_file) as first:
        assert first is not None
        other = Lease(lease_file)
        with pytest.raises(
            ResumeError, match=r"another run is writing to s3://bucket/\S+ \(.*, process \d+\); wait"
        ):
            other.acquire(wait_s=60.0)
        first.check()
    assert not lease_file.exists()
    with locked(lease_file):
        pass


def test_a_lease_whose_run_was_killed_is_taken_over(lease_file: ObjectPath) -> None:
    lease_file.write_bytes(b'["other machine, process 7, abc", 3]')
    (lease_file.parent / f".{lease_file.name}.4711.tmp").write_bytes(b"[")
    start = time.monotonic()
    with locked(lease_file) as holder:
        assert holder is not None
        holder.check()
    assert time.monotonic() - start >= lock.LEASE_SECONDS, "it may live: it was watched for so long"
    assert found_in(lease_file.parent, "*") == []


def renewing_thread() -> threading.Thread:
    """The thread of the one lease that is held here."""
    [thread] = [thread for thread in threading.enumerate() if "(_renew)" in thread.name]
    return thread


@pytest.mark.parametrize("content", [b'["other machine, process 7, abc", 1]', None])
def test_a_run_that_lost_its_lease_renews_it_no_more(lease_file: ObjectPath, content: bytes | None) -> None:
    """It is another run's, or gone because the other run has ended."""
    with locked(lease_file) as holder:
        assert holder is not None
        thread = renewing_thread()
        while thread.is_alive():  # the first may come between a renewal's look and its write
            lease_file.unlink(missing_ok=True)
            if content is not None:
                lease_file.write_bytes(content)
            thread.join(3 * lock.RENEW_SECONDS)
        with pytest.raises(
            ResumeError, match=r"another run took s3://bucket/\S+ over while this one did not"
        ):
            pickle.loads(pickle.dumps(holder)).check()
    if content is None:
        assert not lease_file.exists()
    else:
        assert lease_file.read_bytes() == content


def test_a_run_that_sleeps_while_it_renews_its_lease_does_not_take_it_back(
    lease_file: ObjectPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept_s = 0.0

    def read_and_sleep(path: ObjectPath) -> tuple[str, int] | None:
        nonlocal slept_s
        lease = _read_lease(path)
        if not slept_s:  # meanwhile another run takes over, ends, and gives the lease back
            slept_s = 60.0
            path.unlink()
        return lease

    monkeypatch.setattr(lock, "_clock", lambda: time.monotonic() + slept_s)
    with locked(lease_file) as holder:
        assert holder is not None
        monkeypatch.setattr(lock, "_read_lease", read_and_sleep)
        renewing_thread().join()
        with pytest.raises(ResumeError, match="another run took"):
            holder.check()


def test_a_lease_that_is_replaced_while_it_is_read_is_read_again(
    lease_file: ObjectPath, monkeypatch
) -> None:
    """Storage says how long an object is, and then gives the content of the next one."""
    contents = [b'["other, process 7, abc", 1]"', b'["other, process 7, a', b'["other, process 7, abc", 2]']
    monkeypatch.setattr(ObjectPath, "read_bytes", lambda _: contents.pop(0))
    assert _read_lease(lease_file) == ("other, process 7, abc", 2)
    monkeypatch.setattr(ObjectPath, "read_bytes", lambda _: b"mine")
    with pytest.raises(ResumeError, match="is not the lease of a run"):
        _read_lease(lease_file)
