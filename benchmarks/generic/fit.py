"""The fit of cut, boxes and scores to the maps of several models and explainers.

It is that of `phrasebox calibrate` on all maps together, but for three things: presence comes from captions, as a
run without a calibration knows it. Cosines do not count, because each model has its own. Networks of boxes see the
inputs of each model and explainer standardised by its own moments.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Final

import numpy as np

from benchmarks.generic.maps import Labels, MapSet
from phrasebox.pipeline.calibrate.box_fit import (
    BoxTrainer,
    PlacedObject,
    fit_networks,
    fold_of,
    place_objects,
    true_places,
)
from phrasebox.pipeline.calibrate.caption_views import CaptionView, captionings_of, views_of
from phrasebox.pipeline.calibrate.cut_fit import CutExamples, UsualSizes, cut_examples, fit_cut_to_examples
from phrasebox.pipeline.calibrate.truth_fit import JudgedRegion, cut_of_others, judge_row
from phrasebox.pipeline.run.calibration import generic_basis
from phrasebox.pipeline.run.generic import box_inputs
from phrasebox.stages.contract.values import Floats, Json
from phrasebox.stages.regions.config import RegionsConfig
from phrasebox.stages.regions.stage import RegionsStage
from phrasebox.stages.scores.fitted_cut import FittedCut
from phrasebox.stages.scores.learned_box import FACTS, HIDDEN, INPUTS, BoxModel
from phrasebox.stages.scores.logistic import fit_logistic
from phrasebox.stages.scores.score import Calibration

REGIONS: Final = RegionsConfig(exponent=1.0)  # maps come with their exponent

COSINES: Final = ("similarity", "of_thing_similarity")
"""Features of scores that a generic calibration does not weigh."""

_SIMILARITY_INPUT: Final = INPUTS - 4 - len(FACTS) + FACTS.index("similarity")


@dataclass(frozen=True)
class Source:
    """The maps of a model and an explainer, and what is true of their photographs.

    Attributes:
        maps: The maps.
        labels: The truth.
    """

    maps: MapSet
    labels: Labels

    @cached_property
    def views(self) -> list[CaptionView]:
        """The rows with all captions, and then with one."""
        rows = list(self.labels.rows_of(self.maps.raised()))
        views = [view for row, record in rows for view in views_of(row, record)]
        return sorted(views, key=lambda view: view.captions is not None)

    @cached_property
    def examples(self) -> CutExamples:
        """The maps, cut at all shares."""
        rows = [(row, record) for row, record, captions in self.views if captions is None]
        return cut_examples(REGIONS, rows, self.labels.queries)

    def cuts(self, cut: FittedCut, sizes: UsualSizes) -> dict[int, FittedCut | None]:
        """Return the cut of each image, with usual sizes from the other ones."""
        return {
            row["id"]: cut_of_others(cut, sizes, row["id"], record)
            for row, record, captions in self.views
            if captions is None
        }

    def objects(self, cuts: Mapping[int, FittedCut | None], *, has_cosines: bool) -> Iterator[PlacedObject]:
        """Yield the objects with known places, whose maps are cut so; `has_cosines`: see `fit_sources`."""
        rows = [view[:2] for view in self.views]
        for placed in place_objects(REGIONS, rows, true_places(self.labels.queries), cuts):
            facts = placed.view.facts
            view = placed.view._replace(facts=facts if has_cosines else _without_cosine(facts))
            yield replace(placed, source=self.maps.source, view=view)

    def judge(
        self, cuts: Mapping[int, FittedCut | None], folds: Sequence[BoxModel]
    ) -> Iterator[JudgedRegion]:
        """Yield the regions with known truth, each by the fit of boxes to the other folds."""
        for row, record, _ in self.views:
            stage = RegionsStage(REGIONS, fitted_cut=cuts[row["id"]], box_fit=folds[fold_of(row["id"])])
            yield from judge_row(row, record, stage, self.labels.queries)

    def inputs_of(self, box: BoxModel, cut: FittedCut) -> Floats:
        """Return what the networks of a fit of boxes see of these maps, (maps, INPUTS)."""
        records = [record for _, record, captions in self.views if captions is None]
        generic = Calibration(
            bias=0.0, weight={}, mean={}, scale={}, made_with={}, made_from={}, cut=cut, box=box
        )
        return box_inputs(REGIONS, generic, records)


def fit_sources(sources: Sequence[Source], *, has_cosines: bool = False) -> Calibration:
    """Return the calibration for the maps of any model, fitted to those of some.

    has_cosines: Whether cosines count, as they may in a fit to one model.
    """
    examples = [source.examples for source in sources]
    cut, sizes = fit_cut_to_examples(
        CutExamples(*([*chain.from_iterable(parts)] for parts in zip(*examples, strict=True)))
    )
    cuts = [source.cuts(cut, sizes) for source in sources]
    objects = [
        object_
        for source, source_cuts in zip(sources, cuts, strict=True)
        for object_ in source.objects(source_cuts, has_cosines=has_cosines)
    ]
    trainer = BoxTrainer(objects, fit_networks)
    box, *folds = [
        fit if has_cosines else _without_cosine_weights(fit) for fit in (trainer.whole(), *trainer.folds())
    ]
    regions: list[JudgedRegion] = []
    for source, source_cuts in zip(sources, cuts, strict=True):
        inputs = source.inputs_of(box, cut)
        regions += source.judge(source_cuts, [fold.with_moments(inputs) for fold in folds])
    names = [name for name in regions[0].evidence.features if has_cosines or name not in COSINES]
    features = np.array([[region.evidence.features[name] for name in names] for region in regions])
    is_right = np.array([region.is_right for region in regions], np.bool_)
    regression = fit_logistic(features, is_right)
    captions = captionings_of(sources[0].views)
    made_from: Json = {
        "truth": "human boxes",
        "sources": [source.maps.source for source in sources],
        "images": len({region.image for region in regions}),
        "regions": len(regions),
        "right": int(is_right.sum()),
        "captions": [captioning.rounded for captioning in captions],
    }
    return Calibration(
        bias=regression.bias,
        **regression.by_name(names),
        made_with=generic_basis(REGIONS),
        made_from=made_from,
        cut=cut,
        box=box,
    )


def _without_cosine(facts: Floats) -> Floats:
    facts = facts.copy()
    facts[FACTS.index("similarity")] = 0.0
    return facts


def _without_cosine_weights(box: BoxModel) -> BoxModel:
    """Return the fit without the weights of the cosine, which was the same for all objects of the fit."""
    networks = []
    for weights in box.networks:
        network = weights.copy()
        network[_SIMILARITY_INPUT * HIDDEN : (_SIMILARITY_INPUT + 1) * HIDDEN] = 0.0
        networks.append(network)
    return box.model_copy(update={"networks": tuple(networks)})
