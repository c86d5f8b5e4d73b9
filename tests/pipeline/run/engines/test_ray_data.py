"""The ray engine gives the rows of the inline engine, and loses or doubles none when it is killed."""

import re
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from phrasebox.pipeline.config.run_config import load_config
from phrasebox.pipeline.dataset.validate import validate
from phrasebox.pipeline.demo.scenes import write_scenes
from phrasebox.pipeline.run.engines import CPU_MODEL_WORKERS, cores_here
from phrasebox.pipeline.run.run import run as in_this_process
from tests.build.datasets import Json, manifest_of, shards_of
from tests.build.files import read_json
from tests.pipeline.light import assert_alike, ended, row_groups_of, rows_of

pytestmark = pytest.mark.ray

SCENES = 80

SMALL = ("engine.explain_workers=1", "engine.cpu_workers=1")


def command(source: Path, out: Path, *settings: str) -> list[str]:
    keys = [
        "input.kind=jsonl",
        f"input.path={source / 'captions.jsonl'}",
        f"input.image_root={source / 'images'}",
        "input.piece_size=16",
        "model.name=demo",
        "model.threads=1",
        "explain.blocks=1",
        "engine.kind=ray",
        f"output.path={out}",
        "output.rows_per_file=16",
        "output.embed_images=true",
        *settings,
    ]
    return [
        sys.executable,
        "-m",
        "phrasebox",
        "run",
        *(part for key in keys for part in ("--set", key)),
    ]


def run(*args: Any) -> str:
    done = ended(command(*args))
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes, and among their rows one that is no JSON, one without image and one without caption."""
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, SCENES, 7)
    lines = (folder / "captions.jsonl").read_text().splitlines()
    lines[10:10] = ["{not json", '{"id": "gone", "image": "gone.jpg", "caption": "a cat"}']
    lines[30:30] = ['{"id": "mute", "image": "000000.jpg", "caption": " "}']
    (folder / "captions.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def inline(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("inline") / "out"
    run(source, out, "engine.kind=inline", "output.rows_per_file=50")
    rows = rows_of(out)
    assert len(rows) == SCENES + 3
    assert sum(row["error"] is not None for row in rows) == 3
    return out


@pytest.fixture(scope="module")
def reference(inline: Path) -> list[Json]:
    return rows_of(inline)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [["engine.explain_workers=2"], ["output.rows_per_file=50"]], ids=str)
def test_ray_gives_the_rows_of_inline(source, inline, reference, tmp_path, settings) -> None:
    """In files of the same kind: rows may be in other files, since Ray writes them as they are finished."""
    out = tmp_path / "out"
    printed = run(source, out, *settings)
    assert_alike(rows_of(out), reference)
    assert list(validate(out)) == []
    assert "83" in printed
    explained = manifest_of(out)["stages"]["explain"]
    assert sum(explained["devices"].values()) == explained["images"]
    most = 50 if "output.rows_per_file=50" in settings else 16
    assert all(rows <= most for (rows,) in row_groups_of(out))
    # That of the file names its run, whose engine differs.
    schemas = [pq.read_schema(shards_of(dataset)[0]).remove_metadata() for dataset in (inline, out)]
    assert schemas[0].equals(schemas[1], check_metadata=True)
    assert "nothing to do" in run(source, out, *settings)


@pytest.mark.slow
def test_a_trial_of_the_first_samples_in_one_process_goes_on_with_the_others_on_ray(
    source, tmp_path
) -> None:
    """Presence was fitted to the samples of the trial, also where one process goes on."""
    out = tmp_path / "out"
    inline = tmp_path / "inline"
    for folder in (out, inline):
        run(source, folder, "engine.kind=inline", "input.limit=20")
    assert len(rows_of(out)) == 20
    assert "samples of the input that have no row yet: 63. They are added" in run(source, out)
    run(source, inline, "engine.kind=inline")
    assert_alike(rows_of(out), rows_of(inline))
    assert "nothing to do" in run(source, out, "engine.kind=inline", "input.limit=20")


@pytest.mark.slow
def test_the_first_images_take_the_cores_that_nobody_else_has(source, tmp_path) -> None:
    """Ray gives a worker one thread, and torch keeps the number that it finds when it is imported."""
    said = run(source, tmp_path / "out", "input.limit=24", "explain.blocks=4", "model.threads=null")
    (device,) = re.findall(r"images computed on .*?(\S+), (\d+) thread", said)
    assert device == ("cpu", str(min(cores_here(), CPU_MODEL_WORKERS)))


def test_an_input_without_rows_gives_a_dataset_without_rows(tmp_path) -> None:
    (tmp_path / "captions.jsonl").write_text("")
    (tmp_path / "images").mkdir()
    run(tmp_path, tmp_path / "out")
    assert read_json(tmp_path / "out/dataset.json")["counts"]["written"] == 0


@pytest.mark.slow
def test_a_worker_that_cannot_start_says_why(source, tmp_path) -> None:
    done = ended(command(source, tmp_path / "out", "model.device=cuda"))
    assert done.returncode == 2
    assert "this worker sees no GPU" in done.stderr
    assert "Traceback" not in done.stderr


ON_A_PROCESSOR = """
import sys

