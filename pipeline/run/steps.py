"""RunConfig -> ordered stages: the one place that says the order of the pipeline.

read -> phrases -> prepare -> explain -> regions -> write

The engines read and write. Stages before the model are `Steps.before`, and those behind it
`Steps.last_stages`: another step between explain and regions stands there.

With `regions.refine: sam` the regions stage holds a second model, and has workers of its own.

With another `source.kind` than heat_maps, its stage takes the place of explain and makes the
regions, and the regions stage only links them, and with a calibration scores them. With
`source.add_missing`, heat maps stay, and a stage behind regions lays its boxes over them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Self, TypeAlias, TypeVar

from phrasebox.pipeline.config.run_config import EngineConfig, RunConfig
from phrasebox.pipeline.run.calibration import (
    find_calibration,
    find_generic_calibration,
    find_source_calibration,
    presence_in,
)
from phrasebox.pipeline.run.engines import RAY_NAMESPACE
from phrasebox.stages.contract.errors import ConfigError
from phrasebox.stages.contract.kinds import with_absolute_files
from phrasebox.stages.contract.stage import Stage
from phrasebox.stages.contract.values import Json
from phrasebox.stages.explain import EXPLAINERS, fit_to_tower
from phrasebox.stages.explain.config import ExplainerConfig
from phrasebox.stages.explain.stage import ExplainStage, ExplainStageConfig
from phrasebox.stages.model.config import (
    AUTO,
    ModelConfig,
    PrecisionChoice,
    TowerKind,
    check_model_files,
)
from phrasebox.stages.phrases.precomputed import PrecomputedPhrases
from phrasebox.stages.phrases.stage import PhrasesStage
from phrasebox.stages.prepare import PrepareConfig, PrepareStage
from phrasebox.stages.read import READERS, ReaderConfig, input_fingerprint
from phrasebox.stages.regions.config import RegionsConfig
from phrasebox.stages.regions.stage import RegionsStage
from phrasebox.stages.scores.score import Calibration
from phrasebox.stages.sources.source import HEAT_MAPS, SOURCES, OtherModel, RegionSource, RegionSourceConfig
from phrasebox.stages.sources.source_stage import SourceRegionsStage

if TYPE_CHECKING:
    from phrasebox.stages.model.clip import ClipModel
    from phrasebox.stages.model.config import ModelDescription
    from phrasebox.stages.sources.box_overlay import BoxOverlay

AnyRegionsStage: TypeAlias = RegionsStage | SourceRegionsStage
"""The stage of regions, behind heat maps or behind another source."""

ModelStageT = TypeVar("ModelStageT", bound=Stage)
RegionsStageT = TypeVar("RegionsStageT", RegionsStage, SourceRegionsStage)


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps(Generic[ModelStageT, RegionsStageT]):
    """The stages of a run.

    Attributes:
        before: Stages on CPUs before the model.
        model_stage: The stage of the model's workers.
        regions_stage: The stage behind it; its records become rows.
        description: The model; None if it was given in memory, or if there is none.
        segmenter: What identifies the segmenter of the outlines; None without one.
        other_model: The model of a source, if that is not CLIP.
        overlay: The stage that lays boxes of the input over the regions of heat maps; None without one.
        generic: The calibration of other models that the first images bring to this one; None without one.
    """

    before: tuple[PhrasesStage, PrepareStage]
    model_stage: ModelStageT
    regions_stage: RegionsStageT
    description: ModelDescription | None
    segmenter: str | None = None
    overlay: BoxOverlay | None = None
    other_model: OtherModel | None = None
    generic: Calibration | None = None

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the model; "" if it was given in memory, or if there is none."""
        model = self.description or self.other_model
        return "" if model is None else model.fingerprint

    @property
    def calibration(self) -> Calibration | None:
        """The calibration of scores or of presence alone that is in use."""
        return self.regions_stage.calibration

    @property
    def calibration_digest(self) -> str | None:
        """What identifies that calibration; None without one."""
        return None if self.calibration is None else self.calibration.digest

    @property
    def is_calibrated(self) -> bool:
        """Whether scores are probabilities."""
        return self.calibration is not None and self.calibration.of_regions

    @property
    def explainer(self: HeatMapSteps) -> ExplainerConfig:
        """The explainer's settings as they are for the model's tower."""
        return self.model_stage.config.explainer

    @property
    def prepare_stage(self) -> PrepareStage:
        """The stage that decodes and resizes images."""
        return self.before[1]

    @property
    def first_stages(self) -> tuple[Stage, ...]:
        """The stages up to the model, with it."""
        return (*self.before, self.model_stage)

    @property
    def last_stages(self) -> tuple[Stage, ...]:
        """The stages behind the model, in order. They get the records of the first images, too."""
        return (self.regions_stage,) if self.overlay is None else (self.regions_stage, self.overlay)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """All stages in order."""
        return (*self.first_stages, *self.last_stages)

    @property
    def has_open_share(self) -> bool:
        """Whether the run must estimate the share of absent phrases. Without presence nothing needs it."""
        has_presence = self.calibration is not None and self.calibration.presence is not None
        return has_presence and self.regions_stage.config.absent_share == AUTO

    def expecting(self, absent_share: float | None) -> Self:
        """Return the same steps, which expect a share of absent phrases; None: the share stays open."""
        if absent_share is None:
            return self
        config = self.regions_stage.config.model_copy(update={"absent_share": absent_share})
        return replace(self, regions_stage=self.regions_stage.judging_by(config, self.calibration))

    def with_exponent(self: HeatMapSteps, exponent: float | None) -> HeatMapSteps:
        """Return the same steps, which raise the heat of maps to a power before they cut them; None: it stays open."""
        if exponent is None:
            return self
        config = self.regions_stage.config.model_copy(update={"exponent": exponent})
        return replace(self, regions_stage=self.regions_stage.judging_by(config, self.calibration))

    def in_precision(self, precision: str) -> Self:
        """Return the same steps, whose model computes in a precision."""
        return replace(self, model_stage=self.model_stage.computing(precision=precision))

    def with_calibration(self: HeatMapSteps, calibration: Calibration | None) -> HeatMapSteps:
        """Return the same steps of heat maps with other scores. Raise as `presence_in`.

        Without a calibration they rank, and are no probabilities; then nothing is known of
        presence. One with a cut cuts the maps.
        """
        regions = self.regions_stage
        config = regions.config
        if calibration is not None and calibration.cut is not None:
            config = config.model_copy(update={"rule": "fitted"})
        return replace(
            self,
            model_stage=self.model_stage.with_presence(presence_in(calibration)),
            regions_stage=regions.judging_by(config, calibration),
        )

    def with_source(self: SourceSteps, config: RegionSourceConfig) -> SourceSteps:
        """Return the same steps, whose source has settings with a pool; neither checks nor scores depend on one."""
        source = self.model_stage
        return replace(self, model_stage=type(source)(config, source.model, source.description))


