"""Input and output in object storage, over S3's protocol, with a server that the tests start."""

import json
import re
import subprocess
import sys
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
from pipeline.config import load_config
from pipeline.dataset.folder import open_dataset, read_marks, write_marks
from pipeline.dataset.selection import Search
from pipeline.dataset.validate import validate as problems_of
from pipeline.load import Contents, RegionDataset, RegionStream, collate_regions
from pipeline.output import lock
from pipeline.output.lock import Lease, locked
from pipeline.scenes import write_scenes
from pipeline.viewer.pages import Pages
from stages.contract.errors import InputError, PhraseboxError, ResourceError, ResumeError
from stages.read import input_fingerprint
from stages.read.webdataset import WebdatasetInput
from stages.shared.storage import AnyPath, ObjectPath, _arrow_filesystem, found_in, place_of
from tests.build.datasets import Json
from tests.pipeline.commands.evaluated import printed, run_aloud
from tests.pipeline.light import write_captions
from tests.pipeline.output.light_runs import RaisingStage, light_config, run_light

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


def command(keys: list[str]) -> list[str]:
    lease = "from pipeline.output import lock; lock.LEASE_SECONDS, lock.RENEW_SECONDS = 8.0, 1.0"
    code = f"{lease}; from pipeline.cli import main; main()"
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


def test_inline_into_storage(stored, on_disk) -> None:
    assert rows_of(stored) == rows_of(on_disk)
    names = {path.name for path in found_in(stored, "*")}
    assert names >= {"data", "categories.parquet", "dataset.json", "README.md"}
    assert list(problems_of(stored)) == []
    write_marks(stored, {"one": "good"})
    assert read_marks(open_dataset("s3://bucket/inline").path) == {"one": "good"}


def test_a_dataset_in_storage_is_read_as_one_on_a_disk(source, stored, on_disk, tmp_path) -> None:
    read_back: list[Any] = []
    for dataset in (on_disk, stored):
        out = tmp_path / dataset.name
        as_typed = Path(str(dataset))  # of a URL, what the command line's pathlib leaves
        figures = json.loads(printed("stats", dataset, "--where", "score > 0.1", "--json"))
        figures |= json.loads(
            printed("eval", dataset, "--truth", source[0] / "truth.json", "--no-maps", "--json")
        )
        assert figures.pop("dataset") == str(dataset)
        printed("export", dataset, "--format", "yolo", "--out", out / "yolo")  # takes the images too
        pages = Pages(as_typed, str(source[0] / "images"))
        figures["rows"] = [view.row for view in pages.views(Search(), range(5))]
        pages.index.close()
        files = [path for path in sorted(out.rglob("*")) if path.is_file()]
        read_back.append((figures, {path.relative_to(out): path.read_bytes() for path in files}))
    assert len(read_back[0][1]) > SCENES
    assert read_back[0] == read_back[1]


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_loaders_give_the_samples_of_one_on_a_disk(stored, on_disk, workers) -> None:
    contents = Contents(square_px=16, masks="full")
    for loader in (RegionStream, RegionDataset):
        batches = [
            list(
                DataLoader(
                    loader(place, contents), batch_size=2, num_workers=workers, collate_fn=collate_regions
                )
            )
            for place in (str(on_disk), str(stored))
        ]
        assert len(batches[0]) > 3
        for remote, local in zip(*batches, strict=True):
            assert remote.keys() == local.keys()
            for key, value in remote.items():
                same = (
                    torch.equal(value, local[key])
                    if isinstance(value, torch.Tensor)
                    else value == local[key]
                )
                assert same, key


@pytest.mark.slow
def test_what_fresh_replaces_comes_back_until_there_is_a_new_file(tmp_path) -> None:
    out = place_of(f"s3://bucket/{tmp_path.name}/fresh")
    config = light_config(write_captions(tmp_path, [f"word{n}" for n in range(40)]), out)
    run_light(config)
    rows = rows_of(out)
    files = {path.name for path in found_in(out, "*")}
    with pytest.raises(ResourceError):
        run_light(config, last=RaisingStage(ResourceError("no cluster"), 0), fresh=True)
    assert rows_of(out) == rows
    assert {path.name for path in found_in(out, "*")} == files
    assert "nothing to do" in run_light(config)
    with pytest.raises(ResourceError):
        run_light(config, last=RaisingStage(ResourceError("no cluster"), 1), fresh=True)
    assert len(rows_of(out)) == 32
    assert not (out / ".phrasebox/replaced").exists()
    write_captions(tmp_path, [f"word{n}" for n in range(41)])
    assert "samples of the input that have no row yet: 9." in run_light(config)
    assert len(rows_of(out)) == 41


def test_a_resumed_run_asks_for_no_shard_that_is_noted() -> None:
    """Requests follow from the files of the journal and the shards that are not in it."""
    few, more = (measure(shards, unnoted=3, files=2) for shards in (10, 40))
    assert few["take_over"]["requests"] == more["take_over"]["requests"] <= 40
    assert few["again"]["requests"] == more["again"]["requests"] <= 20


def test_a_grown_input_in_storage_is_noticed(tmp_path) -> None:
    folder = place_of(f"s3://bucket/{tmp_path.name}/tars")
    for number in range(60):  # so many are listed, few are asked for one by one
        (folder / f"{number:02d}.tar").write_bytes(b"")
    fingerprints = [input_fingerprint(WebdatasetInput(path=str(folder)))]
    (folder / "07.tar").write_bytes(b"more")
    fingerprints.append(input_fingerprint(WebdatasetInput(path=str(folder))))
    fingerprints += [
        input_fingerprint(WebdatasetInput(path=str(folder / name))) for name in ("07.tar", "0[6-7].tar")
    ]
    (folder / "07.tar").write_bytes(b"more and more")
    fingerprints.append(input_fingerprint(WebdatasetInput(path=str(folder / "07.tar"))))
    assert len(set(fingerprints)) == 5


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        ("nothing/here", "no such folder: s3://bucket/nothing/here"),
        (
            "inline/dataset.json",
            "s3://bucket/inline/dataset.json is a file: expected the folder that a run",
        ),
        ("inline/data", "s3://bucket/inline/data is not a finished dataset: no dataset.json in it"),
    ],
)
def test_what_is_no_dataset_is_named_by_its_url(stored, dataset: str, words: str) -> None:
    with pytest.raises(InputError, match=f"^{re.escape(words)}"):
        open_dataset(Path(f"s3://bucket/{dataset}"))


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
    start = time.monotonic()
    with locked(lease_file) as lease:
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


def test_a_lease_that_is_replaced_while_it_is_read_is_read_again(
    lease_file: ObjectPath, monkeypatch
) -> None:
    """Storage says how long an object is, and then gives the content of the next one."""
    contents = [b'["other, process 7, abc", 1]"', b'["other, process 7, a', b'["other, process 7, abc", 2]']
    monkeypatch.setattr(ObjectPath, "read_bytes", lambda _: contents.pop(0))
    assert Lease(lease_file)._read() == ("other, process 7, abc", 2)
    monkeypatch.setattr(ObjectPath, "read_bytes", lambda _: b"mine")
    with pytest.raises(ResumeError, match="is not the lease of a run"):
        Lease(lease_file)._read()