import torch

from phrasebox.pipeline.commands.cli import main

instruction = sys.argv.pop(1)
torch.cpu.get_capabilities = lambda: {instruction: True}
main()
"""


def on_processor(instruction: str, command: list[str]) -> list[str]:
    """Return the command for a machine whose processor has one instruction of those that decide a precision."""
    return [sys.executable, "-c", ON_A_PROCESSOR, instruction, *command[3:]]


def test_a_killed_run_goes_on_where_it_stopped(source, tmp_path) -> None:
    """kill -9 of the driver and of all that it started. benchmarks/soak kills each of them, at other times.

    It goes on in smaller batches, as a message about full memory advises, and on a machine without instructions for the
    precision that was decided before. Without a calibration there is no first look, which would make most rows.
    """
    out = tmp_path / "out"
    few = 40
    first = (f"input.limit={few}", "regions.calibration=none")
    wanted = on_processor("avx512_bf16", command(source, out, *SMALL, *first))
    inline = command(source, tmp_path / "inline", *first, "engine.kind=inline", "model.precision=bf16")[
        5::2
    ]
    reference = rows_of(Path(str(in_this_process(load_config(None, inline), Console(quiet=True)))))
    assert len(reference) == few
    kill_when(wanted, lambda: any((out / "data").glob("*.parquet")))
    finished = {path: path.read_bytes() for path in (out / "data").glob("*.parquet")}
    assert not (out / "dataset.json").exists()
    smaller = ("input.piece_size=7", "model.batch_size=3")
    again = on_processor("avx2", command(source, out, *SMALL, *first, *smaller))
    printed = ended(again).stdout
    assert "resuming the run" in printed
    assert printed.startswith("model: demo in bf16")
    assert_alike(rows_of(out), reference)
    assert list(validate(out)) == []
    content = {path: path.read_bytes() for path in finished}
    assert content == finished, "finished shards are neither rewritten nor lost"
    manifest = manifest_of(out)
    assert manifest["config"]["model"]["precision"] == "bf16"
    assert manifest["counts"]["read"] == manifest["counts"]["written"] == few
    done = manifest["stages"].get("explain", {"records": 0})["records"]  # 0: all rows had been written
    assert done <= len(reference) - sum(pq.read_metadata(path).num_rows for path in finished)


def kill_when(wanted: list[str], condition: Callable[[], bool]) -> None:
    process = subprocess.Popen(wanted, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not condition():
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.02)
    # The driver first, so that no other process can tell it of an end. Ray's would go by themselves, after a minute.
    everything = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for worker in everything:
        with suppress(psutil.NoSuchProcess):
            worker.kill()
    process.wait()
    psutil.wait_procs(everything)
