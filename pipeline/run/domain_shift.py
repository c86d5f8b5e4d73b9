"""Whether the calibration of the scores holds for the images of a run.

A calibration says how often regions are right on images like those of its fit. So three objects of
the first images of a run (`phrasebox.pipeline.run.warm_up`) are compared with the fit:

regions  What the scores are made of. Where it differs, for example on photographs where the fit was on drawings, the
         probabilities mean nothing. Cosines do not count where captions seem to be of other images,
         which alone lowers them.
captions Their number, and how often they name an object. Scores are made of both: of an image with one caption, all
         objects are named by all captions, which in a fit to five captions only the main objects are.
images   Their embeddings, of which a calibration with presence knows mean and covariance. Regions on photographs of
         other objects look alike and are right less often. A calibration cuts maps and ranks
         regions there no worse than none does, but its scores are too high.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Final

import numpy as np

from phrasebox.pipeline.run.stage_calls import set_up
from phrasebox.pipeline.run.steps import HeatMapSteps
from phrasebox.pipeline.terminal import counted
from phrasebox.stages.contract.records import Record
from phrasebox.stages.scores.captioning import Captioning
from phrasebox.stages.scores.foreign_captions import USUAL_SHARE, caption_log_ratios, estimate_absent_share
from phrasebox.stages.scores.presence import ImageSignals
from phrasebox.stages.scores.score import Calibration, Evidence

FAR: Final = 0.75
"""Shift, in standard deviations of the fit, above which images count as out of domain (many
samples). From the demo model's calibration, fitted on drawn scenes, 150 other drawn scenes are
0.08 away and 150 photographs 2.3."""

FAR_CAPTIONS: Final = 1.25
"""Ratio of the mean numbers of captions, or of mentions of an object, from which the captions count
as other ones than those of the fit. Scores by a fit to five captions alone are off by 0.024 with
five, by 0.050 with four, and by 0.103 with three."""

UNLIKE: Final = 1.1
"""Images are others from this many times, divided by the root of their number, above the
distance that is expected (`ImageStatistics.distance`): 19 % above it for 32 images.

Expected is 1 + directions / images behind the statistics. Those of `photo` for configs/photos.yaml
are of 500 photographs of Flickr8k. None of 5,000 draws of 32 from
384 others was that far away. From COCO, where the calibration error is 0.179 instead of 0.037,
all of 5,000 draws but one were, and 91 % of the draws of 16. With the calibration of `demo`
none of 500 draws of 32 drawn scenes was."""

FEWEST_FITTED: Final = 100
"""The fewest images of a fit from which usual embeddings are known. With 100 images 2 % of the
alarms are false."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainShift:
    """The difference of a run's samples from those of a fit, or the reason why they were not compared.

    Attributes:
        what: The difference, for people.
        measured: The statistics behind it, if there are any, for the manifest.
        in_regions: Whether it is the regions, so that scores mean nothing; otherwise it is the
            images alone.
    """

    what: str
    measured: str = ""
    in_regions: bool


NOT_COMPARED: Final = DomainShift(
    what="The images were not compared with those the scores were calibrated on, because the workers that looked at "
    "them died",
    in_regions=False,
)


def find_domain_shift(
    steps: HeatMapSteps, records: Sequence[Record], signals: Sequence[ImageSignals]
) -> DomainShift | None:
    """Compare the first images with those that the calibration was fitted to.

    None if they do not differ, if none of them has a region, or if the calibration knows no
    regions.

    Args:
        steps: The stages; the last one is not set up.
        records: The images with their heat maps.
        signals: Those of the images that have maps.
    """
    calibration = steps.calibration
    if calibration is None or not calibration.of_regions:
        return None
    named = [record for record in records if record.error is None and record.phrases]
    with set_up([steps.regions_stage]):
        regions = chain.from_iterable(chain.from_iterable(map(steps.regions_stage.regions_of, named)))
        evidence = [part for _, part in regions]
    if not evidence:
        return None
    if _has_foreign_captions(named, calibration):
        usual = calibration.mean.get("similarity", 0.0)
        evidence = [replace(part, similarity=usual) for part in evidence]
    feature, shift = calibration.shift(evidence)
    if abs(shift) > FAR + 1 / math.sqrt(len(named)):
        return DomainShift(
            what="The images differ from those that the calibration was fitted to",
            measured=_shift_in_words(feature, shift, named),
            in_regions=True,
        )
    shifts = [
        shift
        for shift in (_caption_shift(named, evidence, calibration), _image_shift(steps, signals))
        if shift is not None
    ]
    if not shifts:
        return None
    return DomainShift(
        what=". ".join(shift.what for shift in shifts),
        measured="; ".join(shift.measured for shift in shifts),
        in_regions=False,
    )


