"""Prove the data: train the same model on the regions of several sources, and measure the result.

    python -m configs.proof.prove configs/proof/scenes.yaml --out out/proof-scenes
    python -m configs.proof.prove configs/proof/photos.yaml --out out/proof-photos --photos photos/

Each arm learns with the learning rate that is best for it on images that are not judged, with a seed of its own: rates
are tried from the middle of the plan's list outwards for as long as a neighbour is better. Then it learns with every
seed. Everything but boxes from elsewhere is done by phrasebox's own verbs, so that each step can be repeated by hand:
the commands are in `OUT/commands.txt`. Finished steps are not repeated: the same command resumes after a stop.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import tarfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, product
from pathlib import Path
from threading import Lock
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from numpy.typing import NDArray

from benchmarks.figures.pages import as_markdown
from configs.proof.verbs import call_verb
from phrasebox.pipeline.dataset.shard_list import SHARDS, list_entries, manifest_text
from phrasebox.pipeline.evaluate.text_only import TextOnly, fit_usual_places
from phrasebox.stages.contract.masks import encode_box
from phrasebox.stages.shared.model.catalog import find_weights
from phrasebox.stages.shared.shards import read_shard_file
from phrasebox.stages.truth import read_truth

ROOT: Final = Path(__file__).resolve().parents[2]
RESAMPLES: Final = 2000
FROZEN, CAPTIONS, SHUFFLED, EXACT, TEXT = "frozen", "captions", "shuffled", "exact", "text only"
AGAINST: Final = (FROZEN, CAPTIONS, TEXT, SHUFFLED)  # arms whose difference from every other is shown

Floats = NDArray[np.float64]


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
        self.out, self.workers, self.lock = out.resolve(), workers, Lock()
        self.out.mkdir(parents=True, exist_ok=True)

    def run(self) -> None:
        """Make data, datasets and models, write `tables.json`, for docs/benchmarks/proof.json, and print it."""
        self.draw()
        arms, plan = self.plan["arms"], self.plan
        with ThreadPoolExecutor(self.workers) as pool:
            list(pool.map(self.make_dataset, plan["sources"]))
            list(pool.map(self.rebox, plan["boxes"]))
            chosen = dict(zip(arms, pool.map(self.choose, arms), strict=True))
            self.score(plan["model"], "test", FROZEN)
            jobs = product(plan["seeds"], arms)
            list(pool.map(lambda job: self.tune(job[1], chosen[job[1]], job[0], "test"), jobs))
        made = self.tables(chosen)
        (self.out / "tables.json").write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
        for table in made["tables"]:
            print(as_markdown({**table, "commit": None}))
        for said in made["said"]:
            print(said["about"], *said["values"])

    def draw(self) -> None:
        """Draw scenes, or unpack photographs and lines of files of captions, and write models of other sizes."""
        for name, how in self.plan.get("scenes", {}).items():
            folder = self.out / "data" / name
            if not (folder / "truth.json").exists():
                self.phrasebox("scenes", "--out", folder, "--scenes", how["scenes"], "--seed", how["seed"])
        for name, archive in self.plan.get("unpacked", {}).items():
            if not (self.out / "data" / name).is_dir():
                with tarfile.open(archive) as file:
                    file.extractall(self.out / "data" / f"{name}.tmp", filter="data")
                (self.out / "data" / f"{name}.tmp").rename(self.out / "data" / name)
        for name, how in self.plan.get("resized", {}).items():
            self.resize(name, **how)
        for name, (path, first, end) in self.plan.get("lines", {}).items():
            with open(path, encoding="utf-8") as file:
                (self.out / "data" / f"{name}.jsonl").write_text(
                    "".join(islice(file, first, end)), encoding="utf-8"
                )

    def resize(self, name: str, of: str, size_px: int) -> None:
        """Write a bundled model that takes images of another size."""
        bundled, folder = find_weights(of), self.out / "data" / name
        settings = json.loads((bundled / "model.json").read_text("utf-8"))
        settings["model_cfg"]["vision_cfg"]["image_size"] = settings["preprocess_cfg"]["size"] = size_px
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(bundled / settings["model_cfg"]["text_cfg"]["tokenizer_kwargs"]["bpe_path"], folder)
        shutil.copy(bundled / "model.safetensors", folder / "open_clip_model.safetensors")
        (folder / "open_clip_config.json").write_text(json.dumps(settings), encoding="utf-8")

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

    def rebox(self, name: str) -> None:
        """Write the rows of a source with other boxes: of the whole image, or the text-only boxes of other images."""
        how, folder = self.plan["boxes"][name], self.out / "datasets" / name
        if folder.exists():
            return
        usual = self.usual(how) if "usual" in how else None
        part = folder.with_name(f"{name}.tmp")
        shutil.copytree(self.out / "datasets" / how["of"], part, dirs_exist_ok=True)
        for shard in (part / "data").glob("*.parquet"):
            table = pq.read_table(shard)
            rows = table.to_pylist()
            for row in rows:
                width, height = row["width"], row["height"]
                for region in row["annotations"]:
                    x, y, w, h = (
                        usual.box_of(region["phrase"].lower(), width, height)
                        if usual
                        else (0, 0, width, height)
                    )
                    left, top = min(int(x), width - 1), min(int(y), height - 1)
                    right, bottom = (
                        max(left + 1, min(round(x + w), width)),
                        max(top + 1, min(round(y + h), height)),
                    )
                    mask = encode_box((left, top, right, bottom), (height, width))
                    area = (right - left) * (bottom - top)
                    region |= {"bbox": [left, top, right - left, bottom - top], "area": area}
                    region["segmentation"] = {"size": [height, width], "counts": mask.counts}
            pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), shard)
        manifest = part / "dataset.json"
        entries = list_entries(map(read_shard_file, (part / "data").glob("*.parquet")))
        values = json.loads(manifest.read_text("utf-8")) | {SHARDS: entries}
        manifest.write_text(manifest_text(values), encoding="utf-8")
        part.rename(folder)

    def usual(self, how: Mapping[str, Any]) -> TextOnly:
        """Return where things usually are in a ground truth, or in the last of its images that a file names."""
        images = read_truth(self.out / how["usual"]).images
        if "images" in how:
            lines = Path(how["images"]).read_text("utf-8").splitlines()[-how["last"] :]
            names = {
                Path(json.loads(line)["image"]).stem for line in lines
            }  # some have other extensions there
            images = {name: image for name, image in images.items() if Path(name).stem in names}
        return fit_usual_places(images.values())

    def tune(self, arm: str, rate: float, seed: int, judged: str) -> None:
        """Train a model of an arm and score it on the images to choose by, or on those to judge; keep the score."""
        name = f"{arm}-{rate:g}-{seed}"
        if self.scored(judged, name).exists():
            return
        settings = {**self.plan["tuning"], **self.plan["arms"][arm], "learning_rate": rate, "seed": seed}
        dataset, folder = self.out / "datasets" / settings.pop("data.path"), self.out / "models" / name
        if not (folder / "model").exists():
            options = [x for key, value in settings.items() for x in ("--set", f"{key}={value}")]
            self.phrasebox("finetune", dataset, "--out", folder, "--model", self.plan["model"], *options)
        self.score(folder / "model", judged, name)
        shutil.rmtree(folder)

    def score(self, model: Path | str, judged: str, name: str) -> None:
        """Write a model's scores to a file."""
        path = self.scored(judged, name)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            options = [*self.plan["judged"][judged], *self.plan["score"]]
            answer, _ = self.phrasebox("score-model", model, *options, "--json")
            path.with_suffix(".tmp").write_text(answer, encoding="utf-8")
            path.with_suffix(".tmp").rename(path)

    def scored(self, judged: str, name: str) -> Path:
        """Return the file of a model's scores."""
        return self.out / "scores" / judged / f"{name}.json"

    def choose(self, arm: str) -> float:
        """Return the learning rate of an arm: neither of its neighbours in the plan's list is better."""
        rates = self.plan["learning_rates"]
        best, found = len(rates) // 2, None
        while found != best:
            found = best
            around = range(max(0, found - 1), min(found + 2, len(rates)))
            best = max(around, key=lambda index: self.chosen_by(arm, rates[index]))
        return float(rates[best])

    def chosen_by(self, arm: str, rate: float) -> float:
        """Return the primary figure of an arm, once it has learned, on the images that learning rates are chosen on."""
        self.tune(arm, rate, self.plan["choosing_seed"], "choose")
        hits = self.hits(
            [self.scored("choose", f"{arm}-{rate:g}-{self.plan['choosing_seed']}")], self.plan["primary"]
        )
        right, asked = hits.sum(axis=(0, 1))
        return float(right / asked)

    def hits(self, paths: Sequence[Path], figure: str) -> Floats:
        """Return `hits_by_image` of some files of scores."""
        return hits_by_image([json.loads(path.read_text("utf-8")) for path in paths], figure)

    def phrasebox(self, verb: str, *arguments: object) -> tuple[str, float]:
        """Run a verb with one thread in the experiment's folder. Ends the experiment if it fails.

        Returns:
            What it prints, and its processor time in seconds, which `seconds.txt` has, too.
        """
        command = [verb, *map(str, arguments)]
        text = shlex.join(["phrasebox", *command])
        with self.lock, (self.out / "commands.txt").open("a", encoding="utf-8") as file:
            file.write(f"{text}\n")
        print(text[:160], flush=True)
        printed, seconds = call_verb(command, self.out)
        with self.lock, (self.out / "seconds.txt").open("a", encoding="utf-8") as file:
            file.write(f"{verb} {seconds:.1f}\n")
        return printed, seconds

    def tables(self, chosen: Mapping[str, float]) -> dict[str, Any]:
        """Return `tables` and `said` in the form of docs/benchmarks/proof.json; chosen: learning rate by arm."""
        plan, primary = self.plan, self.plan["primary"]
        paths = {
            arm: [self.scored("test", f"{arm}-{rate:g}-{seed}") for seed in plan["seeds"]]
            for arm, rate in chosen.items()
        }
        paths = {FROZEN: [self.scored("test", FROZEN)], **paths}
        values = {
            figure: resampled({arm: self.hits(own, figure) for arm, own in paths.items()})
            for figure in plan["figures"]
        }
        first = values[primary]
        rows = [
            [
                arm,
                chosen.get(arm),
                interval(own),
                [
                    each[0]
                    for each in (
                        resampled({arm: self.hits([path], primary)}, 1)[arm] for path in paths[arm]
                    )
                ],
                *(interval(own - first[other]) if arm != other else None for other in AGAINST),
                *(float(values[figure][arm][0]) for figure in plan["figures"] if figure != primary),
            ]
            for arm, own in first.items()
        ]
        hours = (
            sum(
                float(line.split()[1])
                for line in (self.out / "seconds.txt").read_text("utf-8").splitlines()
            )
            / 3600
        )
        known = {
            "n": f"{plan['n']}; {len(plan['seeds'])} seeds; {hours:.1f} CPU hours in all",
            "split": plan["split"],
            "model": Path(plan["model"]).name,
        }
        columns = [
            *(
                "arm",
                ["learning rate", "{:g}"],
                primary,
                "each seed",
                *(f"over {other}" for other in AGAINST),
            ),
            *(figure for figure in plan["figures"] if figure != primary),
        ]
        costs = [[source, *self.cost(source)] for source in plan["sources"]]
        titles = [
            "source",
            ["CPU s an image", "{:.2f}"],
            ["bytes an image", "{:,.0f}"],
            ["regions an image", "{:.1f}"],
        ]
        return {
            "tables": [
                {"name": plan["name"], "columns": columns, "rows": rows, **known},
                {"name": f"{plan['name']}-costs", "columns": titles, "rows": costs, **known},
            ],
            "said": [
                *(said for arm in first if arm.startswith("ours") for said in self.places(first, arm)),
                *(
                    {
                        "about": f"{plan['name']}, {figure}: {arm} over {other}",
                        "values": [*interval(values[figure][arm] - values[figure][other]).values()],
                    }
                    for (arm, other), figure in product(plan["pairs"], plan["figures"])
                ),
            ],
        }

    def places(self, first: Mapping[str, Floats], arm: str) -> list[dict[str, Any]]:
        """Return what places contribute: an arm's difference, that of exact boxes, and its share if there is one."""
        own, best = first[arm] - first[SHUFFLED], first[EXACT] - first[SHUFFLED]
        about = f"{self.plan['name']}, {self.plan['primary']}: {arm} over shuffled, exact over shuffled"
        found = [own, best]
        if interval(best)["low"] > 0:
            about, found = f"{about}, and their ratio", [own, best, own / best]
        return [{"about": about, "values": [value for each in found for value in interval(each).values()]}]

    def cost(self, source: str) -> list[float]:
        """Return processor seconds, bytes and regions an image."""
        cost = json.loads((self.out / "datasets" / source / "cost.json").read_text("utf-8"))
        return [
            each / cost["counts"]["read"]
            for each in (cost["seconds"], cost["bytes"], cost["counts"]["regions"])
        ]


