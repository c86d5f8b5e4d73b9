"""The heat maps of all contenders, and what else the model is asked: shuffled weights, curves, time.

The images go through the contenders batch by batch, so that those which look at the same pixels share the trunk's
forward pass where the tower allows it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from pipeline.config import RunConfig
from pipeline.evaluate.alikeness import rank_correlation
from pipeline.evaluate.compare.contenders import Contender
from pipeline.evaluate.compare.cost import timing
from pipeline.evaluate.compare.curves import hidden_pixels, image_embeddings, masked_cosines, text_embeddings
from pipeline.evaluate.compare.pictures import ComparedImage, Question, prepare_stage
from pipeline.evaluate.compare.randomised import DEPTHS, randomised
from pipeline.evaluate.compare.remembered import remembering
from pipeline.evaluate.faithfulness import PROTOCOLS, area_under, hot_first, probability, shown
from pipeline.evaluate.localisation import drawn
from pipeline.terminal import progress_bar
from stages.contract.records import HeatMap, Phrase, Record, stable_id
from stages.explain import EXPLAINERS
from stages.explain.config import ExplainerConfig
from stages.explain.stage import ExplainStage, ExplainStageConfig
from stages.shared.model.clip import ClipModel

TIMED_PHRASES: Final = 8
TIMED_IMAGES: Final = 2
"""Images of a batch that is timed; one where each takes many forward passes."""

SANE_PERTURBED: Final = 2
"""Images of the sanity checks of explainers that take many forward passes for each."""

RIVALS: Final = 100
"""The most phrases among which a phrase's probability is told."""

