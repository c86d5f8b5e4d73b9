"""The fit of `BoxModel` to images with known boxes: where objects usually are, and networks that correct a cut's box.

Images are in `FOLDS`: the boxes that the fit is judged by, and that scores are fitted to, come
from fits to the other folds. The networks stay out of the calibration unless they are shown to
find more boxes than the cut.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, compress, starmap
from typing import Any, Final, NamedTuple

import numpy as np

from phrasebox.pipeline.calibrate.cut_fit import RowQueries, RowRecords
from phrasebox.pipeline.dataset.rows import Row
from phrasebox.pipeline.evaluate.estimates import FOLDS, Estimate, weighted_estimate
from phrasebox.pipeline.evaluate.metrics import IOU
from phrasebox.stages.contract.errors import InputError
from phrasebox.stages.contract.geometry import Box, xywh_to_xyxy
from phrasebox.stages.contract.records import Record
from phrasebox.stages.contract.values import Bools, Floats, Json
from phrasebox.stages.regions.config import RegionsConfig
from phrasebox.stages.regions.maker import RegionMaker
from phrasebox.stages.scores.fitted_cut import FittedCut
from phrasebox.stages.scores.learned_box import (
    FARTHEST,
    HIDDEN,
    INPUTS,
    QUANTILES,
    BoxModel,
    Ladder,
    MapView,
    UsualBoxes,
    logits_of,
    moments_of,
    overlaps,
    place_of,
    words_of,
)

RIDGE: Final = 30.0  # penalty on the squared terms of words; from 10 to 100 nothing changes

FEWEST_TIMES: Final = 2  # images in which a word names an object, or it adds nothing

FEWEST_IMAGES: Final = 50  # with fewer, networks are worse than the cut (measured)

MOST_BOXES: Final = 6  # largest true boxes of a phrase that a learned box may be near to

NETWORKS: Final = 2
EPOCHS: Final = 20
BATCH: Final = 128
DROPOUT: Final = (0.1, 0.3, 0.3)  # of the inputs, and of the hidden values
LEARNING_RATE: Final = 2e-3
WEIGHT_DECAY: Final = 0.05
EDGE_WEIGHT: Final = 0.5  # of the distance of the edges beside 1 - GIoU
HIT_WEIGHT: Final = 1.5  # of a soft hit at an IoU of 0.5
HIT_WIDTH: Final = 0.08  # of the soft hit, in IoU

BLANK: Final = BoxModel(
    usual=UsualBoxes(mean=(0.0, 0.0, 0.0, 0.0), words=(), terms=np.empty(0)),
    mean=np.empty(0),
    scale=np.empty(0),
    networks=(),
)
"""It leaves the boxes of the cut, and makes cuts tell what a fit sees."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedObject:
    """An object with a known place: what the fit sees of its map, and the place.

    Attributes:
        image: Number of its image.
        heads: Its English texts, each with its head noun; none where all are in other languages.
        view: What the fit sees; its `usual` does not count.
        boxes: (n, 4), true boxes as shares of the image: x0, y0, x1, y1.
        weight: Number of phrases that name it, or of those for which it counts.
        source: What made its map. Networks see the inputs of each source standardised by its own moments.
    """

    image: int
    heads: Mapping[str, str]
    view: MapView
    boxes: Floats
    weight: float
    source: str = ""

    @property
    def nearest(self) -> Floats:
        """The true box (4,) that some box of the ladder is nearest to."""
        ladder = self.view.ladder.boxes.reshape(-1, 4)
        nearest: Floats = self.boxes[int(np.argmax([overlaps(box, ladder).max() for box in self.boxes]))]
        return nearest


class KnownPlace(NamedTuple):
    """A phrase of a record, by its index, with its true boxes, and for how many phrases it counts."""

    phrase_index: int
    boxes_xywh_px: tuple[Box, ...]
    weight: float = 1.0


KnownPlaces = Callable[[Row, Record], Iterable[KnownPlace]]  # of a row

NetworkFit = Callable[[Sequence[MapView], Sequence[PlacedObject]], Json]
"""See `fit_networks`."""


class LearnedBoxes(NamedTuple):
    """Fits of boxes.

    Attributes:
        fit: The fit to all objects.
        folds: The fits to those of the other folds.
        gain: In box recall over the boxes before, by the latter; None if no network was tried.
    """

    fit: BoxModel
    folds: list[BoxModel]
    gain: Estimate | None = None


