"""The configuration of a run: defaults in code, then YAML, then options, then `--set`. Unknown keys are refused."""

from __future__ import annotations

import copy
import difflib
import re
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from pipeline.output import OutputConfig
from pipeline.paths import with_absolute_paths
from stages.contract.errors import ConfigError, one_line
from stages.contract.kinds import KindTable
from stages.explain import EXPLAINERS, AnyExplainerConfig
from stages.explain.config import ExplainerConfig
from stages.phrases.stage import PhrasesConfig
from stages.prepare import ImagesConfig
from stages.read import InputConfig, guess_kind
from stages.regions.config import RegionsConfig
from stages.shared.model.config import ModelConfig
from stages.sources import HEAT_MAPS, SOURCES, AnySourceConfig


class InlineEngine(BaseModel):
    """One plain process, for debugging, tests and small inputs. Same rows as `ray`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["inline"] = "inline"


class RayEngine(BaseModel):
    """Ray Data, on this machine or on a cluster; with `auto` only where it is worth its start."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["auto", "ray"] = "auto"
    """`auto` runs in one process, as `inline` does, where that ends before Ray has started: see
    `pipeline.engines.chosen`."""

    address: str | None = None
    """Address of a running cluster ("auto", "ray://host:10001"); None starts Ray on this machine."""

    num_cpus: Annotated[int, Field(ge=2)] | None = None
    """Logical CPUs of the Ray that is started here. Default: the cores, but at least 6 more than
    model workers: every stage holds one."""

    explain_workers: Annotated[int, Field(ge=1)] | Annotated[str, Field(pattern=r"^[1-9]\d*-[1-9]\d*$")] | None = None
    """Model workers, or their fewest and most as in "1-8": Ray then starts more while images wait for them, and asks
    an autoscaling cluster for nodes. Default: one per GPU; without GPUs one per core of this machine, at most 8, of
    which half start at once."""

    gpus_per_worker: Annotated[float, Field(ge=0)] | None = None
    """GPU share of a model worker. Default: 1 if the cluster has GPUs and `model.device` is not cpu."""

    cpu_workers: Annotated[int, Field(ge=1)] | None = None
    """The most workers that parse captions and decode images. Default: the CPUs left over."""

    object_store_bytes: Annotated[int, Field(ge=80_000_000)] | None = None
    """Memory for data between stages of the Ray that is started here. Default: Ray's (30 % of memory)."""

    model_resources: dict[str, Annotated[float, Field(gt=0)]] = {}
    """Ray's custom resources that a model worker holds, as in `{big_gpu: 1}`: it then runs only on nodes that were
    started with `ray start --resources`."""

    ship_code: bool = False
    """Send the driver's `pipeline` and `stages` to the workers (Ray's `py_modules`), for trials on a cluster whose
    nodes have the libraries. Otherwise every node needs the same wheel, which is checked."""

    @field_validator("explain_workers")
    @classmethod
    def _in_order(cls, workers: int | str | None) -> int | str | None:
        if isinstance(workers, str):
            fewest, most = map(int, workers.split("-"))
            if fewest > most:
                raise ValueError(f"expected the fewest first, {most}-{fewest}")
        return workers

    @property
    def fewest_explain_workers(self) -> int | None:
        """The lower end of `explain_workers`."""
        return None if self.explain_workers is None else int(str(self.explain_workers).split("-")[0])

    @property
    def most_explain_workers(self) -> int | None:
        """The upper end of `explain_workers`."""
        return None if self.explain_workers is None else int(str(self.explain_workers).split("-")[-1])


EngineConfig = Annotated[RayEngine | InlineEngine, Field(discriminator="kind")]


