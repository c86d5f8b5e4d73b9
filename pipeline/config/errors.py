"""Pydantic's errors in the words of the person who wrote the configuration."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, Self

from pydantic import BaseModel, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic.functional_validators import ModelWrapValidatorHandler

from phrasebox.pipeline.config.paths import types_in
from phrasebox.stages.contract.errors import ConfigError
from phrasebox.stages.contract.kinds import KindTable

_EXAMPLE: Final = "Say what to read, for example: captions.jsonl --images photos/"


class Checked(BaseModel, extra="forbid", frozen=True):
    """Settings that raise ConfigError for what pydantic rejects, also from Python. Unknown ones are rejected."""

    @model_validator(mode="wrap")
    @classmethod
    def _translate_errors(cls, values: Any, validate: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return validate(values)
        except ValidationError as error:
            sections = values if isinstance(values, dict) else {}
            raise in_words(error, cls, sections) from None  # it says the same


def in_words(error: ValidationError, model: type[BaseModel], values: Mapping[str, Any]) -> ConfigError:
    """Return the error of a model that has rejected values, with one line per problem."""
    problems: dict[str, dict[str, None]] = {}
    for problem in error.errors(include_url=False):
        name, message = _problem(dict(problem), model, values)
        problems.setdefault(name, {})[message] = None
    # A key has several messages where each type of a union has one.
    first, *more = [ConfigError("; or: ".join(messages), key=name) for name, messages in problems.items()]
    first.more = more
    return first


_EXPECTED: Final = {
    "model_type": "expected keys below it",
    "model_attributes_type": "expected keys below it",
    "path_type": "expected a path",
}
"""Type of a problem -> the message about it, where pydantic's names Python's types."""


def _problem(
    problem: Mapping[str, Any], model: type[BaseModel], values: Mapping[str, Any]
) -> tuple[str, str]:
    """Return the name of a key and the message about it.

    Args:
        problem: An entry of `ValidationError.errors()`.
        model: The model that was validated.
        values: The values that it rejected.
    """
    fields, path = _fields_at(model, problem["loc"], values)
    name = ".".join(path) or "config"
    kind = problem["type"]
    if kind == "extra_forbidden":
        close = difflib.get_close_matches(path[-1], fields, n=1, cutoff=0.5)
        suggestion = ".".join([*path[:-1], *close])
        hint = f"did you mean {suggestion}?" if close else f"keys here: {', '.join(fields)}"
        return name, f"no such key; {hint}"
    if kind in ("missing", "union_tag_not_found"):
        return name, f"missing. {_EXAMPLE}" if name in ("input", "input.path") else "missing."
    if kind == "union_tag_invalid":
        tag = problem["ctx"]["tag"]
        kinds = problem["ctx"]["expected_tags"]
        # Without the package of other people's.
        names = [label.partition(" ")[0] for label in kinds.split(", ")]
        close = difflib.get_close_matches(tag, names, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        return f"{name}.kind", f"no kind {tag!r}; {hint}kinds: {kinds}"
    message = _EXPECTED.get(kind) or problem["msg"].removeprefix("Value error, ")
    message = re.sub("^Input should be ", "expected ", message).partition(", unable to ")[0]
    value = problem["input"]
    is_short = isinstance(value, (str, int, float, type(None))) and len(repr(value)) < 80
    return name, f"{message}, got {value!r}" if is_short and "got " not in message else message


def _fields_at(
    model: type[BaseModel], location: Iterable[Any], values: Mapping[str, Any]
) -> tuple[list[str], list[str]]:
    """Return the fields around a location, and the location without members of unions."""
    path: list[str] = []
    fields: set[str] = set()
    models = [model]
    for step in location:
        if models or isinstance(step, int):
            path.append(str(step))
            fields = {name for kind in models for name in kind.model_fields} or fields
            infos = [kind.model_fields[step] for kind in models if step in kind.model_fields]
            models = [kind for info in infos for kind in _models_of(info, values.get(path[-1]))]
    return sorted(fields), path


def _models_of(info: FieldInfo, section: Any) -> list[Any]:
    """Return the models that the values of a field may have; section: The values that it was given."""
    sources = [getattr(getattr(item, "func", None), "__self__", None) for item in info.metadata]
    for table in sources:
        if isinstance(table, KindTable):
            kind = section.get("kind", table.default) if isinstance(section, dict) else None
            if kind is None:  # an input may leave its kind out
                return [reader.config_type for reader in table.load_all()[0].values()]
            return [table.config_type(kind)] if kind in table else []
    return [
        kind for kind in types_in(info.annotation) if inspect.isclass(kind) and issubclass(kind, BaseModel)
    ]
