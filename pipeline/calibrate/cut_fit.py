"""The fit of the rule `fitted` to images with known boxes: how large objects usually are, and where maps are cut."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from statistics import fmean
from typing import Final, NamedTuple

import numpy as np

from phrasebox.pipeline.calibrate.caption_views import views_of
from phrasebox.pipeline.dataset.rows import Row
from phrasebox.pipeline.evaluate.matching import Query
from phrasebox.pipeline.evaluate.metrics import is_right
from phrasebox.stages.contract.errors import InputError
from phrasebox.stages.contract.geometry import Box
from phrasebox.stages.contract.records import Phrase, Record
from phrasebox.stages.contract.values import Bools, Floats, Levels, Sides
from phrasebox.stages.regions.config import RegionsConfig
from phrasebox.stages.regions.cut_rules import cut_features
from phrasebox.stages.regions.stage import RegionsStage
from phrasebox.stages.scores.fitted_cut import CUT_FEATURES, SHARES, FittedCut
from phrasebox.stages.scores.logistic import LogisticModel, mean_and_scale

RIDGE: Final = 1e-4
"""Penalty on the squared weights of a cut's standardised features, beside a mean over maps of 0 ..
1."""

SHRINK: Final = (
    3.0  # objects of usual size that each head noun is taken to have been seen with beside the real ones
)

STEPS: Final = 400  # most steps of the optimiser of cuts; some 100 suffice

RowRecords = Sequence[tuple[Row, Record]]  # rows with their records, see `EvaluationSet.rows_with_maps`

RowQueries = Callable[
    [Row, Sequence[Phrase]], list[Query]
]  # of a row with these phrases, see `EvaluationSet.queries`


class SizedObject(NamedTuple):
    """A named object of an image; `log_size` is the mean logarithm of its true boxes' shares of the image."""

    image: int
    head: str
    log_size: float


class UsualSizes:
    """The usual size of the objects that each head noun names, see `FittedCut.usual`."""

    def __init__(self, sized_objects: Sequence[SizedObject]) -> None:
        mean = fmean(object_.log_size for object_ in sized_objects) if sized_objects else 0.0
        self._of_head: dict[str, list[tuple[int, float]]] = defaultdict(list)
        for image, head, log_size in sized_objects:
            self._of_head[head].append((image, log_size - mean))

    def by_head(self) -> dict[str, float]:
        """Return the sizes for all heads, rounded: more digits would only fill the file."""
        return {
            head: round(_shrunken_mean([size for _, size in sizes]), 3)
            for head, sizes in sorted(self._of_head.items())
        }

    def of_other_images(self, image: int, heads: Iterable[str]) -> dict[str, float]:
        """Return the sizes for some heads, from images other than this one."""
        return {
            head: _shrunken_mean([size for other, size in self._of_head.get(head, ()) if other != image])
            for head in heads
        }


def _shrunken_mean(sizes: Sequence[float]) -> float:
    return math.fsum(sizes) / (len(sizes) + SHRINK)


GRABCUT_IMAGES: Final = 100
"""The most images, evenly spaced, for which GrabCut cuts maps at all shares, in a tenth of a
second for one size. Box recall on other photographs of train (200 in five folds) is +0.006
(-0.005 to 0.016) with 80 images instead of 160, and -0.012 (-0.026 to -0.001) with 53. A fit to
contours instead has -0.009 (-0.032 to 0.015)."""


class CutExamples(NamedTuple):
    """Maps that are cut at all shares.

    Attributes:
        objects: The objects that English phrases name, for their usual sizes.
        maps: The image of each map, the English head nouns of its object, and its levels.
        right: Whether the first region of each cut of each map is right.
    """

    objects: list[SizedObject]
    maps: list[tuple[int, tuple[str, ...], Levels]]
    right: list[list[bool]]


def fit_cut_to_rows(
    config: RegionsConfig, rows: RowRecords, queries: RowQueries
) -> tuple[FittedCut, UsualSizes]:
    """Fit where maps are cut, see `fit_cut_to_examples`."""
    return fit_cut_to_examples(cut_examples(config, rows, queries))


