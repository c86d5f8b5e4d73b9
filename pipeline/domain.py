"""Whether the calibration of the scores holds for the pictures of a run.

A calibration says how often regions are right on images like those of its fit. So two things of the first images of a
run (`pipeline.first_look`) are compared with the fit:

regions  What the scores are made of. Where it differs, for example on photographs where the fit was on drawings, the
         probabilities mean nothing.
images   Their embeddings, of which a calibration with presence knows mean and covariance. Regions on photographs of
         other things look alike and are right less often. A calibration cuts maps and ranks regions there no worse than
         none does, but its scores are too high.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any, Final

import numpy as np

from pipeline.config import RunConfig
from pipeline.engines.inline import set_up
from pipeline.graph import Graph
from pipeline.summary import Report
from pipeline.terminal import counted
from stages.contract.records import Record, Sample
from stages.explain.presence import Signals
from stages.read import Reader, Shard
from stages.regions.score import Calibration
from stages.regions.source import RegionSource
from stages.regions.stage import RegionsStage
from stages.write import Tally

SHARDS: Final = 4  # that the samples come from, evenly spaced in the input
SAMPLES: Final = 32  # that are looked at, from all these shards together

FAR: Final = 0.75
"""Shift, in standard deviations of the fit, above which images count as out of domain (many samples). From the demo
model's calibration, fitted on drawn scenes, 150 other drawn scenes are 0.08 away and 150 photographs 2.3."""

UNLIKE: Final = 1.1
"""Images are others from this many times, divided by the root of their number, above the distance that is expected
(`ImageStatistics.distance`): 19 % above it for 32 images.

Expected is 1 + directions / images of the fit. The calibration of `photo` for configs/photos.yaml was fitted to 500
photographs of Flickr8k. None of 5,000 draws of 32 from 384 others was that far away. From COCO, where the calibration
error is 0.179 instead of 0.037, all of 5,000 draws but one were, and 91 % of the draws of 16. With the calibration of
`demo` none of 500 draws of 32 drawn scenes was."""

NOT_COMPARED: Final = (
    "The images were not compared with those the scores were calibrated on, because the workers that looked at them "
    "died"
)
"""The misgiving where Ray has given up the first look."""