def learn_usual_boxes(objects: Sequence[PlacedObject]) -> LearnedBoxes:
    """Fit usual boxes alone to objects. Raise InputError without objects."""
    if not objects:
        raise InputError("no phrase with a known place and a heat map to fit boxes to")
    fits = BoxTrainer(objects)
    return LearnedBoxes(fits.whole(), fits.folds())


def learn_boxes(objects: Sequence[PlacedObject], before: BoxModel = BLANK) -> LearnedBoxes:
    """Fit usual boxes to objects, and networks, which stay if the interval of their gain is above 0.

    The gain is over the boxes of `before`, which are by default those of the cut. Of too few images
    no network is tried. Raise InputError without objects.
    """
    usual = learn_usual_boxes(objects)
    images = np.array([object_.image for object_ in objects], np.int64)
    if len(np.unique(images)) < FEWEST_IMAGES:
        return usual
    fits = BoxTrainer(objects, fit_networks)
    folds = fits.folds()
    weights = np.array([object_.weight for object_ in objects])
    gains = (fits.hits(folds) - fits.hits([before] * FOLDS)) * weights
    gain = weighted_estimate(lambda draw: float(draw @ gains / (draw @ weights)), images)
    return LearnedBoxes(fits.whole(), folds, gain) if gain.low > 0 else usual._replace(gain=gain)


def place_objects(
    config: RegionsConfig,
    rows: RowRecords,
    places_of: KnownPlaces,
    cuts: Mapping[int, FittedCut | None],
) -> list[PlacedObject]:
    """Return the objects of images whose places are known; `cuts` has the cut of each image."""
    objects: list[PlacedObject] = []
    for row, record in rows:
        known_places = list(places_of(row, record))
        if not known_places:
            continue
        maker = RegionMaker(config, fitted_cut=cuts[row["id"]], box_fit=BLANK)
        groups = maker.groups_of(record)
        heads = maker.heads_of(record, groups)
        phrases, maps = maker.maps_of(record, groups)
        placed: dict[tuple[int, tuple[Box, ...]], list[KnownPlace]] = {}
        for place in known_places:
            if (number := phrases[place.phrase_index][1]) is not None:
                placed.setdefault((number, place.boxes_xywh_px), []).append(place)
        numbers = dict.fromkeys(number for number, _ in placed)
        cut_maps = dict(zip(numbers, maker.cutter.cut([maps[number] for number in numbers]), strict=True))
        for (number, true_boxes), places in placed.items():
            view = cut_maps[number].view
            if view is None:
                continue
            sides = (record.width_px, record.height_px)
            boxes = np.array([xywh_to_xyxy(box) for box in true_boxes]) / (*sides, *sides)
            objects.append(
                PlacedObject(
                    image=row["id"],
                    heads=heads[places[0].phrase_index],
                    view=view,
                    boxes=boxes,
                    weight=sum(place.weight for place in places),
                )
            )
    return objects


def true_places(queries: RowQueries) -> KnownPlaces:
    """Return what tells the places that the ground truth knows."""

    def places_of(row: Row, record: Record) -> Iterator[KnownPlace]:
        for query in queries(row, record.phrases):
            if query.target is not None and query.phrase_index is not None:
                yield KnownPlace(query.phrase_index, query.target.boxes_xywh_px)

    return places_of


def is_hit(fit: BoxModel, object_: PlacedObject) -> bool:
    """Return whether the box of an object by a fit is right."""
    [box] = fit.boxes_of([object_.view._replace(usual=fit.usual.of(object_.heads))])
    return bool(overlaps(box, object_.boxes).max() >= IOU)


def fold_of(image: int) -> int:
    """Return the fold of an image."""
    return zlib.crc32(f"{image}".encode()) % FOLDS


