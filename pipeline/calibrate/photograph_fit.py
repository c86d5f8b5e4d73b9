"""`phrasebox calibrate --photographs`: from captioned photographs with boxes to a calibration that later runs find.

The dataset between them holds the heat maps, and lies beside the calibration until that is written: the same command
goes on where it was interrupted.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

from rich.console import Console

from phrasebox.pipeline.calibrate.truth_fit import CalibrationFigures, write_calibration
from phrasebox.pipeline.config.paths import check_writable
from phrasebox.pipeline.config.run_config import load_config
from phrasebox.pipeline.evaluate.evaluation_set import open_evaluation_set
from phrasebox.pipeline.run.calibration_cache import cache_name, calibration_folder
from phrasebox.pipeline.run.run import run
from phrasebox.pipeline.terminal import say
from phrasebox.stages.contract.errors import ConfigError, InputError
from phrasebox.stages.scores.score import read_calibration

PARTS: Final = ("captions.jsonl", "truth.json", "images")
"""What a folder of photographs holds, see `pipeline/demo/coco2017.py`."""


@dataclass(frozen=True, slots=True)
class PhotographFit:
    """A fit to a folder of photographs.

    Attributes:
        photographs: The folder.
        model: `model.name`; None for that of the settings, or of the defaults.
        settings: KEY=VALUE of the run.
    """

    photographs: Path
    model: str | None
    settings: Sequence[str]

    def write(self, out: Path | None, console: Console) -> tuple[CalibrationFigures, Path | None]:
        """Make the dataset, fit the calibration, and return its figures and its file.

        out: The file; None puts it where runs with `regions.calibration: auto` find it. There it is kept only if its
            scores are shown to tell right regions from wrong ones; the file is None if they are not.

        Raise InputError for a folder that lacks a part, ConfigError for a setting that cannot be used, and as
        `run` and `write_calibration`.
        """
        missing = [name for name in PARTS if not (self.photographs / name).exists()]
        if missing:
            raise InputError(
                f"{self.photographs} lacks {', '.join(missing)}: phrasebox photographs coco2017 --out DIR fetches "
                "such a folder",
                key="--photographs",
            )
        folder = calibration_folder() if out is None else out.parent
        if folder is None:
            raise ConfigError("name the file to write, as you have no home", key="--out")
        if out is None:
            folder.mkdir(parents=True, exist_ok=True)
        else:
            check_writable("out", out)
        work = folder / f"calibrating-{self._digest}"
        config = load_config(
            None,
            [*self.settings, "regions.calibration=none", "output.heat_maps=true"],
            options={
                "input.path": str(self.photographs / "captions.jsonl"),
                "input.image_root": str(self.photographs / "images"),
                "output.path": str(work / "dataset"),
                "model.name": self.model,
            },
        )
        say(console, f"making heat maps, in {work}")
        run(config, console, has_summary=False)
        evaluation_set = open_evaluation_set(work / "dataset", self.photographs / "truth.json")
        file = work / "calibration.json"
        figures = write_calibration(evaluation_set, file, console)
        place = out
        if out is None and figures.gain.low > 0:
            place = folder / cache_name(read_calibration(file).made_with)
        if place is not None:
            file.replace(place)
        shutil.rmtree(work)
        return figures, place

    @property
    def _digest(self) -> str:
        request = [str(self.photographs.absolute()), self.model, *self.settings]
        return sha256(json.dumps(request).encode()).hexdigest()[:12]
