"""Prove the data: train the same model on the regions of several sources, and measure the result.

    python configs/proof/prove.py configs/proof/scenes.yaml --out out/proof-scenes
    python configs/proof/prove.py configs/proof/photos.yaml --out out/proof-photos --photos photos/

Everything is done by phrasebox's own verbs, so that each step can be repeated by hand: the commands are in
`OUT/commands.txt`. Finished steps are not repeated: the same command resumes after a stop.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
import yaml
from numpy.typing import NDArray

ROOT: Final = Path(__file__).resolve().parents[2]
RESAMPLES: Final = 2000
CAPTIONS: Final = "captions"
EXACT: Final = "exact"


class Proof:
    """An experiment.

    Args:
        plan: contents of a file beside this one.
        out: folder for data, models and tables.
        photos: folder that PHOTOS in the plan means.
        workers: commands at a time.
    """

    def __init__(self, plan: Mapping[str, Any], out: Path, photos: str, workers: int) -> None:
        self.plan = json.loads(json.dumps(plan).replace("PHOTOS", photos))
        self.out, self.workers = out.resolve(), workers
        self.out.mkdir(parents=True, exist_ok=True)

    def run(self) -> None:
        """Make data, datasets and models, and write `table.md` and `table.json`."""
        self.draw()
        with ThreadPoolExecutor(self.workers) as pool:
            list(pool.map(self.make_dataset, self.plan["sources"]))
            jobs = [(arm, seed) for seed in self.plan["seeds"] for arm in self.plan["arms"]]
            scores = [pool.submit(self.score, "frozen", 0, self.plan["model"])]
            scores += [pool.submit(self.tune, arm, seed) for arm, seed in jobs]
            for score in scores:
                score.result()
        figures = self.table()
        (self.out / "table.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
        text = as_markdown(figures, self.plan["figures"])
        (self.out / "table.md").write_text(text, encoding="utf-8")
        print(text)

    def draw(self) -> None:
        """Draw scenes, or unpack photographs and the first lines of files of captions."""
        for name, how in self.plan.get("scenes", {}).items():
            folder = self.out / "data" / name
            if not (folder / "truth.json").exists():
                self.phrasebox("scenes", "--out", folder, "--scenes", how["scenes"], "--seed", how["seed"])
        for name, archive in self.plan.get("unpacked", {}).items():
            if not (self.out / "data" / name).is_dir():
                with tarfile.open(archive) as file:
                    file.extractall(self.out / "data" / f"{name}.tmp", filter="data")
                (self.out / "data" / f"{name}.tmp").rename(self.out / "data" / name)
        for path, count in self.plan.get("first", {}).items():
            target = self.out / "data" / Path(path).name
            target.parent.mkdir(exist_ok=True)
            with open(path, encoding="utf-8") as file:
                target.write_text("".join(islice(file, count)), encoding="utf-8")

    def make_dataset(self, source: str) -> None:
        """Make the regions of a source, and note their cost."""
        folder = self.out / "datasets" / source
        if (folder / "cost.json").exists():
            return
        first, *options = self.plan["run"]
        settings = [f"{key}={value}" for key, value in self.plan["sources"][source].items()]
        options += [part for setting in settings for part in ("--set", setting)]
        _, seconds = self.phrasebox("run", ROOT / first, "--engine", "inline", "--out", folder, *options)
        size = sum(path.stat().st_size for path in (folder / "data").glob("*.parquet"))
        counts = json.loads((folder / "dataset.json").read_text("utf-8"))["counts"]
        (folder / "cost.json").write_text(json.dumps({"seconds": seconds, "bytes": size, "counts": counts}))

    def tune(self, arm: str, seed: int) -> None:
        """Train and score a model of an arm."""
        folder = self.out / "models" / f"{arm.replace(' ', '-')}-{seed}"
        settings = {**self.plan["tuning"], **self.plan["arms"][arm], "seed": seed}
        dataset = self.out / "datasets" / settings.pop("data.path")
        if not (folder / "model").exists():
            options = [x for key, value in settings.items() for x in ("--set", f"{key}={value}")]
            self.phrasebox("finetune", dataset, "--out", folder, "--model", self.plan["model"], *options)
            (folder / "latest.pt").unlink()
        self.score(arm, seed, folder / "model")

    def score(self, arm: str, seed: int, model: Path | str) -> None:
        """Write a model's scores on regions to a file."""
        path = self.scored(arm, seed)
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            answer, _ = self.phrasebox("score-model", model, *self.plan["score"], "--json")
            path.with_suffix(".tmp").write_text(answer, encoding="utf-8")
            path.with_suffix(".tmp").rename(path)

    def scored(self, arm: str, seed: int) -> Path:
        """Return the file of a model's scores."""
        return self.out / "scores" / f"{arm.replace(' ', '-')}-{seed}.json"

    def phrasebox(self, verb: str, *arguments: object) -> tuple[str, float]:
        """Run a verb with one thread in the experiment's folder. Ends the experiment if it fails.

        Returns:
            What it prints, and its processor time in seconds.
        """
        command = [sys.executable, "-m", "pipeline", verb, *map(str, arguments)]
        with (self.out / "commands.txt").open("a", encoding="utf-8") as file:
            file.write(shlex.join(["phrasebox", *command[3:]]) + "\n")
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        print(" ".join(command[3:])[:160], flush=True)
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
            process = subprocess.Popen(command, cwd=self.out, env=environment, stdout=out, stderr=errors)  # noqa: S603
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            for file in (out, errors):
                file.seek(0)
            if process.returncode:
                raise SystemExit(f"{shlex.join(command)}\n{out.read()[-2000:]}\n{errors.read()[-4000:]}")
            return out.read(), usage.ru_utime + usage.ru_stime

    def table(self) -> dict[str, Any]:
        """Return the figures of every arm: means over seeds with intervals over images, and the share of the gap."""
        arms = {"frozen": [0], **dict.fromkeys(self.plan["arms"], self.plan["seeds"])}
        found = {
            arm: [json.loads(self.scored(arm, seed).read_text("utf-8")) for seed in seeds]
            for arm, seeds in arms.items()
        }
        rows: dict[str, Any] = {}
        for arm, scores in found.items():
            rows[arm] = {"seeds": len(scores)}
            for figure in self.plan["figures"]:
                hits = {name: hits_by_image(found[name], figure) for name in (arm, CAPTIONS, EXACT)}
                rows[arm][figure] = compared(hits[arm], hits[CAPTIONS], hits[EXACT])
        for source in self.plan["sources"]:
            cost = json.loads((self.out / "datasets" / source / "cost.json").read_text("utf-8"))
            rows.setdefault("costs", {})[source] = cost
        return rows


