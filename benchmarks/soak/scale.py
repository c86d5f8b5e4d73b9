"""`make scale`: memory over the length of a run, and start-up and resume with inputs of a million rows.

    python -m benchmarks.soak.scale --images 2000 20000 100000 --out out/scale
    python -m benchmarks.soak.scale --rows 1000000 --tars 10000

Small images and a tiny CLIP with random weights in open_clip's real architecture: what is measured is what a run
keeps, and that does not depend on what a model knows. One JSON line a figure. Memory is what a process has written for
itself (anonymous pages) and all it has mapped (RSS: with libraries and the object store, which processes share), in MB;
the slope is that of the first over finished rows, from a quarter of the run to three quarters. The unique set size
(USS) would mislead: it jumps by 40 to 50 MB whenever another process that shares the libraries' pages ends.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tarfile
import time
from collections import defaultdict
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from benchmarks.soak.cluster import Watch
from phrasebox.pipeline.config.run_config import RunConfig
from phrasebox.pipeline.output.dataset_folder import DatasetFolder
from phrasebox.pipeline.run.decisions import find_input, resolve
from phrasebox.stages.contract.records import Record, Sample
from phrasebox.stages.contract.schema import records_to_rows
from phrasebox.stages.model.config import AUTO
from phrasebox.stages.read import input_fingerprint
from phrasebox.stages.write import ShardWriter

STORE_BYTES: Final = 200_000_000
IMAGES: Final = 500  # different ones; the rows of longer inputs share them
SAMPLE_SECONDS: Final = 2.0


def write_images(folder: Path) -> None:
    """Small JPEGs of two coloured squares each."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(IMAGES):
        rgb = np.full((64, 64, 3), 200, np.uint8)
        rgb[8:30, number % 30 : number % 30 + 20] = (number % 256, 30, 30)
        rgb[36:60, 10:40] = (30, 30, number * 7 % 256)
        Image.fromarray(rgb).save(folder / f"{number:06d}.jpg", quality=90)


def write_rows(path: Path, rows: int) -> None:
    """captions.jsonl over the images."""
    with path.open("w") as file:
        for number in range(rows):
            image = f"{number % IMAGES:06d}.jpg"
            row = {
                "id": f"sample-{number:07d}",
                "image": image,
                "caption": f"A red box above blue box {number % 97}.",
            }
            file.write(json.dumps(row) + "\n")


def write_tars(folder: Path, tars: int, image: Path) -> None:
    """Tars of one sample each."""
    folder.mkdir(parents=True)
    content = image.read_bytes()
    for number in range(tars):
        with tarfile.open(folder / f"{number:05d}.tar", "w") as tar:
            for extension, part in (("jpg", content), ("txt", b"A red box.")):
                member = tarfile.TarInfo(f"{number:05d}.{extension}")
                member.size = len(part)
                tar.addfile(member, BytesIO(part))


def write_model(folder: Path) -> dict[str, str]:
    """A tiny model; its keys of `model`."""
    from tests.stages.model.saved import save_model  # noqa: PLC0415  it loads torch

    folder.mkdir(parents=True, exist_ok=True)
    config = save_model(folder)[1]
    return {"config": str(config.config), "weights": str(config.weights), "device": "cpu"}


def values_of(
    source: dict[str, str], model: dict[str, str], out: Path, rows_per_file: int = 1000
) -> dict[str, Any]:
    """A run's configuration."""
    engine = {"kind": "ray", "explain_workers": 1, "cpu_workers": 1, "object_store_bytes": STORE_BYTES}
    return {
        "input": source,
        "model": {**model, "threads": 1},
        "engine": engine,
        "output": {"path": str(out), "rows_per_file": rows_per_file},
    }


class Watched:
    """A run in a process of its own, with the memory of all its processes over time."""

    def __init__(self, values: dict[str, Any], folder: Path) -> None:
        config = folder / f"{Path(values['output']['path']).name}.yaml"
        config.write_text(RunConfig.model_validate(values).to_yaml())
        self.data = Path(values["output"]["path"]) / "data"
        self.start = time.monotonic()
        self.first_shard_s: float | None = None
        self.samples: dict[str, list[tuple[int, float, float]]] = defaultdict(list)
        command = [sys.executable, "-m", "phrasebox", "run", str(config)]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.watch = Watch(self.process.pid)
        self._counted: dict[Path, int] = {}
        self._cpu: dict[int, float] = {}

    def run(self) -> float:
        """Wait for the end; returns seconds. Raises AssertionError if the run fails."""
        while self.process.poll() is None:
            self.sample()
            time.sleep(SAMPLE_SECONDS if self.first_shard_s is not None else 0.2)
        assert self.process.stdout is not None
        told = self.process.stdout.read()
        assert self.process.returncode == 0, told
        return time.monotonic() - self.start

    @property
    def cpu_s(self) -> float:
        """Seconds on a core, of all processes; what a shared machine does not change."""
        return sum(self._cpu.values())

    def rows(self) -> int:
        """Rows in finished shards."""
        for path in set(self.data.glob("*.parquet")) - set(self._counted):
            try:
                self._counted[path] = pq.read_metadata(path).num_rows
            except (OSError, ValueError):
                continue  # being written
        return sum(self._counted.values())

    def sample(self) -> None:
        """Note what the processes have used by now."""
        rows = self.rows()
        if rows and self.first_shard_s is None:
            self.first_shard_s = time.monotonic() - self.start
        used: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        for pid, usage in self.watch.look().items():
            self._cpu[pid] = usage.cpu_s
            used[usage.kind][0] += usage.own_mb
            used[usage.kind][1] += usage.rss_mb
        for kind, (own_mb, mapped) in used.items():
            self.samples[kind].append((rows, own_mb, mapped))

    def figures(self) -> dict[str, Any]:
        """Per kind of process: peak of own and mapped memory, and the slope of its own."""
        memory = {}
        for kind in sorted(self.samples):
            table = np.array(self.samples[kind])
            if len(table) < 2:
                continue
            warm = table[(table[:, 0] >= table[-1, 0] / 4) & (table[:, 0] <= table[-1, 0] * 3 / 4)]
            slope = None
            if len(warm) >= 8 and warm[-1, 0] > warm[0, 0]:
                (slope, _), covariance = np.polyfit(warm[:, 0] / 1e4, warm[:, 1], 1, cov=True)
                slope = {
                    "mb_per_10k_rows": round(slope, 2),
                    "plus_minus": round(2 * covariance[0, 0] ** 0.5, 2),
                }
            memory[kind] = {
                "own_mb": round(table[:, 1].max()),
                "rss_mb": round(table[:, 2].max()),
                "slope": slope,
            }
        return memory


