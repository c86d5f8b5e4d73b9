"""What both engines do with a batch: choose its size, run the stages in order, measure them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from stages.contract.records import Record
from stages.contract.stage import Device, Stage

BATCH_ROWS: Final = 32
"""The fewest records that travel together: few enough to show progress, many enough to be worth a message."""


def batch_rows(model: Stage, device: Device | None = None) -> int:
    """How many records travel together: a multiple of what the model takes at once (see `Stage.batch_rows`)."""
    at_once = model.batch_rows(device)
    return -(-BATCH_ROWS // at_once) * at_once


def run_stages(stages: Sequence[Stage], records: list[Record], on_progress: Callable[..., Any]) -> list[Record]:
    """Run records through the stages; returns them in order.

    Args:
        stages: The stages, already set up.
        records: A batch.
        on_progress: Called after each stage with the arguments of `Report.stage`.

    Raises:
        RuntimeError: A stage did not answer every record.
    """
    for stage in stages:
        start = time.perf_counter()
        answers = stage.process(records)
        if len(answers) != len(records):
            raise RuntimeError(f"stage {stage.name} answered {len(answers)} of {len(records)} records")
        on_progress(stage.name, len(records), time.perf_counter() - start, stage.take_forwards())
        records = answers
    return records
