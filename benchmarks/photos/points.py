"""Where a region's point lies: the innermost pixel of its mask, or the hottest pixel of the mask.

    python -m benchmarks.photos.points DATASET TRUTH

The dataset holds its heat maps (output.heat_maps). docs/how-to/train-a-vision-language-model.md has the figures.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from phrasebox.pipeline.evaluate.estimates import mean_figures
from phrasebox.pipeline.evaluate.evaluation_set import EvaluationSet, open_evaluation_set
from phrasebox.pipeline.terminal import errors
from phrasebox.stages.contract.masks import decode_mask, innermost_pixel

LEAST_SCORES = (0.0, 0.5)


def points_of(evaluation_set: EvaluationSet) -> Iterator[tuple[int, float, float, float]]:
    """Of each region: its image and score, and whether its innermost and its hottest pixel lie in a true box."""
    for row, record in evaluation_set.rows_with_maps(None, errors):
        maps = {heat_map.text: heat_map for heat_map in record.heat_maps}
        for query in evaluation_set.queries(row, record.phrases, maps):
            if query.target is None or query.heat is None:
                continue
            for answer in query.answers:
                mask = decode_mask(answer.mask)
                x, y = innermost_pixel(mask)
                hottest = divmod(int(np.where(mask, query.heat.px, -1.0).argmax()), mask.shape[1])
                yield query.image, answer.score, float(query.area[y, x]), float(query.area[hottest])


def main() -> None:
    """Parse the command line, and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", type=Path)
    parser.add_argument("truth", type=Path)
    arguments = parser.parse_args()
    points = list(points_of(open_evaluation_set(arguments.dataset, arguments.truth)))
    for least in LEAST_SCORES:
        images, _, innermost, hottest = zip(*(point for point in points if point[1] >= least), strict=True)
        hits = {"innermost": np.array(innermost), "hottest": np.array(hottest)}
        hits["difference"] = hits["innermost"] - hits["hottest"]
        for name, figure in mean_figures(hits, np.array(images)).items():
            interval = f"{figure.low:.3f} to {figure.high:.3f}"
            print(f"score >= {least}, {figure.n} regions, {name}: {figure.value:.3f} ({interval})")


if __name__ == "__main__":
    main()
