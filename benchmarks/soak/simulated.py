"""How many model workers one driver, one ledger and one object store can feed: model workers that sleep.

    python -m benchmarks.soak.simulated --workers 1 2 4 8 16 32 64 --seconds 1

On GPUs a model takes next to no CPU, so what ends a run's growth is what the graph itself takes: Ray's driver, raylet
and object store, the ledger, and the tables that workers make of records and back. Here it is measured on however many
cores there are. Captions are cut by spaces, images are noise of the model's size, and the model sleeps for each batch
and answers with heat maps of noise; everything between them is the real engine. Ray is told of as many logical CPUs as
there are workers, so that a core can carry dozens of them.

One JSON line for each number of workers: batches and images a second between a third and nine tenths of the images,
their share of what so many sleeping workers could do at most, and for each kind of process the cores that it kept busy
in that time, and milliseconds of a core for each batch.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar, Final

import numpy as np
from rich.console import Console

from benchmarks.soak.cluster import Used, Watch
from phrasebox.pipeline.config.run_config import RunConfig
from phrasebox.pipeline.output.report import Display, Report
from phrasebox.stages.contract.records import HeatMap, Phrase, Pixels, Record
from phrasebox.stages.contract.stage import Device, Stage
from phrasebox.stages.read import make_reader
from tests.pipeline.light import LastStage, resolved_light, run_on_ray

MOST_BATCHES_PER_S: Final = (
    40  # more than two cores can carry; it limits how many images a measurement is given
)
SAMPLE_SECONDS, END_SECONDS = 2.0, 20.0
STORE_BYTES: Final = 1_500_000_000


class SpacedCaptions(Stage):
    """The words of a caption are its phrases."""

    name: ClassVar[str] = "phrases"

    def process(self, batch: Sequence[Record]) -> list[Record]:
        """Return the records with phrases."""
        return [replace(record, phrases=_words(record.sample.captions)) for record in batch]


def _words(captions: Sequence[str]) -> tuple[Phrase, ...]:
    return tuple(
        Phrase(
            text=word.group(), caption_index=index, start=word.start(), end=word.end(), head=word.group()
        )
        for index, caption in enumerate(captions)
        for word in re.finditer(r"\S+", caption)
    )


class NoisePixels(Stage):
    """An image of noise, the same for all; `side_px` as the model takes it."""

    name: ClassVar[str] = "prepare"

    def __init__(self, side_px: int) -> None:
        self.side_px = side_px

    def setup(self) -> None:
        """Draw the noise."""
        shape = (self.side_px, self.side_px, 3)
        self.pixels = Pixels(rgb=np.random.default_rng(0).integers(0, 256, shape, np.uint8))

    def process(self, batch: Sequence[Record]) -> list[Record]:
        """Return the records with the image."""
        return [replace(record, pixels=self.pixels, width_px=640, height_px=480) for record in batch]


class SleepingModel(Stage):
    """Sleeps for a batch of so many rows, and answers with heat maps of noise."""

    name: ClassVar[str] = "explain"

    def __init__(self, seconds: float, rows: int) -> None:
        self.seconds, self.rows = seconds, rows

    def forward_batch_size(self, device: Device | None = None) -> int:
        """Return the images of a forward pass."""
        return self.rows

    def setup(self) -> None:
        """Draw the noise."""
        self.noise = np.random.default_rng(0).random((14, 14), np.float32)

    def process(self, batch: Sequence[Record]) -> list[Record]:
        """Return the records with heat maps, after a while."""
        time.sleep(self.seconds)
        return [replace(record, pixels=None, heat_maps=self._maps(record)) for record in batch]

    def _maps(self, record: Record) -> tuple[HeatMap, ...]:
        texts = dict.fromkeys(phrase.text for phrase in record.phrases)
        return tuple(HeatMap(text=text, values=self.noise, similarity=0.2) for text in texts)


def write_captions(folder: Path, images: int) -> Path:
    """captions.jsonl of images that nobody opens. The first is there, or the run is refused."""
    (folder / "0.jpg").touch()
    path = folder / "captions.jsonl"
    with path.open("w") as file:
        for number in range(images):
            captions = [f"dog runs over field {number % 97}", f"dog sees ball {number % 89}"]
            file.write(
                json.dumps({"id": f"s{number}", "image": f"{number}.jpg", "captions": captions}) + "\n"
            )
    return path


def simulate(given: dict[str, Any]) -> dict[str, Any]:
    """Run the real engine over captions in this process. Returns when how many images the model had answered."""
    config = RunConfig.model_validate(given["config"])
    model = SleepingModel(given["seconds"], given["batch"])
    run = resolved_light(make_reader(config.input), config, model, LastStage(0.0))
    before: Any = (SpacedCaptions(), NoisePixels(given["side_px"]))
    progress: list[tuple[float, int]] = []

    class Progress(Display):
        def update(self, report: Report) -> None:
            answered = report.stages["explain"].records if "explain" in report.stages else 0
            if answered > (progress[-1][1] if progress else 0):
                progress.append((time.time(), answered))

    display = Progress(Console(quiet=True))
    report = run_on_ray(replace(run, steps=replace(run.steps, before=before)), display)
    return {"progress": progress, "deaths": report.deaths}


class Load:
    """The processor time of a process and all below it, by kind, from time to time."""

    def __init__(self, pid: int) -> None:
        self.watch = Watch(pid)
        self.looks: list[tuple[float, dict[int, Used]]] = []

    def look(self) -> None:
        """Take a sample."""
        self.looks.append((time.time(), self.watch.look()))

    def between(self, start: float, end: float) -> tuple[dict[str, float], float | None]:
        """Busy cores by kind of process between two times, and the mean memory of a model worker at the end, in MB."""
        looks = [each for each in self.looks if start <= each[0] <= end and each[1]]
        if len(looks) < 2:
            raise ValueError("expected two samples of the load at least: measure for longer")
        (first_s, first), (last_s, last) = looks[0], looks[-1]
        cores: dict[str, float] = defaultdict(float)
        for pid, used in last.items():
            cores[used.kind] += (used.cpu_s - (first[pid].cpu_s if pid in first else 0.0)) / (
                last_s - first_s
            )
        memory = [used.own_mb for used in last.values() if used.kind == "model worker"]
        return dict(cores), fmean(memory) if memory else None


def throughput(workers: int, seconds: float, batch: int, side_px: int, hold_s: float) -> dict[str, Any]:
    """What so many workers are given to do that sleep for each batch of 32 records, the fewest handed on, or more."""
    ideal = workers / seconds
    images = batch * max(4 * workers, round(min(ideal, MOST_BATCHES_PER_S) * hold_s))
    with tempfile.TemporaryDirectory() as folder:
        captions = write_captions(Path(folder), images)
        config = {
            "input": {"kind": "jsonl", "path": str(captions), "image_root": folder},
            "engine": {"kind": "ray", "explain_workers": workers, "object_store_bytes": STORE_BYTES},
            "model": {"device": "cpu", "threads": 1},
            "output": {"path": str(Path(folder) / "out")},
        }
        given = {"config": config, "seconds": seconds, "batch": batch, "side_px": side_px}
        command = [sys.executable, "-m", "benchmarks.soak.simulated", "--simulate", json.dumps(given)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        load = Load(process.pid)
        while process.poll() is None:
            load.look()
            time.sleep(SAMPLE_SECONDS)
        assert process.stdout is not None
        with process.stdout as output:
            printed = output.read()
    assert process.returncode == 0, printed
    left = load.watch.left_behind(END_SECONDS)
    result = json.loads(printed.splitlines()[-1])
    assert not result["deaths"], "no worker dies: there is enough memory"
    inner = [(when, done) for when, done in result["progress"] if images / 3 <= done <= images * 0.9]
    (start, first), (end, last) = inner[0], inner[-1]
    rate = (last - first) / batch / (end - start)
    cores, memory_mb = load.between(start, end)
    return {
        "workers": workers,
        "sleep_s": seconds,
        "images": images,
        "measured_s": round(end - start, 1),
        "batches_per_s": round(rate, 2),
        "images_per_s": round(rate * batch, 1),
        "of_ideal": round(rate / ideal, 3),
        "cores": round(sum(cores.values()), 2),
        "cores_by_kind": {kind: round(busy, 3) for kind, busy in sorted(cores.items())},
        "core_ms_a_batch": {kind: round(1000 * busy / rate, 1) for kind, busy in sorted(cores.items())},
        "left_behind": left,
        "model_worker_mb": None if memory_mb is None else round(memory_mb),
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--seconds", type=float, default=1.0, help="of sleep for a batch")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--side", type=int, default=224, help="pixels of an image's sides")
    parser.add_argument("--hold", type=float, default=40.0, help="seconds to measure, about")
    parser.add_argument("--simulate", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.simulate is not None:
        # Workers know the stages by this module's own name, not as those of a script.
        from benchmarks.soak import simulated  # noqa: PLC0415

        sys.stdout.write(json.dumps(simulated.simulate(given.simulate)) + "\n")
        return
    for workers in given.workers:
        figure = throughput(workers, given.seconds, given.batch, given.side, given.hold)
        sys.stdout.write(json.dumps(figure) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