class RunConfig(BaseModel):
    """Everything a run depends on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input: InputConfig
    model: ModelConfig = ModelConfig()
    phrases: PhrasesConfig = PhrasesConfig()
    images: ImagesConfig = ImagesConfig()
    explain: AnyExplainerConfig = Field(default_factory=EXPLAINERS.config)
    regions: RegionsConfig = RegionsConfig()
    source: AnySourceConfig = Field(default_factory=SOURCES.config)
    engine: EngineConfig = RayEngine()
    output: OutputConfig = OutputConfig()

    @field_validator("input", mode="before")
    @classmethod
    def _kind_of_input(cls, values: Any) -> Any:
        """Without `kind`, the kind follows from the path. Raises InputError for a path of no kind that is read."""
        if not isinstance(values, dict) or "kind" in values or not isinstance(values.get("path"), str | list | tuple):
            return values
        return {**guess_kind(values["path"]), **values}

    def rows_depend_on(self) -> dict[str, Any]:
        """The settings that decide what the rows are, for comparing runs; plain values, with absolute paths."""
        kept = {"input", "model", "phrases", "images", "explain", "regions"}
        if self.source.kind != HEAT_MAPS:
            # Left out where it is the default: runs that were begun before there were others can be continued.
            kept.add("source")
        plain: dict[str, Any] = self.model_dump(mode="json", include=kept)
        for key in ("device", "threads"):
            plain["model"].pop(key)
        plain["images"].pop("fetch_threads")
        plain["input"].pop("limit")
        plain["output"] = self.output.columns
        return with_absolute_paths(plain)

    def to_yaml(self) -> str:
        """The resolved configuration as YAML."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


class ExplainConfig(RunConfig):
    """What `phrasebox explain` takes: a run's configuration, of which it needs model, images and explain."""

    input: InputConfig | None = None  # type: ignore[assignment]  # nothing is read but the one image


class FinishedConfig(RunConfig):
    """The configuration of a dataset, for who computes no heat maps: the explainer's settings are plain values."""

    explain: dict[str, Any]  # type: ignore[assignment]  # their class stands beside the explainer, which imports torch


