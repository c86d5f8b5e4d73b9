"""The contenders of a comparison (`grad_eclip,maskclip,grad_eclip:heads=single:blocks=1`) and their heat maps and cost.

Baselines that know no phrase are here, too.

The contenders process the images batch by batch.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Final

import numpy as np
import torch
from rich.console import Console

from phrasebox.pipeline.config.run_config import ExplainCommandConfig, override
from phrasebox.pipeline.evaluate.evaluation_set import pixels_of, prepare_stage
from phrasebox.pipeline.evaluate.matching import draw_map
from phrasebox.pipeline.research.compare.faithfulness import image_embeddings, text_embeddings
from phrasebox.pipeline.research.compare.pictures import SEED, ComparedImage
from phrasebox.pipeline.terminal import progress_bar
from phrasebox.stages.contract.errors import ConfigError
from phrasebox.stages.contract.records import HeatMap, Record, stable_id
from phrasebox.stages.contract.values import Floats
from phrasebox.stages.explain import EXPLAINERS, fit_to_tower, kinds_for
from phrasebox.stages.explain.config import ExplainerConfig
from phrasebox.stages.explain.stage import ExplainStage, ExplainStageConfig
from phrasebox.stages.explainers.attention import last_attention
from phrasebox.stages.model.clip import ClipModel
from phrasebox.stages.model.config import OWN_MODELS, TOWER_WORDS, ModelConfig, TowerKind
from phrasebox.stages.prepare import ImagesConfig

DEFAULTS: Final = {"contrast": 0.0, "affinity": "none"}
"""Maps are compared as the methods give them, unless a contender's own settings change this."""

REFERENCE: Final = "grad_eclip"  # differences are computed against it, where it takes part

TIMED_PHRASES: Final = 8
TIMED_IMAGES: Final = 2  # images of a timed batch; 1 if each takes many forward passes

TIMES: Final = 3
LONG_S: Final = 4.0  # a batch that takes longer is timed once instead of `TIMES`

RIVALS: Final = 100  # the most phrases among which a phrase's probability is computed

Maps = Mapping[str, Sequence[HeatMap]]
"""Label -> the maps of one image, in the order of its questions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """An explainer with its settings for the model's tower; `label` is the text that the user typed."""

    label: str
    config: ExplainerConfig

    @property
    def repeats_trunk(self) -> bool:
        """Whether it takes many forward passes for each image, or as much time."""
        return EXPLAINERS[self.config.kind].cost == "perturbation"

    @property
    def takes_one_image(self) -> bool:
        """Whether its images do not share a forward pass."""
        return self.repeats_trunk or self.config.image_size == "keep"


def contenders_of(selection: str | None, tower: TowerKind, model: str) -> list[Contender]:
    """Return the explainers of a comparison on an image tower of a model.

    `selection`: kinds with commas between them, each with its settings behind colons; or `all`;
    or None for all explainers that need no perturbed images, and that no patent claims. Raise
    ConfigError if a kind or a setting is unknown, makes no sense on this tower, or is named twice.
    """
    kinds = kinds_for(tower)
    if selection is None or selection.strip() == "all":
        if selection is None:
            kinds = [
                kind
                for kind in kinds
                if EXPLAINERS[kind].cost != "perturbation" and not EXPLAINERS[kind].claim
            ]
        return [_make_contender(kind, tower, model) for kind in kinds]
    names = [name.strip() for name in re.split(r",(?![^\[]*\])", selection)]
    if not all(names):
        raise ConfigError(f"expected names with commas between them, got {selection!r}", key="explainers")
    for name, count in Counter(names).items():
        if count > 1:
            raise ConfigError(f"{name} is named twice", key="explainers")
    return [_make_contender(name, tower, model) for name in names]


def undefined_explainers(tower: TowerKind, model: str) -> list[str]:
    """Return sentences about the explainers that are not defined on an image tower of a model, and why."""
    kinds_by_need: dict[str, list[str]] = {}
    for kind, explainer in EXPLAINERS.load_all()[0].items():
        if tower not in explainer.towers:
            kinds_by_need.setdefault(explainer.needs, []).append(kind)
    return [
        f"not on {model}, which has {TOWER_WORDS[tower]}: {', '.join(kinds)} (needed: {need})"
        for need, kinds in kinds_by_need.items()
    ]