Maps = Mapping[str, Sequence[HeatMap]]
"""Label -> the maps of one image, in the order of its questions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapped:
    """The maps of all images.

    Attributes:
        maps: Of each image.
        cosines: Of each image, those of its questions by the image tower alone.
    """

    maps: tuple[Maps, ...]
    cosines: tuple[NDArray[np.float64], ...]


class Field:
    """All contenders on one model.

    Args:
        model: The model, loaded.
        config: The run whose settings of model and images are used.
        contenders: The explainers.
        console: Shows the progress.
    """

    def __init__(self, model: ClipModel, config: RunConfig, contenders: Sequence[Contender], console: Console) -> None:
        self.plain = model
        self.config = config
        self.contenders = tuple(contenders)
        self.console = console
        self.model = remembering(model)
        self._prepare: dict[str, Any] = {}

    def mapped(self, images: Sequence[ComparedImage]) -> Mapped:
        """The maps of all questions."""
        stages = self._stages(self.model)
        step = max(stage.batch_rows() for stage in stages.values())
        found: list[Maps] = []
        cosines: list[NDArray[np.float64]] = []
        with progress_bar(self.console, "heat maps", len(images)) as advance:
            for start in range(0, len(images), step):
                batch = images[start : start + step]
                found += self._explained(stages, batch)
                cosines += self._cosines(batch)
                advance(start + len(batch))
        return Mapped(maps=tuple(found), cosines=tuple(cosines))

    def sanity(self, images: Sequence[ComparedImage], maps: Sequence[Maps], seed: int) -> list[dict[str, Any]]:
        """Rank correlations of the first question's map with maps that should differ.

        Explainers that take many forward passes for an image are asked of the first `SANE_PERTURBED` images alone.

        Args:
            images: Those that are asked.
            maps: Their maps.
            seed: Decides how the weights are shuffled.

        Returns:
            For each image and contender `label`, `image`, and the correlation with the map of a phrase of the next
            image (`phrase_swapped`) and with its own map by shuffled weights (`weights_head`, `weights_all`).
        """
        first = [image.questions[0].phrase for image in images]
        others = [*first[1:], *first[:1]]
        rows = {
            (image.number, contender.label): {"label": contender.label, "image": image.number}
            for image in images
            for contender in self.contenders
        }
        tries: list[tuple[str, ClipModel, list[Phrase]]] = [
            ("phrase_swapped", self.model, others),
            *((f"weights_{depth}", randomised(self.model, depth, seed), first) for depth in DEPTHS),
        ]
        stages = {name: self._stages(model) for name, model, _ in tries}
        step = max(stage.batch_rows() for stage in stages["phrase_swapped"].values())
        with progress_bar(self.console, "sanity", len(images)) as advance:
            for start in range(0, len(images), step):
                end = min(start + step, len(images))
                for name, _, phrases in tries:
                    asked = [_asked(images[place], [phrases[place]]) for place in range(start, end)]
                    few = asked[: max(0, SANE_PERTURBED - start)]
                    for contender in self.contenders:
                        label = contender.label
                        some = few if contender.repeats_trunk else asked
                        changed = stages[name][label].process(self._records(contender.config, some))
                        for image, own, answer in zip(some, maps[start:], changed, strict=False):
                            values = answer.heat_maps[0].values
                            rows[image.number, label][name] = rank_correlation(own[label][0].values, values)
                advance(end)
        return list(rows.values())

    def curves(
        self, images: Sequence[ComparedImage], maps: Sequence[Maps], rivals: Sequence[str], phrases: int, seed: int
    ) -> list[dict[str, Any]]:
        """Insertion and deletion of the first questions of each image, for every label that `maps` has.

        Args:
            images: Those that are asked.
            maps: Their maps.
            rivals: Texts among which a phrase's probability is told.
            phrases: The most questions of an image.
            seed: Decides the random colours.

        Returns:
            For each image, question and label `label`, `image`, `question`, and for each of `PROTOCOLS` the area under
            the curve of the probability, and of the cosine (`..._cosine`).
        """
        rows: list[dict[str, Any]] = []
        with progress_bar(self.console, "insertion and deletion", len(images)) as advance:
            for done, (image, own) in enumerate(zip(images, maps, strict=True), start=1):
                for number, question in enumerate(image.questions[:phrases]):
                    heats = {label: each[number] for label, each in own.items()}
                    areas = self._areas(image, question, heats, rivals, seed)
                    rows += [
                        {"label": label, "image": image.number, "question": number, **found}
                        for label, found in areas.items()
                    ]
                advance(done)
        return rows

    def costs(self, images: Sequence[ComparedImage], rivals: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Label -> what a batch costs with eight phrases an image: `encode_image` times, `seconds`, `repeats`.

        The time for the same images by the image tower alone is 1. Nothing is remembered here.
        """
        costs: dict[str, dict[str, Any]] = {}
        with progress_bar(self.console, "cost", len(self.contenders)) as advance:
            for done, contender in enumerate(self.contenders, start=1):
                whole = contender.config.image_size == "keep" or contender.repeats_trunk
                timed = list(images[: 1 if whole else TIMED_IMAGES])
                rgb = np.stack([_pixels(record) for record in self._records(contender.config, timed)])
                phrases = [_several(image, rivals) for image in timed]
                explainer = EXPLAINERS[contender.config.kind](contender.config, self.plain)
                found = timing(explainer, rgb, phrases)
                costs[contender.label] = {
                    "encode_image": found.explain_s / found.encode_s,
                    "seconds": found.explain_s / len(timed),
                    "repeats": found.repeats,
                }
                advance(done)
        return costs

    def _stages(self, model: ClipModel) -> dict[str, ExplainStage]:
        stages: dict[str, ExplainStage] = {}
        for contender in self.contenders:
            settings = self.config.model
            if contender.config.image_size == "keep":  # images that keep their aspect ratio do not fit into a batch
                settings = settings.model_copy(update={"batch_size": 1})
            # Masked images are never seen again: to remember them takes gigabytes.
            asked = self.plain if contender.repeats_trunk and model is self.model else model
            stage = ExplainStage(ExplainStageConfig(model=settings, explainer=contender.config), asked)
            stage.setup()
            stages[contender.label] = stage
        return stages

    def _explained(self, stages: Mapping[str, ExplainStage], images: Sequence[ComparedImage]) -> list[Maps]:
        """The maps of at most a batch of images."""
        found: list[dict[str, Sequence[HeatMap]]] = [{} for _ in images]
        for contender in self.contenders:
            answers = stages[contender.label].process(self._records(contender.config, images))
            for own, answer in zip(found, answers, strict=True):
                own[contender.label] = answer.heat_maps
        return list(found)

    def _records(self, explainer: ExplainerConfig, images: Sequence[ComparedImage]) -> list[Record]:
        """The images at the size that an explainer takes."""
        plain = ExplainerConfig(kind="").canvas(self.plain.input)
        canvas = explainer.canvas(self.plain.input)
        if canvas["mode"] == plain["mode"] and canvas["size_px"] == plain["size_px"]:
            return [image.record for image in images]
        key = repr(canvas)
        if key not in self._prepare:
            self._prepare[key] = prepare_stage(self.config, explainer, self.plain.input)
            self._prepare[key].setup()
        prepared: list[Record] = self._prepare[key].process([image.source for image in images])
        return prepared

    def _cosines(self, images: Sequence[ComparedImage]) -> Iterator[NDArray[np.float64]]:
        rgb = np.stack([_pixels(image.record) for image in images])
        embeddings = image_embeddings(self.model, rgb).astype(np.float64)
        for image, embedding in zip(images, embeddings, strict=True):
            texts = [question.phrase.text for question in image.questions]
            yield text_embeddings(self.model, texts).astype(np.float64) @ embedding

    def _areas(
        self,
        image: ComparedImage,
        question: Question,
        heats: Mapping[str, HeatMap],
        rivals: Sequence[str],
        seed: int,
    ) -> dict[str, dict[str, float]]:
        rgb = _pixels(image.record)
        own = question.phrase.text
        texts = text_embeddings(self.plain, [own, *(text for text in rivals if text != own)])
        found: dict[str, dict[str, float]] = {label: {} for label in heats}
        size_hw = (rgb.shape[0], rgb.shape[1])
        places = {label: hot_first(drawn(heat_map, size_hw)) for label, heat_map in heats.items()}
        for name, protocol in PROTOCOLS.items():
            hidden = hidden_pixels(self.plain, rgb, protocol.hidden, stable_id(f"{seed}:{image.number}"))
            masks = {label: shown(own_places, protocol) for label, own_places in places.items()}
            points = len(protocol.shares)
            # Where all or nothing is seen the image is the same by every map.
            ends = [point for point, share in enumerate(protocol.shares) if share in (0.0, 1.0)]
            between = [point for point in range(points) if point not in ends]
            one = next(iter(masks.values()))
            stacked = np.concatenate([one[ends], *(each[between] for each in masks.values())])
            cosines = masked_cosines(self.plain, rgb, stacked, hidden, texts)
            for number, label in enumerate(masks):
                curve = np.empty((points, cosines.shape[1]))
                curve[ends] = cosines[: len(ends)]
                start = len(ends) + number * len(between)
                curve[between] = cosines[start : start + len(between)]
                found[label][name] = area_under(protocol.shares, probability(curve, 0))
                found[label][f"{name}_cosine"] = area_under(protocol.shares, curve[:, 0])
        return found


