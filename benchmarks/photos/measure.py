"""Photographs and synthetic scenes, the datasets that are made of them, and what `phrasebox eval` says of these.

The photographs are not part of the repository. The folder holds, as Flickr8k and COCO give them:

    flickr8k/dev.images.tar, dev.jsonl, dev.entities.tar.gz   photographs, captions, phrase boxes (Flickr30k Entities)
    flickr8k/train.images.tar, train.jsonl, train.entities.tar.gz   the same, the photographs squashed to 224 x 224
    coco/images.tar, captions.json, instances.json   photographs, captions, polygons

Settings and calibration are chosen on the last 500 of train, which `photo` never saw, and reported on dev.
"""

from __future__ import annotations

import json
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks.photos.links import link_estimates
from phrasebox.pipeline.config.run_config import RunConfig, load_config
from phrasebox.pipeline.demo.scenes import write_scenes
from phrasebox.pipeline.evaluate.estimates import Estimate, weighted_estimate
from phrasebox.pipeline.evaluate.evaluation import evaluate_dataset, measure_rows
from phrasebox.pipeline.evaluate.evaluation_set import EvaluationSet, open_evaluation_set
from phrasebox.pipeline.evaluate.text_only import TextOnly, fit_usual_places
from phrasebox.pipeline.run.run import run
from phrasebox.stages.contract.values import Floats
from phrasebox.stages.truth import read_truth
from phrasebox.stages.truth.ground_truth import find_spelling

console = Console()