FEWEST_FITTED: Final = 100
"""The fewest images of a fit from which usual embeddings are known. With 100 images 2 % of the alarms are false."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outside:
    """How the samples of a run differ from those of a fit, or why they were not compared."""

    what: str  # for people
    measured: str = ""  # the statistics behind that, if there are any
    in_regions: bool  # whether it is the regions, so that scores mean nothing; otherwise it is the images alone

    @classmethod
    def of(cls, stored: Mapping[str, Any] | None) -> Outside | None:
        """Return the answer of `outside_domain` as a run stored it, by `asdict`."""
        return None if stored is None else cls(**stored)


def outside_domain(graph: Graph, records: Sequence[Record], signals: Sequence[Signals]) -> Outside | None:
    """Say how the first images differ from those that the graph's calibration was fitted on.

    None if they do not, if none of them has a region, or if the calibration knows no regions.

    Args:
        graph: Its stage after the model is not set up.
        records: The images with their heat maps.
        signals: Those of the images that have maps.
    """
    regions = graph.cuts
    if regions.calibration is None or not regions.calibration.of_regions:
        return None
    named = [record for record in records if record.error is None and record.phrases]
    with set_up([regions]):
        evidence = [known for record in named for found in regions.regions_of(record) for _, known in found]
    if not evidence:
        return None
    feature, shift = regions.calibration.shift(evidence)
    if abs(shift) > FAR + 1 / math.sqrt(len(named)):
        side = "above" if shift > 0 else "below"
        measured = (
            f"{feature} of the regions in {counted(len(named), 'image')} is {abs(shift):.1f} standard deviations "
            f"{side} that of the fit"
        )
        what = "The images differ from those that the calibration was fitted to"
        return Outside(what=what, measured=measured, in_regions=True)
    fitted = int(regions.calibration.made_from.get("images", 0))
    if graph.explains.presence is None or not signals or fitted < FEWEST_FITTED:
        return None
    embeddings = np.stack([each.embedding for each in signals])
    images = graph.explains.presence.corrected_on or graph.explains.presence.images
    distance = images.distance(embeddings)
    times = distance / (1 + len(images.directions) / fitted)
    if times <= 1 + UNLIKE / math.sqrt(len(embeddings)):
        return None
    measured = (
        f"the mean squared distance of {counted(len(embeddings), 'image')} from the fit is {times:.1f} times that of "
        "others of its kind"
    )
    what = "The images show other things than those that the calibration was fitted to"
    return Outside(what=what, measured=measured, in_regions=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """The meaning of the scores of a run."""

    doubt: str | None = None  # why they only rank, and are no probabilities
    misgiving: str | None = None  # why the calibration in use may be wrong here

    @classmethod
    def of(cls, graph: Graph, outside: Outside | None, config: RunConfig) -> Trust:
        """Judge a run. A calibration that the user names is used whatever the images are."""
        if isinstance(graph.model, RegionSource):
            return cls(doubt=f"A score is {graph.model.score_means}")
        if graph.calibration is None:
            return cls(doubt="No calibration fits this model with these settings; phrasebox calibrate fits one")
        if not graph.calibrated:
            return cls(doubt=f"{config.regions.calibration} knows presence alone")
        if outside is not None and outside.in_regions and config.regions.calibration == "auto":
            return cls(doubt=outside.what)
        faults = (None if outside is None else outside.what, in_other_precision(graph, config))
        return cls(misgiving=". ".join(what for what in faults if what) or None)

    def in_words(self, graph: Graph, config: RunConfig, total: Tally) -> str:
        """Return the same in sentences for people; `total` counts the dataset."""
        if self.misgiving is not None:
            return (
                f"Scores are calibrated, but may be too high or too low here. {self.misgiving}. A review or phrasebox "
                "eval measures it."
            )
        if self.doubt is None:
            return f"Scores are calibrated: on images like those of the fit, {total.likely_in_words}."
        drawn = (
            " demo knows drawn scenes only: photographs need another --model." if config.model.name == "demo" else ""
        )
        known = graph.cuts.calibration if isinstance(graph.after[0], RegionsStage) else None
        presence = "" if known is None else f" Presence, by which they are multiplied, was fitted to {known.fitted_to}."
        ranking = "Scores are not calibrated: use them for ranking, not as probabilities."
        return f"{ranking} {self.doubt}.{presence}{drawn}"


def in_other_precision(graph: Graph, config: RunConfig) -> str | None:
    """Return that the calibration in use was not shown to hold in the precision of a run's maps; None if it was."""
    known, used = graph.cuts.calibration, config.model.precision
    if known is None or used in known.precisions:
        return None
    return f"The calibration was fitted to maps in {known.precisions[0]}, and model.precision is {used}"


def trusted(
    graph: Graph, outside: Outside | None, config: RunConfig, report: Report, *, verbose: bool = False
) -> tuple[Graph, Trust]:
    """Return the graph, without its calibration where that means nothing, and the trust in its scores.

    Note why, with statistics if `verbose`, and where maps are cut if no calibration says that.
    """
    trust = Trust.of(graph, outside, config)
    if outside is not None:
        report.note(f"{outside.what}: {outside.measured}" if verbose and outside.measured else outside.what)
    if trust.doubt is None and (other := in_other_precision(graph, config)):
        report.note(other)
    if trust.doubt is not None and graph.calibrated:
        graph = graph.with_calibration(None)
    cut = graph.as_cut(config).regions
    if cut != config.regions:
        share = f"{cut.threshold} of their highest heat (regions.rule={cut.rule})"
        report.note(f"Maps are cut at {share}: no calibration says where to cut them")
    return graph, trust


def with_presence(graph: Graph, calibration: Calibration) -> Graph:
    """Return the same graph with the presence of a calibration that knows nothing else. Raise as `presence_in`."""
    return replace(graph.with_calibration(calibration), calibration=None)


def first_samples(reader: Reader, shards: Sequence[Shard], most: int) -> Iterator[Sample]:
    """Yield the first samples of `SHARDS` shards that lie evenly in the input, and of others if they have too few."""
    chosen = range(0, len(shards), max(1, len(shards) // SHARDS))[:SHARDS]
    first = (islice(reader.samples([shards[place]]), most // len(chosen)) for place in chosen)
    others = reader.samples([shard for place, shard in enumerate(shards) if place not in chosen])
    yield from islice(chain(chain.from_iterable(first), others), most)
