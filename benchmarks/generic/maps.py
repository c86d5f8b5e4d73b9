"""Heat maps of captioned photographs by a model and an explainer, with presence and exponent as a run without a
calibration fits them.

Photographs, as `benchmarks/photos/measure.py` expects them: `fit` is the last 500 of Flickr8k's train, which no model
has seen, `dev` the first 400 of its dev, and `coco` those of COCO.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.generic.models import RECIPES, build_model
from benchmarks.photos.measure import Photographs
from phrasebox.pipeline.config.run_config import RunConfig
from phrasebox.pipeline.evaluate.matching import Query, match_images, queries_of
from phrasebox.pipeline.run.stage_calls import set_up
from phrasebox.pipeline.run.steps import HeatMapSteps, build_steps
from phrasebox.pipeline.run.warm_up import fit_to_samples
from phrasebox.stages.contract.levels import LEVELS
from phrasebox.stages.contract.records import Phrase, Record, Sample
from phrasebox.stages.contract.values import Json
from phrasebox.stages.read import make_reader
from phrasebox.stages.regions.maker import levels_of_map
from phrasebox.stages.truth import read_truth
from phrasebox.stages.truth.ground_truth import GroundTruth

SPLITS: Final = {"fit": 500, "dev": 400, "coco": 93}

EXPLAINERS: Final[dict[str, Json]] = {
    "grad_eclip": {"kind": "grad_eclip"},
    "maskclip": {"kind": "maskclip"},
    "clip_surgery": {"kind": "clip_surgery"},
    "no affinity": {"kind": "grad_eclip", "affinity": "none"},
}
"""Name -> settings of `explain`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MapSet:
    """The records of a split with their heat maps, by a model and an explainer.

    Attributes:
        source: Model and explainer.
        records: Those of the images that have phrases, in the order of the input.
        exponent: The power that gives the maps the usual mean heat, see `pipeline/run/exponent.py`.
        reason: Why presence is not known; "" if it is.
    """

    source: str
    records: Sequence[Record]
    exponent: float
    reason: str

    def raised(self) -> list[Record]:
        """Return the records with the heat raised to the exponent."""
        return [
            replace(
                record,
                heat_maps=tuple(
                    replace(heat_map, values=levels.astype(np.float32) / np.float32(LEVELS))
                    if (levels := levels_of_map(heat_map, self.exponent)) is not None
                    else heat_map
                    for heat_map in record.heat_maps
                ),
            )
            for record in self.records
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Workshop:
    """The folders of photographs, packages and results, and what is made from them: models and their maps.

    Attributes:
        photographs: The photographs.
        packages: Folder with the packages of trunks and encoder.
        out: Folder of what is made.
    """

    photographs: Photographs
    packages: Path
    out: Path

    def input_of(self, split: str) -> Json:
        """Return the settings of the input of a split."""
        if split == "coco":
            root = self.photographs.images("coco")
            return {
                "kind": "coco_captions",
                "path": str(self.photographs.file("coco/captions.json")),
                "image_root": str(root),
            }
        name = "train" if split == "fit" else "dev"
        lines = self.photographs.file(f"flickr8k/{name}.jsonl")
        return {
            "kind": "jsonl",
            "path": str(lines),
            "image_root": str(self.photographs.images(f"flickr8k/{name}")),
        }

    def truth_of(self, split: str) -> GroundTruth:
        """Return the ground truth of a split."""
        names = {
            "fit": "flickr8k/train.entities.tar.gz",
            "dev": "flickr8k/dev.entities.tar.gz",
            "coco": "coco/instances.json",
        }
        return read_truth(self.photographs.file(names[split]))

    def samples_of(self, split: str) -> list[Sample]:
        """Return the samples of a split."""
        reader = make_reader(RunConfig(input=self.input_of(split)).input)
        samples = list(reader.samples(reader.pieces()))
        return samples[-SPLITS[split] :] if split == "fit" else samples[: SPLITS[split]]

    def steps_of(self, model: str, explainer: str) -> HeatMapSteps:
        """Return the stages of a model, `photo` or one of `RECIPES`, or `photo 224`, without a calibration."""
        name, _, size = model.partition(" ")
        config = RunConfig(
            input=self.input_of("dev"),
            model={"name": "photo"},
            explain={**EXPLAINERS[explainer], **({"image_size": int(size)} if size else {})},
            regions={"calibration": "none"},
        )
        if name not in RECIPES:
            return build_steps(config)
        lines = self.photographs.file("flickr8k/train.jsonl")
        images = self.photographs.images("flickr8k/train")
        return build_steps(config, build_model(name, self.packages, self.out / "models", lines, images))

    def maps_of(self, model: str, explainer: str, split: str) -> MapSet:
        """Return the maps of a split, computed once."""
        file = self.out / "maps" / f"{model}, {explainer}, {split}.pickle"
        if file.is_file():
            with file.open("rb") as stored:
                maps: MapSet = pickle.load(stored)  # noqa: S301  our own file
            return maps
        steps = self.steps_of(model, explainer)
        with set_up(steps.first_stages):
            answers = fit_to_samples(steps, self.samples_of(split))
        records = [replace(record, pixels=None) for record in answers.records if record.error is None]
        maps = MapSet(
            source=f"{model}, {explainer}",
            records=records,
            exponent=answers.exponent or 1.0,
            reason=answers.presence.reason,
        )
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("wb") as stored:
            pickle.dump(maps, stored, protocol=5)
        return maps


class Labels:
    """What a ground truth says of the records of a split.

    Args:
        truth: The ground truth.
        records: The records, by whose file names it knows them.
        resized: Whether the photographs are smaller than those of the ground truth.
    """

    def __init__(self, truth: GroundTruth, records: Sequence[Record], *, resized: bool) -> None:
        matches = match_images((record.sample.image.file_name or "" for record in records), truth)
        self.images = matches.images
        self.categories = truth.categories
        self.resized = resized

    def rows_of(self, records: Sequence[Record]) -> Iterator[tuple[Json, Record]]:
        """Yield each record that the ground truth knows, with what queries need of its row."""
        for record in records:
            if record.sample.image.file_name in self.images:
                row = {
                    "id": record.sample.id,
                    "file_name": record.sample.image.file_name,
                    "height": record.height_px,
                    "width": record.width_px,
                    "captions": [*record.sample.captions],
                    "annotations": [],
                    "error": None,
                }
                yield row, record

    def queries(self, row: Json, phrases: Sequence[Phrase]) -> list[Query]:
        """Return the queries of a row."""
        image = self.images[row["file_name"]]
        if self.resized:
            image = image.resize((row["height"], row["width"]))
        return queries_of(row["id"], row, image, self.categories, phrases)
