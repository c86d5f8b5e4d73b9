"""Pydantic's errors in the words of the person who wrote the configuration."""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Final

from pydantic import BaseModel, BeforeValidator, ValidationError

from stages.contract.errors import ConfigError, PhraseboxError
from stages.contract.kinds import KindTable
from stages.read import guess_kind

_SAY_WHAT: Final = "Say what to read, for example: phrasebox run captions.jsonl --images photos/"


def in_words(error: ValidationError, model: type[BaseModel], values: Mapping[str, Any]) -> ConfigError:
    """Return the error of a model that has rejected values, with one line per problem."""
    values = _with_kind_of_input(values)
    problems: dict[str, dict[str, None]] = {}
    for problem in error.errors(include_url=False):
        name, message = _problem(dict(problem), model, values)
        problems.setdefault(name, {})[message] = None
    # Several of one key: what each type in a union says.
    first, *more = [ConfigError("; or: ".join(messages), key=name) for name, messages in problems.items()]
    first.more = more
    return first


def _with_kind_of_input(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the values with the kind that the input's path has, whose keys alone are proposed."""
    section = values.get("input")
    if not isinstance(section, dict) or not isinstance(section.get("path"), str | list | tuple):
        return values
    try:
        return {**values, "input": {**guess_kind(section["path"]), **section}}
    except PhraseboxError:  # without such a file every kind is possible
        return values


def _problem(problem: Mapping[str, Any], model: type[BaseModel], values: Mapping[str, Any]) -> tuple[str, str]:
    """Return the name of a key and what is wrong with it.

    Args:
        problem: An entry of `ValidationError.errors()`.
        model: The model that was validated.
        values: The values that it rejected.
    """
    fields, shown = _fields_at(model, list(problem["loc"]), values)
    name = ".".join(shown) or "config"
    kind = problem["type"]
    if kind == "extra_forbidden":
        close = difflib.get_close_matches(shown[-1], fields, n=1, cutoff=0.5)
        hint = (
            f"did you mean {'.'.join([*shown[:-1], close[0]])}?" if close else f"keys here: {', '.join(sorted(fields))}"
        )
        return name, f"no such key; {hint}"
    if kind in ("missing", "union_tag_not_found"):
        return name, f"missing. {_SAY_WHAT}" if name in ("input", "input.path") else "missing."
    if kind == "union_tag_invalid":
        tag, allowed = problem["ctx"]["tag"], problem["ctx"]["expected_tags"].split(", ")
        close = difflib.get_close_matches(tag, allowed, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        return f"{name}.kind", f"no kind {tag!r}; {hint}kinds: {', '.join(allowed)}"
    message = problem["msg"].removeprefix("Value error, ")
    if kind in ("model_type", "model_attributes_type"):
        message = "expected keys below it"
    elif kind == "path_type":
        message = "expected a path"
    message = re.sub("^Input should be ", "expected ", message).partition(", unable to ")[0]
    value = problem["input"]
    if isinstance(value, (str, int, float, bool, type(None))) and len(repr(value)) < 80 and "got " not in message:
        message += f", got {value!r}"
    return name, message


def _fields_at(model: type[BaseModel], location: list[Any], values: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Names of the fields around a location, and the location without the members of unions that pydantic tried."""
    shown: list[str] = []
    types_here: list[Any] = [model]
    fields: list[str] = list(model.model_fields)
    for step in location:
        models = [t for t in types_here if isinstance(t, type) and issubclass(t, BaseModel)]
        fields = sorted({name for t in models for name in t.model_fields}) or fields
        if not models and not isinstance(step, int):
            continue
        shown.append(str(step))
        found = [t.model_fields[step] for t in models if step in t.model_fields]
        types_here = [member for field in found for member in _members(field.annotation)]
        for table in filter(None, (_table(field.metadata) for field in found)):
            section = values.get(str(step))
            kind = section.get("kind", table.default) if isinstance(section, dict) else None
            kinds = [each for each in table if kind in (None, each)]  # that of an input may be left out
            types_here = [table.config_type(each) for each in kinds] or types_here
    return fields, shown


def _table(metadata: Iterable[Any]) -> KindTable[Any] | None:
    validators = (getattr(each.func, "__self__", None) for each in metadata if isinstance(each, BeforeValidator))
    return next((found for found in validators if isinstance(found, KindTable)), None)


def _members(annotation: Any) -> list[Any]:
    """Types inside a union, Optional or Annotated."""
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        return _members(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return [m for argument in typing.get_args(annotation) for m in _members(argument)]
    return [annotation]
