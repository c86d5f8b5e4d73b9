"""RunConfig -> reader and ordered stages: the one place that says the order of the pipeline.

read -> phrases -> prepare -> explain -> regions -> write

With `regions.refine: sam` the regions stage holds a second model, and has workers of its own.

With another `source.kind` than heat_maps, its stage takes the place of explain and makes the regions, and the regions
stage only links them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from pipeline.config import RunConfig, differences
from stages.contract.errors import ConfigError
from stages.contract.stage import Stage
from stages.explain import EXPLAINERS, fit_to_tower
from stages.explain.config import ExplainerConfig
from stages.explain.presence import Presence
from stages.explain.stage import ExplainStage, ExplainStageConfig
from stages.phrases.precomputed import PrecomputedPhrases
from stages.phrases.stage import PhrasesStage
from stages.prepare import PrepareConfig, PrepareStage
from stages.read import READERS, Reader, SourceConfig, input_fingerprint, make_reader
from stages.regions.score import Calibration, read_calibration
from stages.regions.source import HEAT_MAPS, SOURCES, RegionSource
from stages.regions.stage import LinkStage, RegionsStage
from stages.shared.model.config import AUTO, PrecisionChoice, check_model_files

if TYPE_CHECKING:
    from stages.shared.model.clip import ClipModel
    from stages.shared.model.description import ModelDescription


def _without_heat_maps(source: Stage) -> ConfigError:
    kind = source.config.kind if isinstance(source, RegionSource) else ""
    return ConfigError(f"source.kind: {kind} makes regions without heat maps, which are needed here; set {HEAT_MAPS}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """The stages of a run.

    Attributes:
        before: Stages on CPUs before the model.
        model: The stage that holds the model, or the source of regions that takes its place.
        after: Stages on CPUs after it; their records become rows.
        explain: The explainer's settings as they are for the model's tower.
        described: What is known of the model; None if it was given in memory, or if there is none.
        calibration: SHA-256 of the calibration that the settings name; None without one.
        segmenter: What identifies the segmenter of the outlines; None without one.
    """

    before: tuple[PhrasesStage, PrepareStage]
    model: ExplainStage | RegionSource[Any]
    after: tuple[RegionsStage | LinkStage]
    explain: ExplainerConfig
    described: ModelDescription | None
    calibration: str | None
    segmenter: str | None = None

    @property
    def fingerprint(self) -> str:
        """The model's fingerprint; "" if it was given in memory, or if there is none."""
        return "" if self.described is None else self.described.fingerprint

    @property
    def recognised(self) -> dict[str, str]:
        """Return `layout`, the checkpoint's project, and `described_by`, the files about it, where they are known."""
        if self.described is None:
            return {}
        found = {"layout": self.described.layout, "described_by": self.described.described_by}
        return {key: value for key, value in found.items() if value}

    @property
    def stages(self) -> tuple[Stage, ...]:
        """All stages in order."""
        return (*self.before, self.model, *self.after)

    @property
    def explains(self) -> ExplainStage:
        """The stage that computes heat maps. Raise ConfigError if the regions come from another source."""
        if isinstance(self.model, RegionSource):
            raise _without_heat_maps(self.model)
        return self.model

    @property
    def cuts(self) -> RegionsStage:
        """The stage that cuts regions from heat maps. Raise ConfigError if they come from another source."""
        (regions,) = self.after
        if isinstance(regions, LinkStage):
            raise _without_heat_maps(self.model)
        return regions

    @property
    def calibrated(self) -> bool:
        """Whether scores are probabilities."""
        (regions,) = self.after
        known = regions.calibration if isinstance(regions, RegionsStage) else None
        return known is not None and known.of_regions

    @property
    def loads_model(self) -> bool:
        """Whether a model is loaded."""
        return not isinstance(self.model, RegionSource) or self.model.needs_model

    def settings(self, config: RunConfig) -> RunConfig:
        """Return the configuration that the stages were made from, with the settings that model and source decide."""
        decided: dict[str, Any] = {"explain": self.explain}
        if isinstance(self.model, RegionSource):
            decided["output"] = config.output.model_copy(update={"heat_maps": False})
        return config.model_copy(update=decided)

    def in_precision(self, precision: str) -> Self:
        """Return the same graph, whose model computes in a precision."""
        return replace(self, model=self.model.computing(precision=precision))

    def with_calibration(self, calibration: Calibration | None) -> Self:
        """Return the same graph with other scores. Raise as `presence_in`.

        Without a calibration they rank, and are no probabilities; then nothing is known of presence.
        """
        regions = self.cuts
        scoring = RegionsStage(
            regions.config, calibration, keep_heat_maps=regions.keep_heat_maps, device=regions.device
        )
        return replace(
            self,
            model=self.explains.with_presence(None if calibration is None else presence_in(calibration)),
            after=(scoring,),
            calibration=None if calibration is None else calibration.digest,
        )

    def as_cut(self, config: RunConfig) -> RunConfig:
        """Return the configuration with the rule that cuts the maps, see `RegionsConfig.without_cut`."""
        (last,) = self.after
        return config.model_copy(update={"regions": last.config}) if isinstance(last, RegionsStage) else config


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph(Steps):
    """The graph that an engine runs: a reader and the stages."""

    reader: Reader