class BoxTrainer:
    """Fits to some of the objects, all with the same words.

    Args:
        objects: Objects with known places.
        fit_networks: Returns mean, scale and networks of `BoxModel` for the views of some objects; by
            default there are no networks.
    """

    def __init__(self, objects: Sequence[PlacedObject], fit_networks: NetworkFit | None = None) -> None:
        self.objects = objects
        self._fit_networks = fit_networks
        self._folds = np.array([fold_of(object_.image) for object_ in objects])
        self.words, self._bags = _bags_of(objects)
        self._places = place_of(np.array([object_.nearest for object_ in objects]))
        self._weights = np.array([object_.weight for object_ in objects], np.float64)

    def whole(self) -> BoxModel:
        """Return the fit to all objects."""
        return self._fit(np.full(len(self.objects), True))

    def folds(self) -> list[BoxModel]:
        """Return for each fold the fit to objects of the others."""
        return [self._fit(self._folds != fold) for fold in range(FOLDS)]

    def hits(self, folds: Sequence[BoxModel]) -> Floats:
        """Return for each object whether the box by the fit of its fold is right, 0 or 1."""
        pairs = zip(self.objects, self._folds.tolist(), strict=True)
        return np.array([is_hit(folds[number], object_) for object_, number in pairs], np.float64)

    def _fit(self, is_fitted: Bools) -> BoxModel:
        mean, terms = self._solve(is_fitted)
        usual = UsualBoxes(
            mean=tuple(mean.tolist()), words=tuple(self.words), terms=terms.astype(np.float16)
        )
        if self._fit_networks is None:
            return BoxModel(usual=usual, mean=np.empty(0), scale=np.empty(0), networks=())
        objects = list(compress(self.objects, is_fitted.tolist()))
        # A network must not trust the usual place of an object more than it can for others.
        places = self._out_of_fold_places(is_fitted)[is_fitted]
        views = [object_.view._replace(usual=place) for object_, place in zip(objects, places, strict=True)]
        return BoxModel(usual=usual, **self._fit_networks(views, objects))

    def _out_of_fold_places(self, is_fitted: Bools) -> Floats:
        """Return the usual place of each object that is fitted by the words of those in other folds.

        is_fitted: (objects,). The places are (objects, 4), NaN where an object is not fitted.
        """
        places = np.full_like(self._places, np.nan)
        for fold in np.unique(self._folds[is_fitted]).tolist():
            is_in_fold = is_fitted & (self._folds == fold)
            mean, terms = self._solve(is_fitted & ~is_in_fold)
            places[is_in_fold] = mean + self._bags[is_in_fold] @ terms
        return places

    def _solve(self, rows: Bools) -> tuple[Floats, Floats]:
        """Return the mean place (4,), and the terms (words, 4) of a ridge regression on words."""
        bags = self._bags[rows]
        weights = self._weights[rows]
        mean: Floats = np.average(self._places[rows], axis=0, weights=weights)
        weighted = bags.T * weights
        gram = weighted @ bags + RIDGE * np.eye(len(self.words))
        terms = np.linalg.solve(gram, weighted @ (self._places[rows] - mean))
        return mean, np.asarray(terms, np.float64)


def _bags_of(objects: Sequence[PlacedObject]) -> tuple[list[str], Floats]:
    """Return the words of objects, and their share in each object's texts (objects, words)."""
    bags = [Counter(chain.from_iterable(starmap(words_of, object_.heads.items()))) for object_ in objects]
    images = {(object_.image, word) for object_, bag in zip(objects, bags, strict=True) for word in bag}
    times = Counter(word for _, word in images)
    words = sorted(word for word, number in times.items() if number >= FEWEST_TIMES)
    shares = [
        [bag[word] / max(1, len(object_.heads)) for word in words]
        for bag, object_ in zip(bags, objects, strict=True)
    ]
    return words, np.array(shares).reshape(len(objects), len(words))