def hits_by_image(scores: Sequence[Mapping[str, Any]], figure: str) -> Floats:
    """Return for each seed and image the right top-1 answers and the queries: (seeds, images, 2)."""
    sums = np.zeros((len(scores), len(scores[0]["images"]), 2))
    for own, score in zip(sums, scores, strict=True):
        answers = score["answers"][figure]
        right = next(
            answers["values"][name] for name in ("top1", "recall_1", "r1") if name in answers["values"]
        )
        np.add.at(own[:, 0], answers["images"], right)
        np.add.at(own[:, 1], answers["images"], 1.0)
    return sums


def resampled(hits: Mapping[str, Floats], resamples: int = RESAMPLES) -> dict[str, Floats]:
    """Return the value of each arm, and those of a nested bootstrap behind it: (1 + resamples,).

    Seeds are drawn, and then images, the same ones for all arms: a seed has the same images in the same order in each.
    A model that did not learn has one seed.
    """
    generator = np.random.default_rng(0)
    seeds, images = (max(each.shape[axis] for each in hits.values()) for axis in (0, 1))

    def draw(count: int) -> Floats:
        return np.bincount(generator.integers(count, size=count), minlength=count).astype(np.float64)

    drawn = [(np.ones(seeds), np.ones(images))]
    drawn += [(draw(seeds), draw(images)) for _ in range(resamples)]
    values = {}
    for arm, own in hits.items():
        sums = [
            (of_seeds if len(own) > 1 else np.ones(1)) @ np.tensordot(own, of_images, (1, 0))
            for of_seeds, of_images in drawn
        ]
        values[arm] = np.array([right / asked for right, asked in sums])
    return values


def interval(values: Floats) -> dict[str, float]:
    """Return the first value with the 95 % interval of the others."""
    low, high = np.quantile(values[1:], [0.025, 0.975])
    return {"value": float(values[0]), "low": float(low), "high": float(high)}


def main() -> None:
    """Read the arguments and do it all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("plan", type=Path, help="a YAML file of this folder")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--photos", default="photos", help="folder that stands for PHOTOS in the plan")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="commands at a time")
    given = parser.parse_args()
    photos = str(Path(given.photos).resolve())
    Proof(yaml.safe_load(given.plan.read_text("utf-8")), given.out, photos, given.workers).run()


if __name__ == "__main__":
    main()