def packages_of(config: RunConfig) -> tuple[str, ...]:
    """Return the names of our packages, and of those of other people that have the kinds of a run."""
    kinds = ((READERS, config.input.kind), (EXPLAINERS, config.explain.kind), (SOURCES, config.source.kind))
    tops = [table.module(kind).partition(".")[0] for table, kind in kinds]
    return tuple(dict.fromkeys(["pipeline", "stages", *tops]))


def check_files(config: RunConfig) -> str:
    """Look whether the input and the model that a configuration names are there; return `input_fingerprint`.

    No library of the model is imported, which would take seconds. Raise as `build_graph`.
    """
    fingerprint = input_fingerprint(config.input)
    if config.source.kind == HEAT_MAPS:  # some of the others need no model
        check_model_files(config.model)
    return fingerprint


def build_graph(config: RunConfig, reader: Reader | None = None) -> Graph:
    """Check everything that can be checked before any work, and put the stages in order.

    reader: That of the input, if there is one already.

    Raises:
        ConfigError: A setting cannot be used.
        InputError: The input cannot be read.
        WeightsError: The model's files are missing or damaged.
    """
    steps = build_steps(config)
    reader = reader or make_reader(config.input)
    return Graph(reader=reader, **{each.name: getattr(steps, each.name) for each in fields(steps)})


def build_steps(config: RunConfig, loaded: ClipModel | None = None) -> Steps:
    """Return the stages without a reader. `loaded` is a model in memory, which replaces the one in `config.model`.

    Raises:
        ConfigError: A setting cannot be used.
        WeightsError: The model's files are missing or damaged.
    """
    source = None if config.source.kind == HEAT_MAPS else _source(config, loaded)
    described = None
    if loaded is None and (source is None or source.needs_model):
        # torch and open_clip take seconds to import: only a run needs them.
        from stages.shared.model.describe import describe  # noqa: PLC0415

        described = describe(config.model)
    if source is not None:
        return Steps(
            before=_before(config, source.canvas()),
            model=source.with_description(described),
            after=(LinkStage(config.regions),),
            explain=config.explain,
            described=described,
            calibration=None,
        )
    if described is not None:
        spec, tower, name = described.input, described.tower, described.name
    else:
        assert loaded is not None  # noqa: S101
        spec, tower, name = loaded.input, loaded.tower.kind, loaded.name
        if config.regions.calibration not in ("auto", "none"):
            raise ConfigError(
                "regions.calibration: a calibration holds for known weights, and those of a model in memory are not "
                "known: name the model instead"
            )
    fitting = fit_to_tower(EXPLAINERS[config.explain.kind], config.explain, tower, name)
    config = config.model_copy(update={"explain": fitting})
    explain = ExplainStageConfig(
        model=config.model,
        description=described,
        explainer=config.explain,
        keep_pixels=config.regions.needs_pixels,
    )
    calibration = calibration_for(config, described)
    presence = None if calibration is None else presence_in(calibration)
    return Steps(
        before=_before(config, config.explain.canvas(spec)),
        model=ExplainStage(explain, loaded, presence),
        # Kept, because a row says why a map is empty.
        after=(RegionsStage(config.regions, calibration, keep_heat_maps=True, device=config.model.device),),
        explain=config.explain,
        described=described,
        calibration=None if calibration is None else calibration.digest,
        segmenter=_segmenter(config),
    )


def _before(config: RunConfig, canvas: dict[str, Any]) -> tuple[PhrasesStage, PrepareStage]:
    keep = config.output.embed_images or config.regions.refine == "sam"
    prepare = PrepareConfig(images=config.images, **canvas, keep_image_bytes=keep)
    source: SourceConfig | None = config.input  # `explain` has none
    precomputed = None if source is None or source.phrases is None else PrecomputedPhrases.read(Path(source.phrases))
    return PhrasesStage(config.phrases, precomputed), PrepareStage(prepare)


