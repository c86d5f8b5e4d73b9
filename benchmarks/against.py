"""`make bench AGAINST=COMMIT`: whole runs of this commit and of another one, in turn on one machine, start included.

The other commit is checked out and installed in a folder of its own, with the libraries of this one. A run is
`phrasebox run` with options and settings that both commits have, so that nothing of their code has to fit together. A
figure is the CPU time of a run with all processes, its wall time, or the time of a stage as `dataset.json` has
it: phrases, images, heat maps, regions. On Ray there is the start, too: wall time until the first shard, and the CPU
time until then of the driver, of our workers, and of Ray's own processes. The figures of `benchmarks.bench` are not
compared: their definitions, inputs and baselines belong to a commit and change with it. A stage of a run gets the same
images and settings on both sides.

A figure has the median of the ratios of all pairs, ours to theirs, and their range. The range of n pairs holds the true
median with a probability of 1 - 2^(1-n): 0.88 for four.

The program fails where the CPU time of a figure has grown by more than a tenth and all of its pairs agree that it grew.
Stages of runs in one process are judged, too: a slow stage hides in a whole run. Their clock is the CPU time of that
process. Stages on Ray have wall time, which is printed alone.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import venv
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Final

import open_clip
from PIL import Image
from safetensors.torch import save_file

from benchmarks.captions import make_captions
from benchmarks.processes import measure_run
from phrasebox.pipeline.demo.scenes import write_scenes

ROOT: Final = Path(__file__).parents[1]

PAIRS: Final = 4
MANY_IMAGES: Final = 1000  # from which on a run, which takes minutes and varies less, has half of the pairs

MOST_GROWTH: Final = 1.1  # of CPU time
LEAST_SECONDS: Final = 0.1  # shorter times count as this one: a growth by milliseconds is none

NO_FIT: Final = ("regions.calibration=none",)  # presence is not fitted
GUIDED: Final = (*NO_FIT, "regions.upsample=guided", "regions.rule=fixed")
GRABCUT: Final = (*NO_FIT, "regions.refine=grabcut")

BUNDLED: Final = ("demo", "photo")  # models that every commit brings

PHOTOGRAPHS: Final = ROOT / "pipeline" / "demo" / "photographs"

ON_CPU_CLOCK: Final = """
import runpy, time
time.perf_counter = time.process_time
runpy.run_module("{module}", run_name="__main__")
"""  # A run in one process measures its stages by perf_counter.


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A run: `count` images of a kind with so many captions, by a model on an engine."""

    images: str  # "scenes", drawn ones of 256 px, or "photographs", the bundled ones again and again
    count: int
    captions: int
    model: str  # one of `BUNDLED`, or an architecture with random weights
    engine: str
    settings: tuple[str, ...] = NO_FIT
    pair_s: int  # what a run of each commit takes together, on two idle cores

    @property
    def name(self) -> str:
        """What a line of the table is about."""
        named = f"{self.count} {self.images}, captions {self.captions}, {self.model}, {self.engine}"
        return ", ".join([named, *self.settings])

    def pairs(self, most: int) -> int:
        """Return how many pairs of runs are timed where short runs have `most`."""
        return most if self.count < MANY_IMAGES else -(-most // 2)

    def is_cpu_time(self, figure: str) -> bool:
        """Whether a figure is CPU time: that of the run, of its start, or of a stage if the run has one process."""
        is_clocked = figure.startswith("stage ") and self.engine == "inline"
        return figure == "cpu" or figure.startswith("start cpu ") or is_clocked


WORKLOADS: Final = (
    Workload(images="scenes", count=100, captions=1, model="demo", engine="inline", pair_s=20),
    Workload(images="scenes", count=100, captions=1, model="demo", engine="ray", pair_s=60),
    Workload(images="scenes", count=3000, captions=1, model="demo", engine="inline", pair_s=220),
    Workload(images="scenes", count=3000, captions=1, model="demo", engine="ray", pair_s=260),
    Workload(images="photographs", count=100, captions=1, model="ViT-B-16", engine="inline", pair_s=40),
    Workload(images="photographs", count=100, captions=5, model="ViT-B-16", engine="inline", pair_s=50),
    Workload(images="photographs", count=100, captions=1, model="ViT-B-32", engine="inline", pair_s=25),
    Workload(images="photographs", count=100, captions=5, model="ViT-B-32", engine="inline", pair_s=35),
    Workload(
        images="photographs",
        count=100,
        captions=5,
        model="ViT-B-32",
        engine="inline",
        settings=(),
        pair_s=40,
    ),
    Workload(images="photographs", count=100, captions=5, model="ViT-B-32", engine="ray", pair_s=70),
    Workload(  # with a calibration that has learned boxes
        images="photographs", count=100, captions=5, model="photo", engine="inline", settings=(), pair_s=40
    ),
    Workload(
        images="photographs",
        count=100,
        captions=5,
        model="demo",
        engine="inline",
        settings=GUIDED,
        pair_s=30,
    ),
    Workload(
        images="photographs",
        count=100,
        captions=1,
        model="demo",
        engine="inline",
        settings=GRABCUT,
        pair_s=30,
    ),
)

WARM_UP: Final = replace(WORKLOADS[0], count=8)
"""What each engine runs first, without a figure: it compiles modules and reads them from the disk."""


class Inputs:
    """Images, captions and weights in a folder, made once for both commits."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def captions(self, workload: Workload) -> Path:
        """Return a file of JSON lines, with absolute paths of the images."""
        file = self.folder / f"{workload.images}-{workload.count}-{workload.captions}.jsonl"
        rows = self._scenes(workload) if workload.images == "scenes" else self._photographs(workload)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return file

    def weights(self, architecture: str) -> Path:
        """Return a checkpoint with random weights."""
        file = self.folder / f"{architecture}.safetensors"
        if not file.exists():
            state = open_clip.create_model(architecture).state_dict()
            save_file({name: value.contiguous() for name, value in state.items()}, file)
        return file

    def _scenes(self, workload: Workload) -> Iterator[dict[str, Any]]:
        folder = self.folder / f"scenes-{workload.count}"
        if not folder.exists():
            write_scenes(folder, workload.count, 0)
        for row in map(json.loads, (folder / "captions.jsonl").read_text("utf-8").splitlines()):
            captions = row.get("captions") or [row["caption"]]
            yield {
                "image": str(folder / "images" / row["image"]),
                "captions": captions[: workload.captions],
            }

    def _photographs(self, workload: Workload) -> Iterator[dict[str, Any]]:
        rows = [
            json.loads(text) for text in (PHOTOGRAPHS / "captions.jsonl").read_text("utf-8").splitlines()
        ]
        texts = iter(make_captions(workload.count * workload.captions))
        for number in range(workload.count):
            row = rows[number % len(rows)]
            picture = self.folder / f"photograph-{number}.jpg"
            if not picture.exists():
                image = Image.open(PHOTOGRAPHS / row["image"]).convert("RGB")
                image.resize((640, 480)).rotate(number % 7).save(picture, quality=90)
            yield {"image": str(picture), "captions": list(islice(texts, workload.captions))}


@dataclass(frozen=True, slots=True)
class Checkout:
    """A commit that is installed in an environment of its own."""

    path: Path
    python: Path

    def measure(self, engine: str, arguments: list[str], out: Path) -> dict[str, float]:
        """Run `phrasebox run`, and return seconds by name: `cpu`, `wall`, `stage NAME`, and on Ray `start NAME`."""
        shutil.rmtree(out, ignore_errors=True)
        module = next(  # the last two are those of old commits
            name
            for name in ("phrasebox", "phrasebox.pipeline", "pipeline")
            if (self.path / name.replace(".", "/") / "__main__.py").is_file()
        )
        program = ["-c", ON_CPU_CLOCK.format(module=module)] if engine == "inline" else ["-m", module]
        command = [
            str(self.python),
            *program,
            "run",
            *arguments,
            "--engine",
            engine,
            "--out",
            str(out),
        ]
        surroundings = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        with tempfile.TemporaryFile("w+") as printed:
            process = subprocess.Popen(
                command, cwd=self.path, env=surroundings, stdout=printed, stderr=subprocess.STDOUT
            )
            seconds = measure_run(process, out / "data", by_kind=engine == "ray")
            if process.returncode != 0:
                printed.seek(0)
                sys.exit(f"{' '.join(command)} failed:\n{printed.read()}")
        stages = json.loads((out / "dataset.json").read_text("utf-8"))["stages"]
        return {**seconds, **{f"stage {name}": stage["busy_s"] for name, stage in stages.items()}}


def check_out(commit: str, folder: Path) -> Checkout:
    """Check a commit out below a folder and install it there, with the libraries of this one, unless that was done.

    Exit if git has no such commit, or pip cannot install it.
    """
    revision = subprocess.run(
        ["git", "rev-parse", "--verify", f"{commit}^{{commit}}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    if not revision:
        sys.exit(f"AGAINST: git knows no commit {commit}")
    path = folder / revision[:12]
    environment = path / ".venv"
    python = environment / "bin" / "python"
    is_installed = environment / "installed"
    if not is_installed.exists():
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        archive = subprocess.run(
            ["git", "archive", revision], cwd=ROOT, capture_output=True, check=True
        ).stdout
        subprocess.run(["tar", "x", "-C", str(path)], input=archive, check=True)
        venv.create(environment, with_pip=True)
        # Libraries that only one side has cost time too: open_clip imports transformers where it finds it.
        [packages] = environment.glob("lib/python3*/site-packages")
        (packages / "libraries.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
        install = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "-e", str(path)]
        if subprocess.run(install, check=False).returncode != 0:
            sys.exit(f"AGAINST: {commit} cannot be installed in {path}: pip says above why")
        is_installed.touch()
    return Checkout(path, python)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Seconds of one figure in pairs of runs, one of each commit."""

    ours: list[float]
    theirs: list[float]

    @property
    def ratios(self) -> list[float]:
        """Our time divided by theirs, by pair."""
        pairs = zip(self.ours, self.theirs, strict=True)
        return [max(ours, LEAST_SECONDS) / max(theirs, LEAST_SECONDS) for ours, theirs in pairs]

    @property
    def has_grown(self) -> bool:
        """Whether our time is larger by more than a tenth, and larger in every pair."""
        return statistics.median(self.ratios) > MOST_GROWTH and min(self.ratios) > 1

    def plain(self) -> dict[str, float]:
        """Return the figures of a line."""
        ratios = self.ratios
        figures = {
            "ours_s": statistics.median(self.ours),
            "theirs_s": statistics.median(self.theirs),
            "ratio": statistics.median(ratios),
            "least": min(ratios),
            "most": max(ratios),
        }
        return {name: round(value, 3) for name, value in figures.items()}


def compare(
    workload: Workload, inputs: Inputs, ours: Checkout, theirs: Checkout, pairs: int
) -> dict[str, Comparison]:
    """Run a workload by both commits in turn, which begins by turns too."""
    arguments = [str(inputs.captions(workload)), "--model", workload.model]
    if workload.model not in BUNDLED:
        arguments += ["--weights", str(inputs.weights(workload.model))]
    arguments += [part for setting in workload.settings for part in ("--set", setting)]
    seconds: dict[Checkout, list[dict[str, float]]] = {ours: [], theirs: []}
    for number in range(pairs):
        for side in (ours, theirs) if number % 2 else (theirs, ours):
            seconds[side].append(side.measure(workload.engine, arguments, inputs.folder / "out"))
    figures = [name for name in seconds[ours][0] if name in seconds[theirs][0]]
    unpaired = sorted(seconds[ours][0].keys() ^ seconds[theirs][0].keys())
    if unpaired:
        print(
            f"{workload.name}: not compared, since only one commit has it: {', '.join(unpaired)}",
            file=sys.stderr,
        )
    return {
        name: Comparison(*([run[name] for run in seconds[side]] for side in (ours, theirs)))
        for name in figures
    }


def main() -> None:
    """Parse the command line, print a JSON line for each figure, and exit with 1 where CPU time has grown."""
    times = "\n".join(f"{workload.pair_s:4} s  {workload.name}" for workload in WORKLOADS)
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=f"workloads, with the time of a pair of runs on two idle cores; all take 40 minutes:\n{times}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("commit", help="the commit to compare with")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "out" / "bench", help="folder for checkouts and inputs"
    )
    parser.add_argument(
        "--pairs",
        type=int,
        default=PAIRS,
        help=f"pairs of runs of a workload, {PAIRS} by default; half of them for 3,000 images",
    )
    parser.add_argument("--only", default="", help="workloads whose names hold this text")
    given = parser.parse_args()
    workloads = [workload for workload in WORKLOADS if given.only in workload.name]
    if given.pairs < 1 or not workloads:
        parser.error("--pairs has to be 1 or more, and --only a part of a workload's name (see --help)")
    ours, theirs = Checkout(ROOT, Path(sys.executable)), check_out(given.commit, given.out)
    inputs = Inputs(given.out / "inputs")
    for engine in {workload.engine for workload in workloads}:
        compare(replace(WARM_UP, engine=engine), inputs, ours, theirs, 1)
    grown = list[str]()
    for workload in workloads:
        for figure, comparison in compare(
            workload, inputs, ours, theirs, workload.pairs(given.pairs)
        ).items():
            line = {"run": workload.name, "figure": figure, **comparison.plain()}
            print(json.dumps(line), flush=True)
            if workload.is_cpu_time(figure) and comparison.has_grown:
                grown.append(
                    f"{workload.name}: {figure} takes {line['ratio']} times the CPU time of {given.commit}"
                )
    if grown:
        sys.exit("\n".join(grown))


if __name__ == "__main__":
    main()