def hits_by_image(scores: Sequence[Mapping[str, Any]], figure: str) -> NDArray[np.float64]:
    """Return for each image the right top-1 answers and the queries, averaged over seeds: (images, 2)."""
    sums = np.zeros((len(scores[0]["images"]), 2))
    for score in scores:
        answers = score["answers"][figure]
        right = next(answers["values"][name] for name in ("top1", "recall_1", "r1") if name in answers["values"])
        np.add.at(sums[:, 0], answers["images"], right)
        np.add.at(sums[:, 1], answers["images"], 1.0)
    sums /= len(scores)
    return sums


def compared(own: NDArray[np.float64], captions: NDArray[np.float64], exact: NDArray[np.float64]) -> dict[str, Any]:
    """Return a figure, its difference from captions alone, and the share of the gap from there to exact boxes.

    Each with the 95 % interval of a bootstrap over images, which draws the same images for all three models.
    """

    def figures(drawn: NDArray[np.intp]) -> tuple[float, float, float]:
        value, low, high = (part[drawn, 0].sum() / part[drawn, 1].sum() for part in (own, captions, exact))
        return value, value - low, (value - low) / (high - low) if high != low else float("nan")

    generator = np.random.default_rng(0)
    draws = np.array([figures(generator.integers(len(own), size=len(own))) for _ in range(RESAMPLES)])
    names = ("top1", "over_captions", "gap_closed")
    whole = figures(np.arange(len(own)))
    return {
        name: {"value": value, "low": float(low), "high": float(high)}
        for name, value, low, high in zip(names, whole, *np.nanquantile(draws, [0.025, 0.975], axis=0), strict=True)
    }


def as_markdown(figures: Mapping[str, Any], names: Sequence[str]) -> str:
    """Return two tables: the figures, and the regions' costs."""
    lines = [
        "| arm | " + " | ".join(names) + f" | {names[0]} over captions | gap closed |",
        "|---" * (len(names) + 3) + "|",
        *rows_of(figures, names),
        "",
        "| source | processor seconds an image | bytes an image | regions an image |",
        "|---|---|---|---|",
    ]
    for source, cost in figures["costs"].items():
        images = cost["counts"]["read"]
        seconds, size, regions = (
            value / images for value in (cost["seconds"], cost["bytes"], cost["counts"]["regions"])
        )
        lines.append(f"| {source} | {seconds:.2f} | {size:,.0f} | {regions:.1f} |")
    return "\n".join(lines) + "\n"


def rows_of(figures: Mapping[str, Any], names: Sequence[str]) -> Iterator[str]:
    """Yield a line for each arm."""

    def shown(entry: Mapping[str, float]) -> str:
        return f"{entry['value']:.3f} ({entry['low']:.3f} to {entry['high']:.3f})"

    for arm, row in figures.items():
        if arm != "costs":
            first = row[names[0]]
            values = [f"{row[name]['top1']['value']:.3f}" for name in names]
            closed = "" if arm == "frozen" else shown(first["gap_closed"])
            yield f"| {arm} | {' | '.join(values)} | {shown(first['over_captions'])} | {closed} |"


def main() -> None:
    """Read the arguments and do it all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=Path, help="a YAML file of this folder")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--photos", default="photos", help="folder that stands for PHOTOS in the plan")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="commands at a time")
    given = parser.parse_args()
    photos = str(Path(given.photos).resolve())
    Proof(yaml.safe_load(given.plan.read_text("utf-8")), given.out, photos, given.workers).run()


if __name__ == "__main__":
    main()