def _source(config: RunConfig, loaded: ClipModel | None) -> RegionSource[Any]:
    """The source of regions that takes the model's place, checked. Raise ConfigError for settings of heat maps."""
    kind = config.source.kind
    for key, is_set in {
        "regions.calibration": config.regions.calibration not in ("auto", "none"),
        "output.heat_maps": config.output.heat_maps and "heat_maps" in config.output.model_fields_set,
        "regions.refine": config.regions.refine == "sam",
    }.items():
        if is_set:
            raise ConfigError(f"it concerns heat maps, and source.kind={kind} makes none: leave it out", key=key)
    source: RegionSource[Any] = SOURCES[kind](config.source, config.model, loaded)
    source.check()
    return source


def fetch_weights(description: ModelDescription | None, say: Callable[[str], None]) -> None:
    """Download the weights of a tag, if they are not in this machine's cache, and say so.

    Raises:
        WeightsError: They cannot be found or loaded.
    """
    if description is not None and description.pretrained is not None:
        # open_clip takes seconds to import, which `build_steps` has spent already.
        from stages.shared.model.load import fetch  # noqa: PLC0415

        fetch(description, say)


def precision_here(config: RunConfig) -> PrecisionChoice:
    """Return the precision of a configuration; for `auto`, that of the workers where this process knows their device.

    On a cluster, and for a GPU that is left to other processes, it stays `auto` for heat maps: the first worker
    decides. Other sources of regions compute in fp32 there. Raise as `pick_device`.
    """
    if config.model.precision != AUTO:
        return config.model.precision
    from stages.shared.model.device import choose_precision, pick_device  # noqa: PLC0415  it imports torch

    engine, device = config.engine, pick_device(config.model.device)
    is_elsewhere = engine.address is not None or ("ray" in sys.modules and sys.modules["ray"].is_initialized())
    if engine.kind == "ray" and (is_elsewhere or device.type == "cuda"):
        return AUTO if config.source.kind == HEAT_MAPS else "fp32"
    return choose_precision(AUTO, device)


def _segmenter(config: RunConfig) -> str | None:
    """What identifies the segmenter, None without one. Raise ConfigError or WeightsError."""
    if config.regions.refine != "sam":
        return None
    from stages.shared.model.segmenter import usable_segmenter  # noqa: PLC0415  it imports torch

    return usable_segmenter(config.regions.sam)


_AFTER_THE_FIT: Final = {"calibration", "absent_share", "min_presence"}
"""Settings of regions that a calibration does not depend on."""


def calibration_basis(config: RunConfig, model_fingerprint: str) -> dict[str, Any]:
    """Return the settings and the model that a calibration is made with, and holds for; plain values."""
    unused = _AFTER_THE_FIT | ({"threshold"} if config.regions.rule != "fixed" else set())
    basis = presence_basis(config.explain, model_fingerprint)
    basis["regions"] = {key: value for key, value in config.regions.decides().items() if key not in unused}
    return basis | ({"segmenter": _segmenter(config)} if config.regions.refine == "sam" else {})


def presence_basis(explain: ExplainerConfig, model_fingerprint: str) -> dict[str, Any]:
    """Return the same for a calibration that knows presence alone, which does not depend on how maps are cut."""
    plain: dict[str, Any] = json.loads(json.dumps({"model": model_fingerprint, "explain": explain.decides_maps()}))
    return plain


def presence_in(calibration: Calibration) -> Presence | None:
    """Return the part of a calibration on presence, if it has one."""
    return calibration.presence


def calibration_for(config: RunConfig, described: ModelDescription | None) -> Calibration | None:
    """Return the calibration that `regions.calibration` names; also one for the rule that is used where none has a cut.

    Of the model's own, one that holds in the precision goes before others. Raise ConfigError for one made with other
    settings, and as `precision_here`.
    """
    wanted = config.regions.calibration
    if wanted == "none" or described is None:
        return None
    uncut = config.model_copy(update={"regions": config.regions.without_cut()})
    bases = [calibration_basis(each, described.fingerprint) for each in (config, uncut)]
    if wanted == "auto":
        precision = precision_here(config)
        known = [read_calibration(path) for path in described.calibrations]
        known.sort(key=lambda calibration: precision not in calibration.precisions)
        return next((calibration for basis in bases for calibration in known if calibration.made_with == basis), None)
    calibration = read_calibration(Path(wanted))
    if not calibration.of_regions:
        bases = [presence_basis(config.explain, described.fingerprint)]
    differing = min((differences(calibration.made_with, basis) for basis in bases), key=len)
    if differing:
        listed = "\n".join(f"  {line}" for line in differing)
        raise ConfigError(f"regions.calibration: {wanted} was made with other settings:\n{listed}")
    return calibration