def _make_contender(label: str, tower: TowerKind, model: str) -> Contender:
    kind, *settings = label.split(":")
    kinds = ", ".join(kinds_for(tower))
    if kind not in EXPLAINERS:
        raise ConfigError(f"no explainer {kind!r}; on {model} these are defined: {kinds}", key="explainers")
    if tower not in EXPLAINERS[kind].towers:
        raise ConfigError(
            f"{kind} needs {EXPLAINERS[kind].needs}, which {model} does not have; on it these are defined: {kinds}",
            key="explainers",
        )
    try:
        values = {"explain": {"kind": kind}, "model": {"name": model} if model in OWN_MODELS else {}}
        run = override(values, [f"explain.{setting}" for setting in settings], ExplainCommandConfig)
        explainer: ExplainerConfig = run.explain
        keys = {setting.partition("=")[0] for setting in settings}
        config = explainer.model_copy(
            update={key: value for key, value in DEFAULTS.items() if key not in keys}
        )
        return Contender(label=label, config=fit_to_tower(EXPLAINERS[kind], config, tower, model))
    except ConfigError as error:
        raise ConfigError(f"{label}: {error}", key="explainers") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """The time of a batch.

    Attributes:
        encode_image: Relative to the image tower alone.
        seconds: Of an image.
    """

    encode_image: float
    seconds: float


class Contest:
    """All contenders on one loaded model, with its settings and those of images; the console shows the progress."""

    def __init__(
        self,
        model: ClipModel,
        settings: ModelConfig,
        images: ImagesConfig,
        contenders: Sequence[Contender],
        console: Console,
    ) -> None:
        self.model = model
        self.settings = settings
        self.images = images
        self.contenders = tuple(contenders)
        self.console = console

    def compute_maps(self, images: Sequence[ComparedImage]) -> tuple[list[Maps], list[Floats]]:
        """Compute the maps of each image, and the cosines of its questions by the image tower alone."""
        stages = self.stages(self.model)
        step = max(stage.forward_batch_size() for stage in stages.values())
        maps: list[Maps] = []
        cosines: list[Floats] = []
        count = 0
        with progress_bar(self.console, "heat maps", len(images) * len(self.contenders)) as advance:
            for start in range(0, len(images), step):
                batch = images[start : start + step]
                answers = {}
                for contender in self.contenders:
                    answers[contender.label] = stages[contender.label].process(
                        self.records(contender, batch)
                    )
                    count += len(batch)
                    advance(count)
                for place, image_cosines in enumerate(self._cosines(batch)):
                    maps.append({label: records[place].heat_maps for label, records in answers.items()})
                    cosines.append(image_cosines)
        return maps, cosines

    def costs(self, images: Sequence[ComparedImage], rivals: Sequence[str]) -> dict[str, Cost]:
        """Return label -> the cost of a batch with eight phrases an image."""
        costs: dict[str, Cost] = {}
        with progress_bar(self.console, "cost", len(self.contenders)) as advance:
            for count, contender in enumerate(self.contenders, start=1):
                batch = list(images[: 1 if contender.takes_one_image else TIMED_IMAGES])
                texts_by_image = [[question.phrase.text for question in image.questions] for image in batch]
                phrases = [
                    list(dict.fromkeys([*texts, *rivals]))[:TIMED_PHRASES] for texts in texts_by_image
                ]
                costs[contender.label] = self._cost(contender, batch, phrases)
                advance(count)
        return costs

    def _cost(
        self, contender: Contender, images: Sequence[ComparedImage], phrases: Sequence[Sequence[str]]
    ) -> Cost:
        """Measure the maps of a batch and its embeddings alone, both as medians.

        The two take turns, so that other load of the machine falls on both. Texts are embedded
        before the clock starts.
        """
        explainer = EXPLAINERS[contender.config.kind](contender.config, self.model)
        explainer.texts([text for texts in phrases for text in texts])
        rgb = np.stack([pixels_of(record) for record in self.records(contender, images)])
        pixels = torch.from_numpy(rgb)
        tower = explainer.model.tower

        def seconds(work: Callable[[], object]) -> float:
            start = time.perf_counter()
            work()
            if tower.device.type == "cuda":
                torch.cuda.synchronize(tower.device)
            return time.perf_counter() - start

        encode = torch.no_grad()(lambda: tower.encode(pixels))
        explain = partial(explainer.explain, rgb, phrases)
        explain_s = [seconds(explain)]
        encode_s = [seconds(encode)]
        if explain_s[0] <= LONG_S:
            for _ in range(TIMES - 1):
                explain_s.append(seconds(explain))
                encode_s.append(seconds(encode))
        return Cost(
            encode_image=median(explain_s) / median(encode_s), seconds=median(explain_s) / len(images)
        )

    def stages(self, model: ClipModel) -> dict[str, ExplainStage]:
        """Return label -> the stage of a contender on a model, set up."""
        stages: dict[str, ExplainStage] = {}
        for contender in self.contenders:
            settings = self.settings
            if (
                contender.config.image_size == "keep"
            ):  # images that keep their aspect ratio do not fit into a batch
                settings = settings.model_copy(update={"batch_size": 1})
            stage = ExplainStage(ExplainStageConfig(model=settings, explainer=contender.config), model)
            stage.setup()
            stages[contender.label] = stage
        return stages

    def records(self, contender: Contender, images: Sequence[ComparedImage]) -> list[Record]:
        """Return the records of the images at the size that a contender takes."""
        default_canvas = ExplainerConfig(kind="").canvas(self.model.input)
        canvas = contender.config.canvas(self.model.input)
        if canvas["mode"] == default_canvas["mode"] and canvas["size_px"] == default_canvas["size_px"]:
            return [image.record for image in images]
        stage = prepare_stage(self.images, self.model.input, contender.config)
        stage.setup()
        return stage.process([image.source for image in images])

    def _cosines(self, images: Sequence[ComparedImage]) -> Iterator[Floats]:
        embeddings = image_embeddings(self.model, np.stack([pixels_of(image.record) for image in images]))
        for image, embedding in zip(images, embeddings.astype(np.float64), strict=True):
            texts = [question.phrase.text for question in image.questions]
            yield text_embeddings(self.model, texts).astype(np.float64) @ embedding


