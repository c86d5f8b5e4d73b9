"""Write the tables into the pages; with `--photos` and `--out`, make all figures before.

python -m benchmarks.figures
python -m benchmarks.figures --photos DIR --out out/figures --only drawings
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.figures.pages import render
from benchmarks.figures.steps import STEPS, make
from benchmarks.photos.measure import Photographs
from phrasebox.stages.contract.errors import PhraseboxError


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=Path, help="the photographs, see benchmarks/photos/measure.py")
    parser.add_argument(
        "--out", type=Path, default=Path("out/figures"), help="datasets, models and finished steps"
    )
    parser.add_argument("--only", nargs="+", choices=STEPS, default=[], help="these steps")
    parser.add_argument(
        "--rounds",
        nargs=3,
        type=int,
        default=(480, 300, 300),
        metavar=("LEARN", "FIT", "JUDGE"),
        help="photographs of the step `rounds`: to learn from, to fit to, to judge on; at most 5500, 500 and 1000",
    )
    given = parser.parse_args()
    if given.only and given.photos is None:
        parser.error("--only needs --photos: the figures are made of these photographs")
    if given.photos is not None:
        try:
            make(Photographs(given.photos, given.out.resolve(), rounds=tuple(given.rounds)), given.only)
        except PhraseboxError as error:
            sys.exit(f"error: {error}")
    render()


if __name__ == "__main__":
    main()