HeatMapSteps: TypeAlias = Steps[ExplainStage, RegionsStage]
"""Those of a run whose regions are cut from heat maps."""

SourceSteps: TypeAlias = Steps[RegionSource[Any], SourceRegionsStage]
"""Those of a run whose regions come from another source."""

AnySteps: TypeAlias = Steps[Any, Any]
"""Those of any run, for code that does not depend on where regions come from."""


def packages_of(config: RunConfig) -> tuple[str, ...]:
    """Return the names of our package, and of those of other people that have kinds of a run."""
    kinds = ((READERS, config.input.kind), (EXPLAINERS, config.explain.kind), (SOURCES, config.source.kind))
    tops = [table.module(kind).partition(".")[0] for table, kind in kinds]
    return tuple(dict.fromkeys(["phrasebox", *tops]))


def check_files(config: RunConfig) -> str:
    """Look whether the input and the model that a configuration names are there; return `input_fingerprint`.

    No library of the model is imported, which would take seconds. Raise as `build_steps`, and
    InputError.
    """
    fingerprint = input_fingerprint(config.input)
    if config.source.makes_heat_maps or SOURCES[config.source.kind].needs_model:
        check_model_files(config.model)
    return fingerprint


def build_steps(config: RunConfig, loaded: ClipModel | None = None) -> HeatMapSteps:
    """Check everything that can be checked before any work, and put the stages of heat maps in order.

    loaded: A model in memory, which replaces the one in `config.model`.

    Raises:
        ConfigError: A setting cannot be used, or regions come from another source.
        WeightsError: The model's files are missing or damaged.
    """
    if not config.source.makes_heat_maps:
        raise ConfigError(
            f"{config.source.kind} makes regions without heat maps, which are needed here; set {HEAT_MAPS}",
            key="source.kind",
        )
    model = config.model
    description = None
    generic = find_generic_calibration(config.regions)
    if loaded is None:
        # torch and open_clip take seconds to import: only a run needs them.
        from phrasebox.stages.model.describe import describe  # noqa: PLC0415

        description = describe(model)
        explainer = _fit_explainer(config.explain, description.tower, description.name)
        canvas = explainer.canvas(description.input)
        model = model.model_copy(update={"precision": precision_if_known(config.engine, model)})
    else:
        if config.regions.calibration not in ("auto", "none") and generic is None:
            raise ConfigError(
                "a calibration holds for known weights, and those of a model in memory are not known: name the "
                "model instead",
                key="regions.calibration",
            )
        explainer = _fit_explainer(config.explain, loaded.tower.kind, loaded.name)
        canvas = explainer.canvas(loaded.input)
    segmenter = _identify_segmenter(config.regions)
    calibration = find_calibration(description, explainer, config.regions, segmenter)
    stage_config = ExplainStageConfig(
        model=model,
        description=description,
        explainer=explainer,
        keep_pixels=config.regions.needs_pixels,
        caption_score=config.output.caption_score,
    )
    return Steps(
        before=_before(config, canvas, description),
        model_stage=ExplainStage(stage_config, loaded, presence_in(calibration)),
        regions_stage=RegionsStage(config.regions, calibration, device=config.model.device),
        description=description,
        segmenter=segmenter,
        overlay=overlay_of(config),
        generic=generic,
    )


