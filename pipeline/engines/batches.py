"""What both engines do with a batch: run stages in order, measure them, make rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from stages.contract.records import Record
from stages.contract.stage import Stage

BATCH_ROWS = 32
"""Records that travel together: a multiple of the model's batch, small enough to show progress."""


def run_stages(stages: Sequence[Stage], records: list[Record], told: Callable[[str, int, float], None]) -> list[Record]:
    """The records after all stages, in order.

    told   receives each stage's name, number of records and seconds

    Raises RuntimeError if a stage does not answer every record.
    """
    for stage in stages:
        start = time.perf_counter()
        answers = stage.process(records)
        if len(answers) != len(records):
            raise RuntimeError(f"stage {stage.name} answered {len(answers)} of {len(records)} records")
        told(stage.name, len(records), time.perf_counter() - start)
        records = answers
    return records
