"""The end of a run with many different phrases, whose columns are generated: seconds and memory. Part of `make scale`.

python -m benchmarks.soak.counting --phrases 50000000
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from phrasebox.pipeline.dataset.tally import Rows, empty_rows, write_categories
from phrasebox.pipeline.output.ids import resolve_id_collisions

AT_ONCE: Final = 50_000  # phrases of a shard
OF_A_ROW: Final = 5


def shard(number: int) -> Any:
    """Rows with phrases that no other shard has."""
    of_all, rows = np.arange(number * AT_ONCE, (number + 1) * AT_ONCE), AT_ONCE // OF_A_ROW
    phrases = pa.array([f"a red phrase {count}" for count in of_all])
    regions = pa.StructArray.from_arrays(
        [of_all + 1, of_all + 1, phrases, phrases, pa.array(np.full(AT_ONCE, 0.4, np.float32))],
        names=["id", "category_id", "phrase", "head", "score"],
    )
    return pa.table(
        {
            "id": np.arange(number * rows, (number + 1) * rows),
            "error": pa.nulls(rows, pa.string()),
            "phrase_count": np.full(rows, OF_A_ROW),
            "warnings": pa.nulls(rows, pa.list_(pa.string())),
            "absent": pa.nulls(rows, pa.list_(pa.struct([("caption_index", pa.int32())]))),
            "annotations": pa.ListArray.from_arrays(
                np.arange(0, AT_ONCE + 1, OF_A_ROW, dtype=np.int32), regions
            ),
        }
    )


def finish(rows: Rows, phrases: int) -> dict[str, float]:
    """Seconds of each step of the end of a run."""
    seconds, start = {}, time.perf_counter()
    for number in range(phrases // AT_ONCE):
        rows.add(number, shard(number))
    with tempfile.TemporaryDirectory() as folder:
        steps: dict[str, Callable[[], Any]] = {
            "add": lambda: None,
            "tally": lambda: rows.tally(phrases // AT_ONCE),
            "resolve_id_collisions": lambda: resolve_id_collisions(rows, ()),
            "write_categories": lambda: write_categories(rows, Path(folder) / "categories.parquet"),
        }
        for name, step in steps.items():
            step()
            seconds[name] = round(time.perf_counter() - start, 1)
            start = time.perf_counter()
    return seconds


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line; print a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--phrases", type=int, default=50_000_000)
    given = parser.parse_args(arguments)
    with empty_rows() as empty:
        seconds = finish(empty, given.phrases)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    sys.stdout.write(
        json.dumps({"name": "finish", "phrases": given.phrases, "seconds": seconds, "peak_mb": peak_mb})
        + "\n"
    )


if __name__ == "__main__":
    main()