def overlay_of(config: RunConfig) -> BoxOverlay | None:
    """Return the stage that lays boxes of the input over the regions of heat maps; None without such boxes."""
    source = config.source
    if source.kind == HEAT_MAPS or not source.makes_heat_maps:
        return None
    from phrasebox.stages.sources.box_overlay import BoxOverlay  # noqa: PLC0415  only a run with boxes needs them
    from phrasebox.stages.sources.boxes import BoxSourceConfig  # noqa: PLC0415

    if not isinstance(source, BoxSourceConfig):
        return None
    return BoxOverlay(source, links_phrases=config.regions.group != "none")


def build_source_steps(config: RunConfig) -> SourceSteps:
    """Return the stages of a run whose regions come from another source than heat maps.

    Raises:
        ConfigError: A setting concerns heat maps, or cannot be used.
        InputError: A file that the source needs cannot be read.
        WeightsError: The model's files are missing or damaged.
    """
    kind = config.source.kind
    source: RegionSource[Any] = SOURCES[kind](config.source, config.model)
    names_calibration = config.regions.calibration not in ("auto", "none")
    for key, is_set in {
        "regions.calibration": config.regions.calibration == "generic"
        or (names_calibration and not source.looks_for_phrases),
        "output.heat_maps": config.output.heat_maps and "heat_maps" in config.output.model_fields_set,
        "regions.refine": config.regions.refine == "sam",
    }.items():
        if is_set:
            raise ConfigError(
                f"it concerns heat maps, and source.kind={kind} makes none: leave it out", key=key
            )
    source.check()
    other_model = source.identify()
    description = None
    if source.needs_model:
        from phrasebox.stages.model.describe import describe  # noqa: PLC0415  as in build_steps

        description = describe(config.model)
    steps = Steps(
        before=_before(config, source.canvas(), description),
        model_stage=source.with_description(description),
        regions_stage=SourceRegionsStage(config.regions),
        description=description,
        other_model=other_model,
    )
    calibration = find_source_calibration(config.source, config.regions, steps.fingerprint)
    return replace(steps, regions_stage=steps.regions_stage.judging_by(config.regions, calibration))


