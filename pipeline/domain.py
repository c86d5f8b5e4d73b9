"""Whether the calibration of the scores holds for the pictures of a run.

A calibration tells how often regions are right on pictures like those that it was fitted on. On others, for example
photographs where it was fitted on drawings, its probabilities mean nothing. So the first pictures of a run are computed
before the run begins, and what is known of their regions is compared with the fit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import islice
from typing import Final

from pipeline.engines.inline import run_stages
from pipeline.graph import Graph
from stages.contract.records import Record, Sample
from stages.explain.stage import ExplainStage
from stages.read import Reader, Shard
from stages.regions.stage import RegionsStage

SHARDS: Final = 4
"""Shards that the samples come from. They are evenly spaced in the input."""

SAMPLES: Final = 32
"""Samples that are looked at, from all these shards together."""

FAR: Final = 0.75
"""The shift, in standard deviations of the fit, from which on pictures are others, if there are many of them.

Of the demo model's calibration, which was fitted on drawn scenes, 150 other drawn scenes are .08 away and 150
photographs 2.3.
"""


def outside_domain(graph: Graph, shards: Sequence[Shard]) -> str | None:
    """Compute the first samples, and say how their regions differ from those that the calibration was fitted on.

    The model is loaded in this process, on a GPU if there is one, and let go afterwards.

    Args:
        graph: The run's graph; its stages are not set up here.
        shards: The run's input.

    Returns:
        None if they do not differ, if none of the samples has a region, or if there is no calibration.

    Raises:
        PhraseboxError: As the stages raise it.
    """
    regions = graph.cuts
    if regions.calibration is None or not regions.calibration.weight:
        return None
    records = [Record.start(sample) for sample in _first_samples(graph.reader, shards)]
    config = graph.explains.config
    model = ExplainStage(config.model_copy(update={"model": config.model.model_copy(update={"device": "auto"})}))
    stages = (*graph.before, model)
    for stage in stages:
        stage.setup()
    records = run_stages(stages, records, lambda *_: None)
    for stage in stages:
        stage.teardown()
    seen = [record for record in records if record.error is None and record.phrases]
    evidence = [known for record in seen for found in regions.regions_of(record) for _, known in found]
    if not evidence:
        return None
    feature, shift = regions.calibration.shift(evidence)
    if abs(shift) <= FAR + 1 / math.sqrt(len(seen)):
        return None
    return (
        f"the pictures are not like those that the calibration was fitted on ({feature} of the regions in {len(seen)} "
        f"of them is {abs(shift):.1f} standard deviations {'above' if shift > 0 else 'below'} that of the fit)"
    )


def without_calibration(graph: Graph) -> Graph:
    """The same graph with scores that rank, and are no probabilities; of presence it knows nothing."""
    regions = graph.cuts
    ranking = RegionsStage(regions.config, keep_heat_maps=regions.keep_heat_maps)
    return replace(graph, model=graph.explains.without_presence(), after=(ranking,), calibration=None)


def _first_samples(reader: Reader, shards: Sequence[Shard]) -> Iterator[Sample]:
    chosen = shards[:: max(1, len(shards) // SHARDS)][:SHARDS]
    for shard in chosen:
        samples = (item for item in reader.read(shard) if isinstance(item, Sample))
        with closing(samples):
            yield from islice(samples, SAMPLES // len(chosen))
