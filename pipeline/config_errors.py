"""Pydantic's errors in the words of the person who wrote the configuration."""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Final, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)

from stages.contract.errors import ConfigError
from stages.contract.kinds import KindTable

_EXAMPLE: Final = "Say what to read, for example: captions.jsonl --images photos/"


class Checked(BaseModel, extra="forbid", frozen=True):
    """Settings that raise ConfigError for what pydantic rejects, also from Python. Unknown ones are rejected."""

    @model_validator(mode="wrap")
    @classmethod
    def _translate_errors(cls, values: Any, validate: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return validate(values)
        except ValidationError as error:
            raise in_words(
                error, cls, values if isinstance(values, dict) else {}
            ) from None  # it says the same


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


def _problem(
    problem: Mapping[str, Any], model: type[BaseModel], values: Mapping[str, Any]
) -> tuple[str, str]:
    """Return the name of a key and the message about it.

    Args:
        problem: An entry of `ValidationError.errors()`.
        model: The model that was validated.
        values: The values that it rejected.
    """
    fields, path = _fields_at(model, list(problem["loc"]), values)
    name = ".".join(path) or "config"
    kind = problem["type"]
    if kind == "extra_forbidden":
        close = difflib.get_close_matches(path[-1], fields, n=1, cutoff=0.5)
        hint = (
            f"did you mean {'.'.join([*path[:-1], close[0]])}?"
            if close
            else f"keys here: {', '.join(sorted(fields))}"
        )
        return name, f"no such key; {hint}"
    if kind in ("missing", "union_tag_not_found"):
        return name, f"missing. {_EXAMPLE}" if name in ("input", "input.path") else "missing."
    if kind == "union_tag_invalid":
        tag = problem["ctx"]["tag"]
        kinds = problem["ctx"]["expected_tags"].split(", ")
        names = [kind.partition(" ")[0] for kind in kinds]  # without the package of other people's
        close = difflib.get_close_matches(tag, names, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        return f"{name}.kind", f"no kind {tag!r}; {hint}kinds: {', '.join(kinds)}"
    message = problem["msg"].removeprefix("Value error, ")
    if kind in ("model_type", "model_attributes_type"):
        message = "expected keys below it"
    elif kind == "path_type":
        message = "expected a path"
    message = re.sub("^Input should be ", "expected ", message).partition(", unable to ")[0]
    value = problem["input"]
    if (
        isinstance(value, (str, int, float, bool, type(None)))
        and len(repr(value)) < 80
        and "got " not in message
    ):
        message += f", got {value!r}"
    return name, message


def _fields_at(
    model: type[BaseModel], location: list[Any], values: Mapping[str, Any]
) -> tuple[list[str], list[str]]:
    """Return the fields around a location, and the location without members of unions."""
    path: list[str] = []
    types_here: list[Any] = [model]
    fields: list[str] = list(model.model_fields)
    for step in location:
        models = [t for t in types_here if isinstance(t, type) and issubclass(t, BaseModel)]
        fields = sorted({name for t in models for name in t.model_fields}) or fields
        if not models and not isinstance(step, int):
            continue
        path.append(str(step))
        infos = [t.model_fields[step] for t in models if step in t.model_fields]
        types_here = [member for info in infos for member in _members(info.annotation)]
        for table in filter(None, (_table(info.metadata) for info in infos)):
            section = values.get(str(step))
            kind = section.get("kind", table.default) if isinstance(section, dict) else None
            if kind is None:  # an input may leave its kind out
                types_here = [reader.config_type for reader in table.load_all()[0].values()]
            elif kind in table:
                types_here = [table.config_type(kind)]
    return fields, path


def _table(metadata: Iterable[Any]) -> KindTable[Any] | None:
    validators = (
        getattr(item.func, "__self__", None) for item in metadata if isinstance(item, BeforeValidator)
    )
    return next((table for table in validators if isinstance(table, KindTable)), None)


def _members(annotation: Any) -> list[Any]:
    """Types inside a union, Optional or Annotated."""
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        return _members(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return [m for argument in typing.get_args(annotation) for m in _members(argument)]
    return [annotation]
