"""Make the generic calibration, and the table of how it transfers: `make calibration`.

Steps that are done are not repeated: models, maps and fits lie in the folder `--out`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any, Final

import cv2
import torch

from benchmarks.generic.fit import Source, fit_sources
from benchmarks.generic.maps import Labels, Workshop
from benchmarks.generic.transfer import Answers, answer, brought
from benchmarks.photos.measure import Photographs
from phrasebox.pipeline.run.calibration import GENERIC_FILE
from phrasebox.stages.contract.values import Json
from phrasebox.stages.scores.score import Calibration, read_calibration
from phrasebox.stages.truth.ground_truth import GroundTruth

SOURCES: Final = {
    ("photo", "grad_eclip"): 300,
    ("photo", "maskclip"): 150,
    ("photo", "clip_surgery"): 150,
    ("lite0-pool", "grad_eclip"): 300,
    ("lite0-pool", "maskclip"): 150,
    ("lite0-pool", "clip_surgery"): 150,
    ("lite0-blocks", "grad_eclip"): 300,
    ("lite0-blocks", "maskclip"): 150,
    ("lite1-pool", "grad_eclip"): 300,
    ("lite1-pool", "maskclip"): 150,
    ("lite1-pool", "clip_surgery"): 150,
}
"""Model and explainer -> the number of photographs that the fit takes of them."""

TARGETS: Final = (
    ("photo", "grad_eclip"),
    ("lite0-pool", "grad_eclip"),
    ("lite0-blocks", "grad_eclip"),
    ("lite1-pool", "grad_eclip"),
    ("photo", "maskclip"),
    ("photo", "clip_surgery"),
    ("photo", "no affinity"),
    ("photo 224", "grad_eclip"),
)
"""The models and explainers in the table. Each is measured with a fit to the maps of models with other trunks."""


class Maker:
    """Makes the calibration and its table.

    Args:
        workshop: Where everything is.
    """

    def __init__(self, workshop: Workshop) -> None:
        self.workshop = workshop
        self.fits = workshop.out / "fits"
        self.fits.mkdir(parents=True, exist_ok=True)
        self.truth_of: Any = cache(self._truth_of)
        self.source_of: Any = cache(self._source_of)

    def _truth_of(self, split: str) -> GroundTruth:
        return self.workshop.truth_of(split)

    def _source_of(self, model: str, explainer: str, split: str, most: int | None = None) -> Source:
        maps = self.workshop.maps_of(model, explainer, split)
        maps = replace(maps, records=maps.records[:most])
        return Source(maps, Labels(self.truth_of(split), maps.records, resized=split == "fit"))

    def generic_without(self, family: str) -> Calibration:
        """Return the fit to all models but those of a family, which share its trunk; "" leaves none out."""
        file = self.fits / f"generic without {family or 'none'}.json"
        if not file.is_file():
            sources = [
                self.source_of(model, explainer, "fit", most)
                for (model, explainer), most in SOURCES.items()
                if not family or not model.startswith(family)
            ]
            file.write_text(fit_sources(sources).to_json(), encoding="utf-8")
        return read_calibration(file)

    def own_fit(self, model: str, explainer: str) -> Calibration:
        """Return the fit to a target's own maps of all photographs of the split."""
        file = self.fits / f"{model}, {explainer}.json"
        if not file.is_file():
            source = self._source_of(model, explainer, "fit")
            file.write_text(fit_sources([source], has_cosines=True).to_json(), encoding="utf-8")
        return read_calibration(file)

    def measure(self, model: str, explainer: str) -> Json:
        """Return the figures of a target on dev and COCO, without a calibration, with the generic one and its own."""
        file = self.fits / f"{model}, {explainer}, figures.json"
        if not file.is_file():
            family = model.partition(" ")[0].partition("-")[0]
            generic, fit = self.generic_without(family), self.own_fit(model, explainer)
            figures: Json = {}
            for split in ("dev", "coco"):
                source = self.source_of(model, explainer, split)
                fitted = brought(generic, source.maps)
                answers = {
                    "none": answer(source, None),
                    "generic": answer(source, fitted),
                    "own": answer(source, fit),
                }
                figures[split] = {name: _figures(part, answers) for name, part in answers.items()}
                if split == "dev":
                    first = answer(source, fitted, one_caption=True)
                    figures["dev, one caption"] = {"generic": _figures(first, {})}
            file.write_text(json.dumps(figures, indent=1), encoding="utf-8")
        values: Json = json.loads(file.read_text(encoding="utf-8"))
        return values

    def publish(self, figures: Mapping[str, Json]) -> None:
        """Write the calibration where `regions.calibration: generic` finds it, with the margin of the figures."""
        calibration = self.generic_without("")
        margin = margin_of([*figures.values()])
        calibration = calibration.model_copy(
            update={"made_from": {**calibration.made_from, "margin": margin}}
        )
        GENERIC_FILE.parent.mkdir(exist_ok=True)
        GENERIC_FILE.write_text(calibration.to_json(), encoding="utf-8")


def margin_of(figures: Sequence[Json]) -> float:
    """Return how much too high scores of the generic calibration are at most, on dev with all captions and with one."""
    excesses: list[float] = [
        target[split]["generic"]["excess"] for target in figures for split in ("dev", "dev, one caption")
    ]
    return math.ceil(max(0.0, *excesses) * 100) / 100


def table_of(figures: Mapping[str, Json]) -> str:
    """Return the table of docs/explanation/how-it-works.md."""
    lines = [
        "| model and explainer | box recall without | gain | gain of an own fit | error | "
        "mean score - right | on COCO |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, splits in figures.items():
        dev, coco = splits["dev"], splits["coco"]
        cells = (
            name,
            f"{dev['none']['recall']['value']:.3f}",
            _gain(dev["generic"]["gain over none"]),
            _gain(dev["own"]["gain over none"]),
            f"{dev['generic']['error']['value']:.3f}",
            f"{dev['generic']['excess']:+.3f}, one caption {splits['dev, one caption']['generic']['excess']:+.3f}",
            f"{_gain(coco['generic']['gain over none'])}, mean score - right {coco['generic']['excess']:+.3f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _gain(estimate: Json) -> str:
    return f"{estimate['value']:+.3f} ({estimate['low']:.3f} to {estimate['high']:.3f})"


def _figures(part: Answers, answers: Mapping[str, Answers]) -> Json:
    values: Json = {"recall": asdict(part.recall), **part.figures()}
    values["error"] = asdict(values["error"])
    for name, other in answers.items():
        if other is not part:
            values[f"gain over {name}"] = asdict(part.gain_over(other))
    return values


def main(arguments: Sequence[str] | None = None) -> None:
    """Make what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--packages", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    photographs = Photographs(options.photos, options.out)
    maker = Maker(Workshop(photographs=photographs, packages=options.packages, out=options.out))
    figures = {", ".join(target): maker.measure(*target) for target in TARGETS}
    maker.publish(figures)
    print(table_of(figures))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