def baselines(images: Sequence[ComparedImage], grid_hw: Callable[[Record], tuple[int, int]], seed: int) -> list[Maps]:
    """Maps that know nothing, in the shape of the contenders': `centre`, a spot that falls off from the middle of the
    image, and `random`, smooth noise of its own for every phrase."""
    found: list[Maps] = []
    for image in images:
        rows, columns = grid_hw(image.record)
        y, x = np.meshgrid(np.linspace(-1, 1, rows), np.linspace(-1, 1, columns), indexing="ij")
        spot = np.exp(-(y**2 + x**2)).astype(np.float32)
        own: dict[str, Sequence[HeatMap]] = {"centre": [], "random": []}
        for question in image.questions:
            text = question.phrase.text
            random = np.random.default_rng(stable_id(f"{seed}:{image.number}:{text}"))
            coarse = HeatMap(text=text, values=random.random((4, 4), np.float32), similarity=0.0)
            own["centre"] = [*own["centre"], replace(coarse, values=spot)]
            own["random"] = [*own["random"], replace(coarse, values=drawn(coarse, (rows, columns)))]
        found.append(own)
    return found


def rivals_of(images: Sequence[ComparedImage], seed: int) -> list[str]:
    """Texts of the questions of all images, each once, at most `RIVALS` of them."""
    texts = dict.fromkeys(question.phrase.text for image in images for question in image.questions)
    return sorted(texts, key=lambda text: stable_id(f"{seed}:{text}"))[:RIVALS]


def _asked(image: ComparedImage, phrases: Sequence[Phrase]) -> ComparedImage:
    """The same image, asked for other phrases."""
    return replace(
        image,
        source=replace(image.source, phrases=tuple(phrases)),
        record=replace(image.record, phrases=tuple(phrases)),
    )


def _several(image: ComparedImage, rivals: Sequence[str]) -> list[str]:
    """Eight texts, the image's own first; fewer where there are no more in the whole sample."""
    own = [question.phrase.text for question in image.questions]
    return list(dict.fromkeys([*own, *rivals]))[:TIMED_PHRASES]


def _pixels(record: Record) -> NDArray[np.uint8]:
    assert record.pixels is not None, "prepared records have pixels"  # noqa: S101
    return record.pixels.rgb