def load_config(
    path: Path | None,
    settings: Iterable[str],
    model: type[BaseModel] = RunConfig,
    *,
    assigned: Mapping[str, Any] | None = None,
) -> Any:
    """Read YAML (if any), assign values, apply `KEY=VALUE` settings, check; what comes later wins.

    Args:
        path: A YAML file.
        settings: Dotted keys with YAML values, e.g. `explain.blocks=1`, `output.path=out/`.
        model: What to check against; the whole run by default.
        assigned: Dotted keys with plain values, of which None assigns nothing. An input or a model that is named here
            replaces the file's with all its keys.

    Raises:
        ConfigError: With one line per problem.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            loaded = _yaml(path.read_text(encoding="utf-8-sig"))
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}") from error
        except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: not UTF-8, the 30th of February
            raise ConfigError(f"{path} is not YAML: {one_line(error)}{_hint(path)}") from error
        if loaded is not None and not isinstance(loaded, dict):
            raise ConfigError(f"{path} holds a {type(loaded).__name__}, not a mapping of keys{_hint(path)}")
        values = loaded or {}
    given = {key: value for key, value in (assigned or {}).items() if value is not None}
    for replaced in (replaced for key in given for replaced in _REPLACES.get(key, ())):
        section, _, name = replaced.partition(".")
        if isinstance(values.get(section), dict):
            values[section].pop(name, None)
    if "input.path" in given:
        values.pop("input", None)
    for key, value in given.items():
        _assign(values, key, value)
    return override(values, settings, model)


_REPLACES: Final = {
    "model.name": ("model.name", "model.pretrained", "model.checkpoint", "model.weights", "model.config"),
    "model.weights": ("model.pretrained", "model.checkpoint"),
}
"""Assigned key -> the keys of a file that say the same in another way."""


def _hint(path: Path) -> str:
    """What to do with a file that does not look like a configuration."""
    return "" if path.suffix in (".yaml", ".yml") else f"; captions are read by phrasebox run {path}"


def override(values: dict[str, Any], settings: Iterable[str], model: type[BaseModel] = RunConfig) -> Any:
    """Apply `KEY=VALUE` settings to plain values, which they change, and check. Raises ConfigError."""
    for setting in settings:
        _apply(values, setting)
    engine = values.get("engine")
    if isinstance(engine, dict) and "engine" in model.model_fields:
        engine.setdefault("kind", "auto")
    return check(values, model)


def stored_config(stored: Mapping[str, Any], settings: Iterable[str] = (), *, explains: bool = True) -> RunConfig:
    """The configuration that a dataset was made with, from its `dataset.json`, with settings applied.

    Without `explains` the explainer's settings are left as they are stored, unless a setting changes them: see
    `FinishedConfig`.

    Datasets made before phrases were linked have no `regions.group`: theirs is "none".
    Datasets made before presets were resolved hold nulls in `explain` for what the variant decided; they are left out.
    A setting that names another explainer or variant replaces the stored section, which holds every value.

    Raises ConfigError.
    """
    values, settings = copy.deepcopy(dict(stored)), list(settings)
    regions = values.get("regions")
    if isinstance(regions, dict):
        regions.setdefault("group", "none")
    explain = values.get("explain")
    if isinstance(explain, dict) and explain.get("heads", "") is None:
        values["explain"] = {key: value for key, value in explain.items() if value is not None}
    elif isinstance(explain, dict) and not explains and not sets_any(settings, ("explain",)):
        finished: FinishedConfig = override(values, settings, FinishedConfig)
        return finished
    if any(setting.startswith(("explain.kind=", "explain.variant=")) for setting in settings):
        values["explain"] = {}
    config: RunConfig = override(values, settings)
    return config


def sets_any(settings: Iterable[str], sections: Iterable[str]) -> bool:
    """Whether some of the `KEY=VALUE` settings set a key in some of the sections, or a whole one."""
    return not {setting.partition("=")[0].partition(".")[0] for setting in settings}.isdisjoint(sections)


def check(values: Mapping[str, Any], model: type[BaseModel]) -> Any:
    """Validate values. Raises ConfigError with one line per problem."""
    # The settings of an explainer import torch. Who mistypes a key of another section need not wait for that.
    waits = "explain" in model.model_fields and "explain" not in values
    try:
        config = model.model_validate({**values, "explain": ExplainerConfig(kind="")} if waits else values)
        return config.model_copy(update={"explain": EXPLAINERS.config()}) if waits else config
    except ValidationError as error:
        problems: dict[str, dict[str, None]] = {}
        for problem in error.errors(include_url=False):
            name, message = in_words(dict(problem), model, values)
            problems.setdefault(name, {})[message] = None
        # Several of one key: what each type in a union says.
        lines = [f"{name}: {'; or: '.join(messages)}" for name, messages in problems.items()]
        raise ConfigError("\n".join(lines)) from error


def _apply(values: dict[str, Any], setting: str) -> None:
    key, equals, text = setting.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {setting}: expected KEY=VALUE, for example --set output.path=out/")
    try:
        value = _yaml(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"--set {setting}: the value is not YAML: {one_line(error)}") from error
    _assign(values, key, value)


def _assign(values: dict[str, Any], key: str, value: Any) -> None:
    """Put a value under a dotted key, in nested dicts. Raises ConfigError if a part of the key holds a value."""
    *sections, last = key.split(".")
    place = values
    for name in sections:
        inner = place.setdefault(name, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{key}: {name} holds the value {inner!r}, not keys")
        place = inner
    place[last] = value


def as_yaml(values: Mapping[str, Any]) -> str:
    """The text of a configuration file with some keys (dotted) and their values."""
    nested: dict[str, Any] = {}
    for key, value in values.items():
        _assign(nested, key, value)
    text: str = yaml.safe_dump(nested)
    return text


def differences(found: Any, wanted: Any, key: str = "") -> list[str]:
    """Lines "key: found there, wanted now" for the leaves of nested settings that differ."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        names = dict.fromkeys([*found, *wanted])
        below = (differences(found.get(name), wanted.get(name), f"{key}.{name}" if key else name) for name in names)
        return [line for lines in below for line in lines]
    return [] if found == wanted else [f"{key.removeprefix('config.')}: {found!r} there, {wanted!r} now"]


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses duplicate keys; PyYAML would silently keep the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """See yaml."""
        seen: set[Any] = set()
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            key = self.construct_object(key_node, deep=True) if isinstance(key_node, yaml.ScalarNode) else None
            if key is not None and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return mapping


