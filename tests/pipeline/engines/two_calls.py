"""A model worker on a GPU that Ray counts and nobody uses: `python -m tests.pipeline.engines.two_calls FOLDER`.

It writes the rows to `rows.jsonl`: sample, note, the number of samples that the stage had in hand, and the thread.
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import ray
import ray.data

from pipeline.engines.ray_cluster import Pools
from pipeline.engines.ray_code import code_here
from pipeline.engines.ray_data import RayEngine
from pipeline.engines.ray_ledger import start_ledger
from stages.contract.records import Record, Sample
from stages.contract.stage import Stage
from stages.contract.tables import records_to_table, table_to_records

CALLS = 12
CALL = 8

DEADLY = "s20"
"""The sample at which the worker dies once."""


class LonelyStage(Stage):
    """Rejects a second thread; kills its process once."""

    name: ClassVar[str] = "explain"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.busy = False

    def process(self, batch: Sequence[Record]) -> list[Record]:
        assert not self.busy
        self.busy = True
        time.sleep(0.05)
        dead = self.folder / "dead"
        if any(record.sample.sample_id == DEADLY for record in batch) and not dead.exists():
            dead.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        self.busy = False
        return [
            replace(one, notes=(one.sample.source, str(len(batch)), threading.current_thread().name))
            for one in batch
        ]


def main(folder: Path) -> None:
    ray.init(
        address="local",
        num_cpus=2,
        num_gpus=1,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    samples = [
        Sample(sample_id=f"s{n}", source=f"from {n}", captions=("a cat",)) for n in range(CALLS * CALL)
    ]
    tables = [records_to_table([Record(sample=one) for one in samples[n::CALLS]]) for n in range(CALLS)]
    pools = Pools(min_workers=1, max_workers=1, gpus=1.0, threads=1, captions=1, resources={})
    unused: Any = None  # only the model's stage runs
    engine = RayEngine(
        run=unused,
        session=unused,
        pools=pools,
        ledger=start_ledger(),
        code=code_here(("pipeline", "stages")),
    )
    rows = engine._map_on_models(ray.data.from_arrow(tables), LonelyStage(folder), CALL, 1)
    # Ray's own messages end up in the midst of what is printed.
    with (folder / "rows.jsonl").open("w") as file:
        for batch in rows.iter_batches(batch_format="pyarrow", batch_size=None):
            file.writelines(
                json.dumps([one.sample.sample_id, *one.notes]) + "\n" for one in table_to_records(batch)
            )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
