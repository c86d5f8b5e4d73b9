"""What a run takes beside its images, however many they are: found by running it over its first ones.

A run imports and loads the model, computes its first samples to see whether the calibration is about such pictures
(`pipeline.domain`), starts Ray and the workers, and in the end writes what the dataset says of itself. How long all
that takes depends on the machine, the model and the input. So it is not added up from parts but taken from a run that
is real in everything but its input, which ends after as many samples as the model gets at once.
"""

from __future__ import annotations

import multiprocessing
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.terminal import keeping_handlers
from stages.contract.errors import PhraseboxError, ResourceError
from stages.read.base import Reader, Shard, Skipped

if TYPE_CHECKING:  # Ray's workers, which import this module for its reader, need none of them
    from pipeline.config import RunConfig
    from stages.contract.records import Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A run over the first samples, in a process of its own.

    Attributes:
        images: How many it had; the model gets as many at once.
        ready_s: Seconds from the command until the model had answered them.
        end_s: Seconds from there until the process had ended.
    """

    images: int
    ready_s: float
    end_s: float


class FirstSamples(Reader):
    """Another reader whose input ends early.

    Args:
        reader: The other one.
        shards: The most shards, evenly spaced in the input.
        samples: The most rows of all of them together.
    """

    def __init__(self, reader: Reader, shards: int, samples: int) -> None:
        self._reader, self._shards, self._samples = reader, shards, samples
        self._each = samples

    def shards(self) -> list[Shard]:
        """See `Reader.shards`."""
        every = self._reader.shards()
        chosen = every[:: max(1, len(every) // self._shards)][: self._shards]
        self._each = max(1, self._samples // max(1, len(chosen)))
        return [
            shard if shard.samples is None else replace(shard, samples=min(shard.samples, self._each))
            for shard in chosen
        ]

    def read(self, shard: Shard) -> Iterator[Sample | Skipped]:
        """See `Reader.read`."""
        rows = self._reader.read(shard)
        with closing(rows):  # type: ignore[type-var]  # readers are generators
            yield from islice(rows, self._each)


def tried(config: RunConfig) -> Trial:
    """Run over the first samples, on this machine. Nothing is left on the disk.

    Args:
        config: The run. On a cluster, too, it is tried here.

    Raises:
        PhraseboxError: Whatever would refuse the run.
    """
    context = multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    with tempfile.TemporaryDirectory(prefix="phrasebox-plan-", ignore_cleanup_errors=True) as folder:
        began = time.time()
        process = context.Process(target=_try, args=(config, folder, began, answers))
        with keeping_handlers():
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for this process, which ends the other
            process.start()
        try:
            while answers.empty() and process.is_alive():
                time.sleep(0.05)
            if answers.empty():
                raise ResourceError("the run over the first images, which was to be measured, ended without an answer")
            answer = answers.get()
            process.join()
        finally:
            process.terminate()
            process.join()
        ended = time.time()
    if isinstance(answer, Exception):
        raise answer
    images, ready_s = answer
    return Trial(images=images, ready_s=ready_s, end_s=ended - began - ready_s)


def _try(config: RunConfig, folder: str, began: float, answers: Any) -> None:
    # A run imports all this, so that it belongs to what is measured.
    from pipeline.domain import SAMPLES, SHARDS  # noqa: PLC0415
    from pipeline.graph import build_graph  # noqa: PLC0415
    from pipeline.run import run  # noqa: PLC0415
    from pipeline.summary import Report  # noqa: PLC0415

    report = Report(started_s=time.perf_counter() - (time.time() - began))
    output = config.output.model_copy(update={"path": Path(folder) / "out", "max_error_share": None})
    engine = config.engine.model_copy(update={"address": None})
    config = config.model_copy(update={"output": output, "engine": engine})
    try:
        graph = build_graph(config)
        run(config, graph=replace(graph, reader=FirstSamples(graph.reader, SHARDS, SAMPLES)), report=report)
    except PhraseboxError as error:
        answers.put(error)
        return
    answered = report.first_batch_s or report.first_row_s  # a source of regions without a model answers nothing else
    answers.put((report.done, report.wall_time_s if answered is None else answered))