def _yaml(text: str) -> Any:
    """The value of YAML. Raises yaml.YAMLError, or ValueError for an invalid date."""
    return yaml.load(text, Loader=_Loader)  # noqa: S506  a SafeLoader


def in_words(problem: Mapping[str, Any], model: type[BaseModel], values: Mapping[str, Any]) -> tuple[str, str]:
    """One of pydantic's errors as the name of the key and what is wrong with it.

    Args:
        problem: An entry of `ValidationError.errors()`.
        model: The model that was validated.
        values: The values that it refused.
    """
    location = list(problem["loc"])
    fields, shown = _fields_at(model, location, values)
    name = ".".join(shown) or "config"
    kind = problem["type"]
    if kind == "extra_forbidden":
        close = difflib.get_close_matches(shown[-1], fields, n=1, cutoff=0.5)
        hint = (
            f"did you mean {'.'.join([*shown[:-1], close[0]])}?" if close else f"keys here: {', '.join(sorted(fields))}"
        )
        return name, f"no such key; {hint}"
    if kind == "missing":
        return name, f"missing. {_EXAMPLES.get(name, '')}".rstrip()
    if kind == "union_tag_not_found":
        tags = problem["ctx"]["discriminator"].strip("'")
        return f"{name}.{tags}", f"missing. {_EXAMPLES.get(name, '')}".rstrip()
    if kind == "union_tag_invalid":
        context = problem["ctx"]
        tag = context["tag"]
        allowed = [value.strip(" '") for value in context["expected_tags"].split(",")]
        close = difflib.get_close_matches(tag, allowed, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        return f"{name}.kind", f"no kind {tag!r}; {hint}kinds: {', '.join(allowed)}"
    message = problem["msg"].removeprefix("Value error, ")
    if kind in ("model_type", "model_attributes_type"):
        message = "expected keys below it"
    elif kind == "path_type":
        message = "expected a path"
    message = re.sub("^Input should be ", "expected ", message).partition(", unable to ")[0]
    if _short(problem["input"]) and "got " not in message:
        message += f", got {problem['input']!r}"
    return name, message


_EXAMPLES = {
    "input": "Say what to read, for example: phrasebox run captions.jsonl --images photos/",
    "input.path": "Say what to read, for example: phrasebox run captions.jsonl --images photos/",
}


def _short(value: Any) -> bool:
    return isinstance(value, (str, int, float, bool, type(None))) and len(repr(value)) < 80


def _fields_at(model: type[BaseModel], location: list[Any], values: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Names of the fields around a location, and the location without the tags of unions."""
    shown: list[str] = []
    types_here: list[Any] = [model]
    fields: list[str] = list(model.model_fields)
    for step in location:
        models = [t for t in types_here if isinstance(t, type) and issubclass(t, BaseModel)]
        tagged = [t for t in models if step in _tags(t)]
        if tagged and not any(step in t.model_fields for t in models):
            types_here = tagged
            continue
        fields = sorted({name for t in models for name in t.model_fields}) or fields
        if not models and not isinstance(step, int):
            continue  # pydantic names the member of a plain union that it tried
        shown.append(str(step))
        types_here = [m for t in models if step in t.model_fields for m in _members(t.model_fields[step].annotation)]
        for table in (_table(t.model_fields[step].metadata) for t in models if step in t.model_fields):
            given = values.get(str(step), {})
            kind = given.get("kind", table.default) if table and isinstance(given, dict) else None
            if table and kind is not None and kind in table:
                types_here = [table[kind].config_type]
    return fields, shown


def _table(metadata: Iterable[Any]) -> KindTable[Any] | None:
    """The table of kinds that validates a field, if one does."""
    validators = (getattr(each.func, "__self__", None) for each in metadata if isinstance(each, BeforeValidator))
    return next((found for found in validators if isinstance(found, KindTable)), None)


def _tags(model: type[BaseModel]) -> tuple[Any, ...]:
    kind = model.model_fields.get("kind")
    return () if kind is None else (*typing.get_args(kind.annotation), kind.default)


def _members(annotation: Any) -> list[Any]:
    """Types inside a union, Optional or Annotated."""
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        return _members(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return [m for argument in typing.get_args(annotation) for m in _members(argument)]
    return [annotation]
