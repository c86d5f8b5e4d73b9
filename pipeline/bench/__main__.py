"""The command line of `make bench`."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Final

import pipeline.bench
from pipeline.bench.engines import engines
from pipeline.bench.loaders import loaders
from pipeline.bench.model import heat_maps
from pipeline.bench.stages import phrases, regions
from pipeline.bench.whole_run import whole_run

FIGURES: Final = {figure.__name__: figure for figure in (heat_maps, regions, phrases, engines, whole_run, loaders)}


def main() -> None:
    """Parse the command line; measure all figures, or those that are named."""
    parser = argparse.ArgumentParser(
        prog="pipeline.bench", description=pipeline.bench.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", choices=list(FIGURES), help="repeatable; by default all")
    for name in parser.parse_args().only or FIGURES:
        for each in FIGURES[name]():
            sys.stdout.write(json.dumps(each) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
