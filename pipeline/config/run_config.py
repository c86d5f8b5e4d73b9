"""The configuration of a run: defaults in code, then YAML, then options, then `--set`. Unknown keys are rejected."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    BaseModel,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from phrasebox.pipeline.config.errors import Checked, in_words
from phrasebox.pipeline.config.output import OutputConfig
from phrasebox.pipeline.config.paths import with_absolute_paths
from phrasebox.pipeline.config.text import assign, parse_yaml, to_documented_yaml, to_yaml
from phrasebox.stages.contract.errors import ConfigError
from phrasebox.stages.contract.values import Json
from phrasebox.stages.explain import EXPLAINERS, AnyExplainerConfig
from phrasebox.stages.model.catalog import CATALOG, sha256_of
from phrasebox.stages.model.config import ModelConfig
from phrasebox.stages.phrases.config import PhrasesConfig
from phrasebox.stages.prepare import ImagesConfig
from phrasebox.stages.read import READERS, InputConfig, guess_kind
from phrasebox.stages.regions.config import RegionsConfig
from phrasebox.stages.sources.source import HEAT_MAPS, SOURCES, AnySourceConfig

MOST_SHOWN: Final = 500  # characters of a value in a message


class EngineConfig(BaseModel, extra="forbid", frozen=True):
    """How a run is distributed. Every key but `kind` is about Ray."""

    kind: Literal["auto", "ray", "inline"] = Field(
        "auto",
        description="`ray` runs on Ray Data, on this machine or on a cluster; `inline` in one plain process, with the "
        "same rows; `auto` is inline for at most 100 samples, or 1,000 on one or two cores, unless another key is set "
        "here, and wherever Ray (the extra `ray`) is not installed.",
    )
    address: str | None = Field(
        None,
        description='Address of a running cluster ("auto", "ray://host:10001"). Null starts Ray on this machine.',
    )
    explain_workers: (
        Annotated[int, Field(ge=1)] | Annotated[str, Field(pattern=r"^[1-9]\d*-[1-9]\d*$")] | None
    ) = Field(
        None,
        description='Model workers, or their fewest and most as in "1-8": Ray then starts more while images wait for '
        "them, and requests nodes from an autoscaling cluster. Default: one per GPU; without GPUs one per core of this "
        "machine, at most 8, half of which start at once.",
    )
    gpus_per_worker: float | None = Field(
        None,
        ge=0,
        description="GPU share of a model worker. Default: 1 if the cluster has GPUs and `model.device` is not cpu. "
        "With regions.refine=sam the segmenter has as many workers with the same share, and the default is 0.5.",
    )
    cpu_workers: int | None = Field(
        None,
        ge=1,
        description="The most workers that parse captions and decode images. Default: the CPUs left over; beside "
        "GPUs at most three quarters of them, and 32 for each GPU.",
    )
    object_store_bytes: int | None = Field(
        None,
        ge=80_000_000,
        description="Memory for data between stages of the Ray that is started here. Default: Ray's, 30 % of memory.",
    )
    model_resources: dict[str, Annotated[float, Field(gt=0)]] = Field(
        {},
        description="Ray's custom resources that a model worker holds, as in `{big_gpu: 1}`: it then runs only on "
        "nodes that were started with `ray start --resources`.",
    )
    ship_code: bool = Field(
        False,
        description="Send the driver's phrasebox, and packages with kinds of the run, to the workers "
        "(Ray's `py_modules`), for trials on a cluster whose nodes have the libraries. Otherwise every node needs the "
        "same wheels, which is checked.",
    )

    @model_validator(mode="after")
    def _reject_keys_of_ray(self) -> Self:
        of_ray = self.model_dump(exclude_defaults=True, exclude={"kind"})
        if self.kind == "inline" and of_ray:
            raise ValueError(f"{next(iter(of_ray))} is about Ray, and engine.kind=inline starts none")
        return self

    @property
    def explain_worker_bounds(self) -> tuple[int | None, int | None]:
        """The fewest and the most `explain_workers`; None where they are not set."""
        if self.explain_workers is None:
            return None, None
        bounds = [int(number) for number in str(self.explain_workers).split("-")]
        return min(bounds), max(bounds)


KEYS_THAT_CHANGE_NO_ROW: Final[Mapping[str, Sequence[str]]] = {
    "input": ("limit", "piece_size"),
    "model": ("device", "threads", "batch_size"),
}
"""Section -> its keys that change a row by rounding at most, so that a run may resume with
other values, for example in less memory: a part of `RunConfig.rows_depend_on`. Samples, their
ids and the parts of an input do not depend on the cuts between its pieces. Ids identify rows: a
resumed run with another `piece_size` reads the whole input again, and makes the missing rows."""


class RunConfig(Checked):
    """Everything a run depends on."""

    input: InputConfig = Field(description="The captioned images.")
    model: ModelConfig = Field(ModelConfig(), description="The CLIP model.")
    phrases: PhrasesConfig = Field(PhrasesConfig(), description="Captions to noun phrases.")
    images: ImagesConfig = Field(ImagesConfig(), description="Image files to pixels.")
    explain: AnyExplainerConfig = Field(
        default_factory=EXPLAINERS.config, description="Phrases to heat maps."
    )
    regions: RegionsConfig = Field(RegionsConfig(), description="Heat maps to regions.")
    source: AnySourceConfig = Field(default_factory=SOURCES.config, description="The origin of regions.")
    engine: EngineConfig = Field(EngineConfig(), description="The distribution of a run.")
    output: OutputConfig = Field(OutputConfig(), description="The dataset.")

    @model_validator(mode="before")
    @classmethod
    def _add_model_settings(cls, values: Any) -> Any:
        """Take the settings of a bundled model where the values have none, see `WeightsEntry.settings`."""
        model = values.get("model") if isinstance(values, dict) else None
        name = model.get("name") if isinstance(model, dict) else getattr(model, "name", None)
        if not isinstance(name, str) or name not in CATALOG:
            return values
        sections = CATALOG[name].settings
        return {**values, **{key: _merged(section, values.get(key)) for key, section in sections.items()}}

    @field_validator("input", mode="before")
    @classmethod
    def _add_input_kind(cls, values: Any) -> Any:
        """Without `kind`, the kind follows from the path. Raise InputError for a path of no kind that is read."""
        if (
            not isinstance(values, dict)
            or "kind" in values
            or not isinstance(values.get("path"), str | list | tuple)
        ):
            return values
        return {**guess_kind(values["path"]), **values}

    def rows_depend_on(self) -> Json:
        """Return the settings that decide what the rows are, for comparing runs; plain values, with absolute paths.

        All others may change between a killed run and its resumption: the section `engine`,
        `output` but for three keys, the keys of `KEYS_THAT_CHANGE_NO_ROW`, and what
        `RegionsConfig.row_settings` leaves out of `regions.sam`.
        """
        sections = {"input", "model", "phrases", "images", "explain", "regions"}
        if self.source.kind != HEAT_MAPS:
            sections.add("source")
        plain: Json = self.model_dump(mode="json", include=sections)
        for section, keys in KEYS_THAT_CHANGE_NO_ROW.items():
            for key in keys:
                plain[section].pop(key, None)  # not every kind of input is cut
        plain["regions"] = self.regions.row_settings()
        plain["output"] = self.output.model_dump(include={"embed_images", "heat_maps", "caption_score"})
        if (phrases := plain["input"].pop("phrases")) is not None:
            plain["input"]["phrases_sha256"] = sha256_of(Path(phrases))  # people correct the file
        return with_absolute_paths(plain)

    def with_pool(self, concepts: Mapping[str, str] | None) -> RunConfig:
        """Return the configuration with the pool of concepts of its source, where it lacks one; None: there is none."""
        if concepts is None or self.source.pool_to_parse is None:
            return self
        return self.model_copy(update={"source": self.source.with_pool(concepts)})

    def in_precision(self, precision: str) -> RunConfig:
        """Return the configuration with the precision that the workers have decided."""
        return self.model_copy(update={"model": self.model.model_copy(update={"precision": precision})})

    def to_yaml(self) -> str:
        """Return the resolved configuration as YAML."""
        return to_yaml(self)

    def to_documented_yaml(self) -> str:
        """Return the same; each key has its meaning and values above it."""
        return to_documented_yaml(self, {"input": READERS, "explain": EXPLAINERS, "source": SOURCES})


def _merged(defaults: Mapping[str, Any], section: Any) -> Any:
    """Return a section over the defaults of a model; the section alone for another explainer or a variant."""
    values = {} if section is None else section
    if isinstance(section, BaseModel):
        values = {**section.model_dump(exclude_unset=True), **section.model_dump(include={"kind"})}
    default = EXPLAINERS.default
    if not isinstance(values, dict) or "variant" in values or values.get("kind", default) != default:
        return section
    return {**defaults, **values}


class ExplainCommandConfig(RunConfig):
    """The configuration of `phrasebox explain`, which uses the sections model, images and explain."""

    input: InputConfig | None = None  # type: ignore[assignment]  # only one image is read


class FinishedConfig(RunConfig):
    """A stored configuration, for code that computes no heat maps; explainer settings stay plain dicts."""

    explain: Json  # type: ignore[assignment]  # the module of their class imports torch


def load_config(
    path: Path | None,
    settings: Iterable[str],
    model: type[BaseModel] = RunConfig,
    *,
    options: Json | None = None,
) -> Any:
    """Read YAML (if any), assign options, apply `KEY=VALUE` settings, check; later values override.

    Args:
        path: A YAML file.
        settings: Dotted keys with YAML values, e.g. `explain.blocks=1`, `output.path=out/`.
        model: The model that checks the values; the whole run by default.
        options: Dotted keys with plain values; None assigns nothing. An input or a model that
            is named here replaces the file's with all its keys.

    Raises:
        ConfigError: With one line per problem.
    """
    values = {} if path is None else _from_file(path)
    changes = {key: value for key, value in (options or {}).items() if value is not None}
    for replaced_key in (name for key in changes for name in REPLACES.get(key, ())):
        section, _, name = replaced_key.partition(".")
        if isinstance(values.get(section), dict):
            values[section].pop(name, None)
    if "input.path" in changes:
        values.pop("input", None)
    for key, value in changes.items():
        assign(values, key, value)
    return override(values, settings, model)


REPLACES: Final = {
    "model.name": ("model.name", "model.pretrained", "model.checkpoint", "model.weights", "model.config"),
    "model.weights": ("model.pretrained", "model.checkpoint"),
}
"""Key of an option -> the keys of a file that it replaces."""


def _from_file(path: Path) -> Json:
    hint = "" if path.suffix in (".yaml", ".yml") else f"; captions are read by phrasebox run {path}"
    try:
        values = parse_yaml(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except ConfigError as error:
        raise ConfigError(f"{path} {error}{hint}") from error
    if values is not None and not isinstance(values, dict):
        raise ConfigError(f"{path} holds a {type(values).__name__}, not a mapping of keys{hint}")
    return values or {}


def override(values: Json, settings: Iterable[str], model: type[BaseModel] = RunConfig) -> Any:
    """Apply `KEY=VALUE` settings to plain values in place, and check these. Raise ConfigError."""
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise ConfigError(
                "expected KEY=VALUE, for example --set output.path=out/", key=f"--set {setting}"
            )
        try:
            value = parse_yaml(text)
        except ConfigError as error:
            raise ConfigError(f"the value {error}", key=f"--set {setting}") from error
        assign(values, key, value)
    return check(values, model)


def stored_config(stored: Json, settings: Sequence[str] = ()) -> RunConfig:
    """Return the configuration that a dataset was made with, from its `dataset.json`, with settings applied.

    A setting that names another explainer or variant replaces the stored section, which holds
    every value. Raise ConfigError.
    """
    values = copy.deepcopy(dict(stored))
    if any(setting.startswith(("explain.kind=", "explain.variant=")) for setting in settings):
        values["explain"] = {}
    config: RunConfig = override(values, settings, RunConfig)
    return config


def stored_finished_config(stored: Json, settings: Sequence[str] = ()) -> RunConfig:
    """Return the same as a `FinishedConfig`, unless a setting changes the explainer. Raise ConfigError."""
    if sets_any(settings, ("explain",)):
        return stored_config(stored, settings)
    config: RunConfig = override(copy.deepcopy(dict(stored)), settings, FinishedConfig)
    return config


def sets_any(settings: Iterable[str], sections: Iterable[str]) -> bool:
    """Return whether some of the `KEY=VALUE` settings set a key in some of the sections, or a whole one."""
    return not {setting.partition("=")[0].partition(".")[0] for setting in settings}.isdisjoint(sections)


def check(values: Json, model: type[BaseModel]) -> Any:
    """Validate values. Raise ConfigError with one line per problem."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise in_words(error, model, values) from error


def differences(old: Any, new: Any, key: str = "") -> list[str]:
    """Return lines "key: old there, new now" for the leaves of nested settings that differ.

    >>> differences({"regions": {"rule": "mean"}}, {"regions": {"rule": "fixed"}})
    ["regions.rule: 'mean' there, 'fixed' now"]
    """
    if isinstance(old, dict) and isinstance(new, dict):
        names = dict.fromkeys([*old, *new])
        below = (
            differences(old.get(name), new.get(name), f"{key}.{name}" if key else name) for name in names
        )
        return [line for lines in below for line in lines]
    return [] if old == new else [f"{key.removeprefix('config.')}: {_shown(old)} there, {_shown(new)} now"]


def _shown(value: Any) -> str:
    """Return a value for people, a long one such as a pool of concepts cut off."""
    text = repr(value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}…"