def cut_examples(config: RegionsConfig, rows: RowRecords, queries: RowQueries) -> CutExamples:
    """Cut each map of rows at all shares; `queries` returns those of a row."""
    # A segmenter is prompted with the cut: the best prompt is the best contour.
    refine = "none" if config.refine == "sam" else config.refine
    config = config.model_copy(update={"rule": "fixed", "refine": refine})
    stages = [RegionsStage(config.model_copy(update={"threshold": share})) for share in SHARES]
    maker = stages[0].maker
    step = -(-len(rows) // GRABCUT_IMAGES) if refine == "grabcut" else 1
    objects: list[SizedObject] = []
    maps: list[tuple[int, tuple[str, ...], Levels]] = []
    right: list[list[bool]] = []
    for number, (whole_row, whole_record) in enumerate(rows):
        is_cut = number % step == 0
        for row, record, captions in islice(views_of(whole_row, whole_record), None if is_cut else 1):
            row_surfaces = maker.surfaces_of_phrases(record)
            heads = maker.heads_of(record, maker.groups_of(record))
            regions_by_share = [stage.regions_of(record) for stage in stages] if is_cut else []
            for query in queries(row, record.phrases):
                index = query.phrase_index
                if query.target is None or index is None or (surface := row_surfaces[index]) is None:
                    continue
                boxes = query.target.boxes_xywh_px
                head = heads[index].get(record.phrases[index].text)
                if captions is None and head is not None:
                    objects.append(SizedObject(query.image, head, _log_size(boxes, query.size_hw)))
                if not is_cut:
                    continue
                maps.append((query.image, tuple(heads[index].values()), surface.values.astype(np.uint8)))
                right.append(
                    [
                        any(is_right(region.box_xywh_px, boxes) for region, _ in regions[index][:1])
                        for regions in regions_by_share
                    ]
                )
    return CutExamples(objects, maps, right)


def fit_cut_to_examples(examples: CutExamples) -> tuple[FittedCut, UsualSizes]:
    """Fit where maps are cut, so that the first region of each is right.

    The usual size of an object comes from other images alone. Raise InputError if no cut is right, or
    all of them are.
    """
    objects, maps, right = examples
    if not maps:
        raise InputError("no phrase with a known place to fit regions.rule=fitted to")
    sizes = UsualSizes(objects)
    features = []
    for image, names, levels in maps:
        usual_sizes = sizes.of_other_images(image, names)
        usual_size = fmean(usual_sizes[name] for name in names) if names else 0.0
        features += list(cut_features(levels[None], [usual_size]))
    try:
        fit = fit_cut(np.array(features), np.array(right))
    except ValueError as error:
        raise InputError(
            f"{len(right)} phrases with a known place: {error} to fit regions.rule=fitted to"
        ) from error
    return FittedCut(**fit.by_name(CUT_FEATURES), usual=sizes.by_head()), sizes


def _log_size(boxes_xywh_px: Sequence[Box], size_hw: Sides) -> float:
    """Return the mean logarithm of the shares of an image that boxes cover; one without an area counts as a pixel."""
    height, width = size_hw
    return fmean(math.log(max(w * h, 1.0) / (height * width)) for _, _, w, h in boxes_xywh_px)


def fit_cut(features: Floats, right: Bools) -> LogisticModel:
    """Return the weights by which most maps are cut so that their region is right.

    The fit maximises the share of right regions if each cut were drawn with the probability
    softmax(worth). This is the expected reward of a policy; unlike a likelihood it gives up
    maps that no cut makes right. L-BFGS starts from zero, in float64, so that the same data
    give the same weights. A bias would change nothing: it is the same for all cuts of a map.

    Args:
        features: (n, cuts, k), of each cut of each map; NaN where nothing lies above a cut.
        right: (n, cuts), whether the region that the cut gives is right.

    Raise ValueError if no cut, or every cut of every map is right.
    """
    import torch  # noqa: PLC0415  it takes seconds to import, and only this function needs it

    is_finite = np.isfinite(features.sum(axis=-1))
    if not right[is_finite].any() or right[is_finite].all():
        raise ValueError("expected right and wrong cuts")
    mean, scale = mean_and_scale(features[is_finite])
    has_cut = is_finite.any(axis=1)
    x = torch.from_numpy(np.where(is_finite[..., None], (features - mean) / scale, 0.0)[has_cut])
    barrier = torch.from_numpy(np.where(is_finite, 0.0, -np.inf)[has_cut])
    reward = torch.from_numpy((right & is_finite).astype(np.float64)[has_cut])
    weight = torch.zeros(features.shape[2], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        shares = torch.softmax(x @ weight + barrier, dim=1)
        value = RIDGE * (weight @ weight) - (shares * reward).sum(dim=1).mean()
        value.backward()
        return value

    optimiser.step(loss)
    return LogisticModel(bias=0.0, weight=weight.detach().numpy(), mean=mean, scale=scale)
