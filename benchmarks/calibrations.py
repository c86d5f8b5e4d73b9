"""Calibrate models on captioned photographs with boxes: does a fit to a CLIP's own maps pay, and what are scores worth?

    python -m benchmarks.calibrations --photographs out/coco --out out/calibrations ViT-B-16/laion2b_s34b_b88k my-clip/

PHOTOGRAPHS is fetched with `phrasebox photographs coco2017` if it is missing. A model is what `phrasebox run --model`
takes. OUT gets a calibration for each model, and `table.md`, a row for each. All figures are of photographs that the
fit did not see, in five folds: how much more boxes of phrases the learned boxes find than the cut, how far scores are
from the share of right regions, and how well presence separates present from absent phrases.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from phrasebox.pipeline.calibrate.photograph_fit import PhotographFit
from phrasebox.pipeline.calibrate.truth_fit import CalibrationFigures
from phrasebox.pipeline.commands.tables import format_interval, format_value
from phrasebox.pipeline.demo.coco2017 import MIRROR, PhotographRequest, fetch_photographs
from phrasebox.pipeline.evaluate.estimates import Estimate
from phrasebox.pipeline.terminal import console
from phrasebox.stages.contract.errors import PhraseboxError

COLUMNS: Final = ("gain of learned boxes", "calibration error", "presence")

HEAD: Final = f"| model | regions | right | {' | '.join(COLUMNS)} |\n|{'---|' * (len(COLUMNS) + 3)}\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Calibrate the models, and write and print the table. The exit code is 1 if a model cannot be calibrated."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--photographs", type=Path, default=Path("out/coco"), metavar="DIR")
    parser.add_argument(
        "--images", type=int, default=500, metavar="N", help="how many photographs are fetched"
    )
    parser.add_argument("--mirror", default=MIRROR, metavar="URL")
    parser.add_argument("--out", type=Path, default=Path("out/calibrations"), metavar="DIR")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args(arguments)
    if not (options.photographs / "truth.json").is_file():
        request = PhotographRequest(images=options.images, mirror=options.mirror)
        fetch_photographs(options.photographs, request, console)
    options.out.mkdir(parents=True, exist_ok=True)
    table = HEAD
    failures = []
    for model in options.models:
        file = options.out / (re.sub(r"[^\w.-]+", "-", model).strip("-") + ".json")
        try:
            figures, _ = PhotographFit(options.photographs, model, options.settings).write(file, console)
        except PhraseboxError as error:  # the other models are worth calibrating all the same
            failures.append(f"{model}: {error}")
            continue
        table += _row_of(model, figures)
        (options.out / "table.md").write_text(table, encoding="utf-8")
    print(table)
    if failures:
        raise SystemExit("\n".join(failures))


def _row_of(model: str, figures: CalibrationFigures) -> str:
    estimates = (figures.box_gain, figures.calibration_error, figures.presence.get("presence_auc"))
    cells = " | ".join(map(_cell, estimates))
    return f"| {model} | {figures.regions:,} | {figures.right / figures.regions:.0%} | {cells} |\n"


def _cell(estimate: Estimate | None) -> str:
    return "" if estimate is None else f"{format_value(estimate)} ({format_interval(estimate)})"


if __name__ == "__main__":
    main()