def draw_baselines(images: Sequence[ComparedImage], model: ClipModel) -> list[Maps]:
    """Draw maps that do not depend on the phrase, in the contenders' shape.

    `centre` is a spot that falls off from the middle of the image, and `random` smooth noise
    for each phrase. `raw_attention` is where the model looks whatever the phrase is, if an
    attention makes its embedding.
    """
    maps: list[Maps] = []
    for image in images:
        rows, columns = model.tower.placement.grid_hw(*pixels_of(image.record).shape[:2])
        y, x = np.meshgrid(np.linspace(-1, 1, rows), np.linspace(-1, 1, columns), indexing="ij")
        spot = np.exp(-(y**2 + x**2)).astype(np.float32)
        centre = []
        noise = []
        for question in image.questions:
            text = question.phrase.text
            random = np.random.default_rng(stable_id(f"{SEED}:{image.number}:{text}"))
            coarse = HeatMap(text=text, values=random.random((4, 4), np.float32), similarity=0.0)
            centre.append(replace(coarse, values=spot))
            noise.append(replace(coarse, values=draw_map(coarse, (rows, columns))))
        baselines = {"centre": centre, "random": noise}
        attention = last_attention(model, torch.from_numpy(pixels_of(image.record))[None])
        if attention is not None:
            values = attention.reshape(rows, columns).float().cpu().numpy()
            shift = model.tower.placement.shift_cells
            baselines["raw_attention"] = [
                replace(heat_map, values=values, shift_cells=shift) for heat_map in centre
            ]
        maps.append(baselines)
    return maps


def rivals_of(images: Sequence[ComparedImage]) -> list[str]:
    """Return at most `RIVALS` different texts of the questions of all images."""
    texts = dict.fromkeys(question.phrase.text for image in images for question in image.questions)
    return sorted(texts, key=lambda text: stable_id(f"{SEED}:{text}"))[:RIVALS]