class Photographs:
    """The unpacked photographs, and what was made of them.

    Images are named flickr8k/dev, flickr8k/train (the last `most`), coco, or scenes/SEED/COUNT for drawn ones.
    `rounds` is how many a second round learns from, fits to and judges on.
    """

    def __init__(
        self, source: Path, out: Path, most: int = 500, rounds: tuple[int, int, int] = (480, 300, 300)
    ) -> None:
        self.source, self.out, self.most, self.rounds = source.resolve(), out, most, rounds

    def file(self, name: str) -> Path:
        """The file of photographs, captions or boxes with this name. Exit if it is missing."""
        path = self.source / name
        if not path.is_file():
            sys.exit(f"{self.source} lacks {name}; `make figures PHOTOS=DIR` names another folder")
        return path

    def images(self, name: str) -> Path:
        """The folder with images."""
        folder = self.out / "images" / name
        if not folder.is_dir():
            tar = self.file(f"{name}.images.tar" if "/" in name else f"{name}/images.tar")
            with tarfile.open(tar) as members:
                members.extractall(folder, filter="data")
        return folder

    def scenes(self, name: str) -> Path:
        """The folder with synthetic scenes, drawn if it is not there yet."""
        folder, (_, seed, count) = self.out / name, name.split("/")
        if not (folder / "truth.json").is_file():
            write_scenes(folder, int(count), int(seed))
        return folder

    def captions(self, name: str) -> Path:
        """The captions of these images."""
        if name == "coco":
            return self.file("coco/captions.json")
        whole = self.file(f"{name}.jsonl")
        if not name.endswith("train"):
            return whole
        some = self.out / f"train-{self.most}.jsonl"
        some.parent.mkdir(parents=True, exist_ok=True)
        some.write_text("".join(whole.read_text(encoding="utf-8").splitlines(keepends=True)[-self.most :]))
        return some

    def first_captions(self, name: str, number: int) -> Path:
        """The first captions of each of these images."""
        rows = map(json.loads, self.captions(name).read_text(encoding="utf-8").splitlines())
        some = self.out / f"{name}-{number}.jsonl"
        some.parent.mkdir(parents=True, exist_ok=True)
        lines = (json.dumps({**row, "captions": row["captions"][:number]}) + "\n" for row in rows)
        some.write_text("".join(lines), encoding="utf-8")
        return some

    def truth(self, name: str) -> Path:
        """Where things are in these images."""
        if name.startswith("scenes/"):
            return self.scenes(name) / "truth.json"
        return self.file("coco/instances.json" if name == "coco" else f"{name}.entities.tar.gz")

    def settings(self, name: str, model: str) -> list[str]:
        """The settings of a run over these images."""
        drawn = name.startswith("scenes/")
        return [
            f"input.path={self.scenes(name) / 'captions.jsonl' if drawn else self.captions(name)}",
            f"input.kind={'coco_captions' if name == 'coco' else 'jsonl'}",
            f"input.image_root={self.scenes(name) / 'images' if drawn else self.images(name)}",
            f"model.name={model}",
            "model.pretrained=null",
        ]

    def config(
        self, name: str, model: str, label: str, *settings: str, file: Path | None = None
    ) -> RunConfig:
        """The configuration of a run over these images, with the settings of a file."""
        out = [
            f"output.path={self.out / 'datasets' / name / label}",
            "output.heat_maps=true",
            "engine.kind=inline",
        ]
        config: RunConfig = load_config(file, [*self.settings(name, model), *out, *settings])
        return config

    def dataset(self, name: str, model: str, label: str, *settings: str, file: Path | None = None) -> Path:
        """The dataset of these images by a model, made if it is not there yet."""
        console.rule(f"{name}: {label}")
        return Path(run(self.config(name, model, label, *settings, file=file), console))

    def figures(
        self,
        name: str,
        model: str,
        label: str,
        *settings: str,
        file: Path | None = None,
        absent: bool = False,
        usual: str | None = None,
        captions: int | None = None,
    ) -> dict[str, Any]:
        """Return the figures of `phrasebox eval` for that dataset, with `--absent` if wanted. They are kept.

        usual: the images that places from text alone are fitted to, by default for each half those of the other half.
        captions: the number of captions of each image, the first ones, by default all. Phrases of the others count as
            nothing.
        """
        if captions is not None:
            label = f"{label}-{captions}"
            settings = (f"input.path={self.first_captions(name, captions)}", *settings)
        suffix = f"{'-absent' * absent}{'-usual' * (usual is not None)}"
        path = self.out / "evaluations" / name / f"{label}{suffix}.json"
        if not path.is_file():
            made = self.dataset(name, model, label, *settings, file=file)
            places = None if usual is None else self.usual_places(usual)
            resized = name.endswith("train")
            judged = open_evaluation_set(made, self.truth(name), resized=resized)
            if captions is not None:
                judged = _without_lacking_captions(judged)
            evaluation = evaluate_dataset(
                judged, console, ["maps", "absent"] if absent else ["maps"], places
            )
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(evaluation.to_json()), encoding="utf-8")
        return dict(json.loads(path.read_text("utf-8")))

    def links(self, name: str, label: str) -> list[Estimate]:
        """How a dataset of these images links phrases: F1 of pairs, and of B-cubed."""
        truth = self.out / "truth" / name
        if not truth.is_dir():
            with tarfile.open(self.truth(name)) as members:
                members.extractall(truth, filter="data")
        return link_estimates(open_evaluation_set(self.out / "datasets" / name / label, truth), truth)

    def usual_places(self, name: str) -> TextOnly:
        """Fit where things usually are to the human boxes of these images."""
        chosen = {
            Path(json.loads(line)["image"]).stem
            for line in self.captions(name).read_text("utf-8").splitlines()
        }
        truth = read_truth(self.truth(name))
        return fit_usual_places(image for file, image in truth.images.items() if Path(file).stem in chosen)

    def gains(self, name: str, label: str, other: str, figures: Sequence[str]) -> list[float]:
        """Gains of a dataset over another one of these images: value, low and high of each figure, images paired."""
        both_outcomes = []
        for dataset_label in (label, other):
            made = self.out / "datasets" / name / dataset_label
            judged = open_evaluation_set(made, self.truth(name), resized=name.endswith("train"))
            both_outcomes.append(measure_rows(judged, judged.finished_config().regions, console, None))
        images = np.array([query.image for query in both_outcomes[0].queries if query.target is not None])
        gains = []
        for figure in figures:
            values, base = (np.array(outcomes.values[figure], np.float64) for outcomes in both_outcomes)
            is_finite = np.isfinite(values - base)
            gain = (values - base)[is_finite]
            difference = weighted_estimate(partial(_weighted_mean, gain), images[is_finite])
            gains += [difference.value, difference.low, difference.high]
        return gains


def _weighted_mean(values: Floats, weights: Floats) -> float:
    return float(weights @ values / weights.sum())


def _without_lacking_captions(judged: EvaluationSet) -> EvaluationSet:
    """Leave out what the ground truth knows of captions that the dataset lacks: it would count as missed."""
    images = dict(judged.matches.images)
    for row in judged.rows():
        image = images[row["file_name"]]
        captions = tuple(row["captions"])
        targets = (
            target
            for target in image.targets
            if target.caption is None or find_spelling(target.caption, captions).numbers
        )
        images[row["file_name"]] = replace(image, targets=tuple(targets))
    return replace(judged, matches=replace(judged.matches, images=images))
