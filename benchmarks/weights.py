"""Measure models on the bundled photographs with the defaults, against what people outlined: is a CLIP any good here?

    python -m benchmarks.weights ViT-B-16/laion2b_s34b_b88k my-clip/ --out out/weights

A model is what `phrasebox run --model` takes. open_clip's weights are downloaded, the others need no network. OUT gets
a folder for each model, with `dataset/`, `evaluation.json` and `overlays.png`, and `table.md`, a row for each model.

`pointing` and `box recall` are those of `phrasebox eval`, beside the usual place of a noun in other photographs and the
centre of the image. `presence` is the ROC area of the cosine's z-score as a detector of phrases of the photograph among
phrases of the others. Seventeen photographs are too few to fit a run's own presence to.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from phrasebox.pipeline.commands.demo import measure_photographs
from phrasebox.pipeline.commands.tables import format_interval, format_value
from phrasebox.pipeline.evaluate.evaluation import Evaluation
from phrasebox.pipeline.terminal import console
from phrasebox.stages.contract.errors import PhraseboxError

COLUMNS: Final = {
    "pointing": "pointing",
    "usual place": "text_point",
    "centre": "centre",
    "box recall": "box_recall",
    "usual box": "text_box",
    "centred box": "centred_box",
}
"""Heading -> metric."""

HEAD: Final = f"| model | {' | '.join(COLUMNS)} | presence |\n|{'---|' * (len(COLUMNS) + 2)}\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the models, and write and print the table. The exit code is 1 if a model cannot be measured."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--out", type=Path, default=Path("out/weights"), metavar="DIR")
    options = parser.parse_args(arguments)
    table = HEAD
    failures = []
    for model in options.models:
        out = options.out / re.sub(r"[^\w.-]+", "-", model).strip("-")
        try:
            evaluation = measure_photographs(out, {"model": {"name": model}}, console, ["maps", "absent"])
        except PhraseboxError as error:  # the other models are worth measuring all the same
            failures.append(f"{model}: {error}")
            continue
        table += _row_of(model, evaluation)
        console.print(f"the best regions of each photograph: {out / 'overlays.png'}", soft_wrap=True)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "table.md").write_text(table, encoding="utf-8")
    print(table)
    if failures:
        raise SystemExit("\n".join(failures))


def _row_of(model: str, evaluation: Evaluation) -> str:
    presence = evaluation.absent.by["z_score"] if evaluation.absent else None
    figures = [evaluation.figures.metrics.get(name) for name in COLUMNS.values()]
    figures.append(presence["auc"] if presence else None)
    cells = (f"{format_value(figure)} ({format_interval(figure)})" for figure in figures)
    return f"| {model} | {' | '.join(cells)} |\n"


if __name__ == "__main__":
    main()
