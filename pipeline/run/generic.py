"""The generic calibration: cut, boxes and scores that were fitted to the maps of other models.

It is brought to a model by the first images of a run, without annotations: presence is fitted to their captions, the
heat of their maps gets the usual mean, and the networks of boxes standardise their inputs by these images. Scores are
standardised by the images of the fit, so that maps that are worse than those of the fit get lower scores. They are
estimates: the fit has not seen the model.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

import numpy as np

from phrasebox.pipeline.run.calibration import calibration_basis
from phrasebox.pipeline.run.steps import HeatMapSteps
from phrasebox.stages.contract.errors import ConfigError
from phrasebox.stages.contract.records import Record
from phrasebox.stages.contract.values import Floats
from phrasebox.stages.regions.config import RegionsConfig
from phrasebox.stages.regions.maker import RegionMaker
from phrasebox.stages.scores.presence import Presence
from phrasebox.stages.scores.score import Calibration


def with_generic(
    steps: HeatMapSteps,
    generic: Calibration,
    presence: Presence,
    records: Iterable[Record],
    exponent: float,
) -> HeatMapSteps:
    """Return the steps with a calibration of other models, brought to the maps of the first images.

    Args:
        steps: The stages, without a calibration.
        generic: The calibration of other models.
        presence: The fit to the captions of the images.
        records: The images with their maps, whose presence the fit has judged.
        exponent: The power that gives their maps the usual mean heat; a power in the settings goes before it.
    """
    config = steps.regions_stage.config
    power = exponent if config.exponent == "auto" else config.exponent
    config = config.model_copy(update={"rule": "fitted", "exponent": power})
    inputs = box_inputs(config, generic, records)
    brought = generic.model_copy(
        update={
            "made_with": calibration_basis(steps.explainer, config, steps.fingerprint, steps.segmenter),
            "made_from": {**generic.made_from, "precisions": [steps.model_stage.precision]},
            "presence": presence,
            "box": generic.box
            if generic.box is None or not len(inputs)
            else generic.box.with_moments(inputs),
        }
    )
    return replace(steps.with_calibration(brought), generic=None)


HOW_TO_NAME: Final = "name the file OUT/presence.json that a run of the model with it has written"


def reject_generic(steps: HeatMapSteps, advice: str = HOW_TO_NAME) -> None:
    """Raise ConfigError where steps take a calibration of other models, which nothing has adapted to this one.

    advice: How it can be adapted, as the end of a sentence.
    """
    if steps.generic is not None:
        raise ConfigError(
            f"a generic calibration has to be adapted to the model on some hundred images: {advice}, or take none",
            key="regions.calibration",
        )


def box_inputs(config: RegionsConfig, generic: Calibration, records: Iterable[Record]) -> Floats:
    """Return what the networks of boxes would see of the maps of records, (maps, INPUTS)."""
    box = None if generic.box is None else generic.box.without_networks()
    maker = RegionMaker(config, fitted_cut=generic.cut, box_fit=box)
    inputs = []
    for record in records:
        objects = maker.maps_of(record, maker.groups_of(record)).objects
        cuts = maker.cutter.cut(list(objects.values()))
        inputs += [cut.view.inputs for cut in cuts if cut.view is not None]
    return np.array(inputs)