def build_detector_steps(config: RunConfig) -> SourceSteps:
    """Return the stages of a source that can be asked for any phrase.

    Raise ConfigError for another source, and as `build_source_steps`.
    """
    kind = config.source.kind
    if not SOURCES[kind].looks_for_phrases:
        raise ConfigError(
            f"{kind} looks for no phrases, so that nothing can be fitted to its scores; those of {HEAT_MAPS}, "
            "proposals, grid, crops and detector can be calibrated",
            key="source.kind",
        )
    return build_source_steps(config)


def _before(
    config: RunConfig, canvas: Json, description: ModelDescription | None
) -> tuple[PhrasesStage, PrepareStage]:
    keep = config.output.embed_images or config.regions.refine == "sam"
    prepare = PrepareConfig(images=config.images, **canvas, keep_image_bytes=keep)
    reads_english_only = description is not None and description.reads_english_only
    return make_phrases_stage(config, reads_english_only=reads_english_only), PrepareStage(prepare)


def make_phrases_stage(config: RunConfig, *, reads_english_only: bool = False) -> PhrasesStage:
    """Return the stage that parses captions. Raise InputError if the phrases of `input.phrases` cannot be read.

    reads_english_only: Whether the model does, so that rows note captions in other languages.
    """
    source: ReaderConfig | None = config.input  # `explain` has none
    precomputed = (
        None
        if source is None or source.phrases is None
        else PrecomputedPhrases.read(Path(source.phrases), config.phrases.fixed_language)
    )
    return PhrasesStage(
        config.phrases,
        precomputed,
        limits_later=config.source.makes_heat_maps,
        reads_english_only=reads_english_only,
    )


def _fit_explainer(config: ExplainerConfig, tower: TowerKind, model: str) -> ExplainerConfig:
    return fit_to_tower(EXPLAINERS[config.kind], with_absolute_files(config), tower, model)


def _identify_segmenter(regions: RegionsConfig) -> str | None:
    """What identifies the segmenter, None without one. Raise ConfigError or WeightsError."""
    if regions.refine != "sam":
        return None
    from phrasebox.stages.model.segmenter import usable_segmenter  # noqa: PLC0415  it imports torch

    return usable_segmenter(regions.sam)


def precision_if_known(engine: EngineConfig, model: ModelConfig) -> PrecisionChoice:
    """Return the precision of a run; for `auto`, that of the workers where this process knows their device.

    On a cluster, and for a GPU that is left to other processes, it stays `auto`: the first
    worker decides. Raise as `pick_device`.
    """
    if model.precision != AUTO:
        return model.precision
    from phrasebox.stages.model.device import choose_precision, pick_device  # noqa: PLC0415  it imports torch

    device = pick_device(model.device)
    is_elsewhere = engine.address is not None or _is_in_foreign_ray()
    is_left_to_workers = engine.kind == "ray" and (is_elsewhere or device.type == "cuda")
    return AUTO if is_left_to_workers else choose_precision(AUTO, device)


def _is_in_foreign_ray() -> bool:
    """Whether this process has joined a Ray that no run has started, and whose nodes are not known."""
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized() and ray.get_runtime_context().namespace != RAY_NAMESPACE


def fetch_weights(description: ModelDescription | None, say: Callable[[str], None]) -> None:
    """Download the weights of a tag, if they are not in this machine's cache, and say so.

    Raises:
        WeightsError: They cannot be found or loaded.
    """
    if description is not None:
        # open_clip takes seconds to import, which `build_steps` has spent already.
        from phrasebox.stages.model.load import fetch  # noqa: PLC0415

        fetch(description, say)
