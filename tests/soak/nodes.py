"""Throughput over the number of nodes, with model workers that sleep: does the graph scale, and where does it end?

    python -m tests.soak.nodes --nodes 1 2 4 8 --seconds 0.1 0.005

All nodes share this machine's cores, so what a node costs beside its model shows, and what a real GPU does not.
Counted are the images that the models answered after a quarter of them, until the last.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.pipeline.light import light_run, write_captions
from tests.soak.cluster import SmallCluster


def throughput(nodes: int, seconds: float, images: int, folder: Path) -> dict[str, Any]:
    """Images per second of so many nodes with one sleeping model worker each."""
    cluster = SmallCluster(nodes)
    try:
        captions = write_captions(folder, ["cat"] * images)
        told = light_run(
            captions,
            folder / "out",
            seconds=seconds,
            rows_per_file=256,
            address=cluster.address,
            explain_workers=nodes,
            model_resources={"model": 1},
        )
    finally:
        cluster.close()
    progress = [(when, answered) for when, answered in told["progress"] if answered >= images / 4]
    (start, first), (end, last) = progress[0], progress[-1]
    rate = (last - first) / (end - start)
    return {
        "nodes": nodes,
        "sleep_s": seconds,
        "images": images,
        "images_per_s": round(rate, 1),
        "of_ideal": round(rate * seconds / nodes, 3),
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="*", default=[1, 2, 4, 8])
    parser.add_argument("--seconds", type=float, nargs="*", default=[0.1, 0.005])
    given = parser.parse_args()
    for seconds in given.seconds:
        for nodes in given.nodes:
            images = min(8000, round(40 / seconds) * nodes)
            with tempfile.TemporaryDirectory() as folder:
                sys.stdout.write(json.dumps(throughput(nodes, seconds, images, Path(folder))) + "\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