def fit_networks(views: Sequence[MapView], objects: Sequence[PlacedObject]) -> Json:
    """Return mean, scale and networks of `BoxModel`, fitted to objects and their mirror images."""
    import torch  # noqa: PLC0415  it takes seconds to import, and only this function needs it

    both = [*views, *map(_mirrored, views)]
    inputs = np.array([view.inputs for view in both])
    mean, scale = moments_of(inputs)
    x = torch.from_numpy(np.clip(_standardise(inputs, objects), -FARTHEST, FARTHEST).astype(np.float32))
    start = torch.from_numpy(np.array([logits_of(view.cut_box) for view in both], np.float32))
    boxes = np.array([_largest(object_.boxes) for object_ in objects])
    target = torch.from_numpy(np.concatenate([boxes, _mirror(boxes)]).astype(np.float32))
    weight = torch.from_numpy(np.tile([object_.weight for object_ in objects], 2).astype(np.float32))
    weight = weight / weight.mean()
    networks = []
    with torch.random.fork_rng(devices=[]):
        for seed in range(NETWORKS):
            torch.manual_seed(seed)
            layers = [
                torch.nn.Linear(*sizes) for sizes in ((INPUTS, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, 4))
            ]
            torch.nn.init.zeros_(layers[-1].weight)
            torch.nn.init.zeros_(layers[-1].bias)
            parts: list[torch.nn.Module] = []
            for share, layer in zip(DROPOUT, layers, strict=True):
                parts += [torch.nn.Dropout(share), layer, torch.nn.GELU("tanh")]
            model = torch.nn.Sequential(*parts[:-1])
            optimiser = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
            batches = -(-len(x) // BATCH)
            schedule = torch.optim.lr_scheduler.OneCycleLR(
                optimiser, LEARNING_RATE, total_steps=EPOCHS * batches
            )
            for _ in range(EPOCHS):
                for rows in torch.randperm(len(x)).split(BATCH):
                    loss = (weight[rows] * _box_loss(start[rows] + model(x[rows]), target[rows])).mean()
                    optimiser.zero_grad()
                    loss.backward()
                    optimiser.step()
                    schedule.step()
            matrices = (torch.cat([layer.weight.T, layer.bias[None]]).detach().numpy() for layer in layers)
            networks.append(
                np.concatenate([matrix.ravel() for matrix in matrices])
                .astype(np.float16)
                .astype(np.float64)
            )
    return {"mean": mean, "scale": scale, "networks": tuple(networks)}


def _standardise(inputs: Floats, objects: Sequence[PlacedObject]) -> Floats:
    """Return the inputs (2 n, INPUTS) of objects (n,) and of their mirror images by the moments of their sources."""
    sources = np.tile([object_.source for object_ in objects], 2)
    standardised = np.empty_like(inputs)
    for source in np.unique(sources):
        of_source = sources == source
        mean, scale = moments_of(inputs[of_source])
        standardised[of_source] = (inputs[of_source] - mean) / scale
    return standardised


def _box_loss(logits: Any, target: Any) -> Any:
    """Return the loss (n,) of boxes given by logits (n, 4) against the nearest of true boxes (n, MOST_BOXES, 4)."""
    import torch  # noqa: PLC0415  see `fit_networks`
    from torchvision.ops import generalized_box_iou_loss  # noqa: PLC0415

    centre, half = torch.sigmoid(logits).split(2, dim=1)
    half = half / 2
    box = torch.cat([centre - half, centre + half], dim=1).clamp(0, 1)[:, None]
    giou = 1 - generalized_box_iou_loss(box.expand_as(target), target)
    hit = torch.sigmoid((giou.clamp(min=0) - 0.5) / HIT_WIDTH)
    edges = (box - target).abs().sum(dim=-1)
    return (1 - giou + EDGE_WEIGHT * edges + HIT_WEIGHT * (1 - hit)).amin(dim=1)


def _largest(boxes: Floats) -> Floats:
    """Return the `MOST_BOXES` largest boxes, some of them again where there are fewer."""
    order = np.argsort(-(boxes[:, 2:] - boxes[:, :2]).prod(axis=1), kind="stable")[:MOST_BOXES]
    return boxes[order[np.arange(MOST_BOXES) % len(order)]]


def _mirror(boxes: Floats) -> Floats:
    return np.stack([1 - boxes[..., 2], boxes[..., 1], 1 - boxes[..., 0], boxes[..., 3]], axis=-1)


def _mirrored(view: MapView) -> MapView:
    """Return what the fit would see of the mirror image."""
    profile = view.ladder.profile.copy()
    along = len(QUANTILES)
    profile[:along] = 1 - profile[:along][::-1]
    profile[[along, -5]] = 1 - profile[[along, -5]]  # the mean, and the place of the highest heat
    ladder = Ladder(_mirror(view.ladder.boxes), view.ladder.parts, profile)
    usual = view.usual * (-1, 1, 1, 1) + (1, 0, 0, 0)
    return view._replace(ladder=ladder, usual=usual, cut_box=_mirror(view.cut_box))