def _caption_shift(
    records: Sequence[Record], evidence: Sequence[Evidence], calibration: Calibration
) -> DomainShift | None:
    """Compare the captions of images with those of the fit.

    An older calibration does not say how its images were captioned. Evidence of their regions then
    tells.
    """
    if not calibration.captionings:
        feature, shift = calibration.caption_shift(evidence)
        if abs(shift) <= FAR + 1 / math.sqrt(len(records)):
            return None
        is_fewer = (shift > 0) == (feature == "of_thing_captions")
        return DomainShift(
            what=f"The images have {'fewer' if is_fewer else 'more'} captions than those that the calibration was "
            "fitted to",
            measured=_shift_in_words(feature, shift, records),
            in_regions=False,
        )
    captioning = Captioning.of(records)
    fewest = Captioning(*map(min, zip(*calibration.captionings, strict=True)))
    most = Captioning(*map(max, zip(*calibration.captionings, strict=True)))
    is_usual = [
        low / FAR_CAPTIONS < mean < high * FAR_CAPTIONS
        for low, mean, high in zip(fewest, captioning, most, strict=True)
    ]
    if all(is_usual):
        return None
    if not is_usual[0]:
        what = (
            f"The images have {_caption_count(captioning.captions)} on average, those that the calibration was fitted "
            f"to {_span(fewest.captions, most.captions)}"
        )
    else:
        what = (
            f"Captions name an object {captioning.mentions:.2g} times on average, those that the calibration was "
            f"fitted to {_span(fewest.mentions, most.mentions)} times"
        )
    return DomainShift(
        what=what,
        measured=f"{captioning.captions:.2f} captions, and {captioning.mentions:.2f} mentions of an object, in "
        f"{counted(len(records), 'image')}",
        in_regions=False,
    )


def _caption_count(number: float) -> str:
    return f"{number:.2g} caption" + "s" * (number != 1)


def _span(low: float, high: float) -> str:
    return f"{low:.2g}" if low == high else f"{low:.2g} to {high:.2g}"


def _image_shift(steps: HeatMapSteps, signals: Sequence[ImageSignals]) -> DomainShift | None:
    """Compare what images show with what those of the fit do."""
    presence = steps.model_stage.presence
    embeddings = [part.embedding for part in signals if part.is_finite]
    if presence is None or not embeddings:
        return None
    images = presence.corrected_on or presence.images
    if images.count < FEWEST_FITTED:
        return None
    distance = images.distance(np.stack(embeddings))
    times = distance / (1 + len(images.directions) / images.count)
    if times <= 1 + UNLIKE / math.sqrt(len(embeddings)):
        return None
    return DomainShift(
        what="The images show other objects than those that the calibration was fitted to",
        measured=f"the mean squared distance of {counted(len(embeddings), 'image')} from the fit is {times:.1f} times "
        "that of others of its kind",
        in_regions=False,
    )


def _shift_in_words(feature: str, shift: float, records: Sequence[Record]) -> str:
    side = "above" if shift > 0 else "below"
    return (
        f"{feature} of the regions in {counted(len(records), 'image')} is {abs(shift):.1f} standard deviations {side} "
        "that of the fit"
    )


def _has_foreign_captions(records: Sequence[Record], calibration: Calibration) -> bool:
    """Return whether cosines may be low because captions are of other images, and not because the images differ."""
    log_ratios = [caption_log_ratios(record, calibration.absent_share) for record in records]
    share = estimate_absent_share([value for ratios in log_ratios for value in ratios.values()])
    return share > 2 * USUAL_SHARE


def apply_domain_shift(steps: HeatMapSteps, shift: DomainShift | None, choice: Path | str) -> HeatMapSteps:
    """Return the steps without a calibration that means nothing for these images, unless the user names it.

    choice: `regions.calibration`.
    """
    is_meaningless = shift is not None and shift.in_regions and choice == "auto"
    return steps.with_calibration(None) if is_meaningless else steps