def memory(images: int, folder: Path, model: dict[str, str]) -> dict[str, Any]:
    """Peak memory and its slope for a run over so many images."""
    source = folder / f"{images}.jsonl"
    write_rows(source, images)
    inputs = {"kind": "jsonl", "path": str(source), "image_root": str(folder / "images")}
    out = folder / f"memory-{images}"
    watched = Watched(values_of(inputs, model, out), folder)
    seconds = watched.run()
    (folder / f"memory-{images}.json").write_text(json.dumps(watched.samples))
    manifest = json.loads((out / "dataset.json").read_text())
    assert manifest["counts"]["written"] == images
    shutil.rmtree(out)
    return {"images": images, "seconds": round(seconds), "cpu_s": round(watched.cpu_s), **watched.figures()}


def start_and_resume(
    source: dict[str, str], rows: int, left: int, folder: Path, model: dict[str, str]
) -> Any:
    """Seconds until the first shard of 32 rows, and until the end of a run of which only `left` rows are missing."""
    folder.mkdir()
    first = Watched(values_of(source, model, folder / "start", 32), folder)
    while first.first_shard_s is None:
        assert first.process.poll() is None, first.process.communicate()
        first.sample()
        time.sleep(0.2)
    first_cpu_s = first.cpu_s
    first.process.terminate()
    first.process.communicate()
    out = folder / "resume"
    config = RunConfig.model_validate(values_of(source, model, out))
    resolved = resolve(find_input(config), AUTO, lambda _: None)
    output = DatasetFolder(out)
    with output.locked():
        previous = output.claim(resolved.identity)
        output.start(previous, {"input_fingerprint": input_fingerprint(config.input)})
        writer = ShardWriter(output.data, 10_000)
        items = (item for piece in resolved.input_pieces for item in resolved.reader.read(piece))
        ids = (item.sample_id for item in items if isinstance(item, Sample))
        batch: list[Record] = []
        for number, sample_id in enumerate(ids):
            if number >= rows - left:
                break
            batch.append(Record(sample=Sample(sample_id=sample_id, source="", captions=("A red box.",))))
            if len(batch) == 10_000 or number == rows - left - 1:
                writer.write(records_to_rows(batch))
                batch = []
        writer.close()
    resumed = Watched(values_of(source, model, out), folder)
    seconds = resumed.run()
    counts = json.loads((out / "dataset.json").read_text())
    assert counts["counts"]["written"] == rows
    figures = {kind: figure["rss_mb"] for kind, figure in resumed.figures().items()}
    return {
        "rows": rows,
        "first_shard_s": round(first.first_shard_s, 1),
        "first_shard_cpu_s": round(first_cpu_s, 1),
        "resume_of_last": left,
        "resume_s": round(seconds, 1),
        "resume_cpu_s": round(resumed.cpu_s, 1),
        "explained_again": counts["stages"]["explain"]["records"] - left,
        "rss_mb": figures,
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, nargs="*", default=[2_000, 20_000, 100_000])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--tars", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=Path("out/scale"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    folder = given.out.absolute()
    write_images(folder / "images")
    model = write_model(folder / "model")

    def tell(name: str, figure: dict[str, Any]) -> None:
        line = json.dumps({"name": name, **figure})
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
        with (folder / "scale.log").open("a") as file:
            file.write(line + "\n")

    for images in given.images:
        tell("memory", memory(images, folder, model))
    if given.tars:
        write_tars(folder / "tars", given.tars, folder / "images/000000.jpg")
        source = {"kind": "webdataset", "path": str(folder / "tars")}
        tell("tars", start_and_resume(source, given.tars, min(1000, given.tars // 2), folder / "t", model))
    if given.rows:
        write_rows(folder / "rows.jsonl", given.rows)
        source = {"kind": "jsonl", "path": str(folder / "rows.jsonl"), "image_root": str(folder / "images")}
        tell("rows", start_and_resume(source, given.rows, min(1000, given.rows // 2), folder / "r", model))


if __name__ == "__main__":
    main()
