"""What is wrong with a configuration, in words: pydantic's errors with the key as the user writes it."""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel

from stages.explain import DEFAULT_KIND, EXPLAINERS, explainer_type
from stages.explain.config import ExplainerConfig


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
        tagged = [t for t in models if _tag(t) == step]
        if tagged and not any(step in t.model_fields for t in models):
            types_here = tagged
            continue
        fields = sorted({name for t in models for name in t.model_fields}) or fields
        if not models and not isinstance(step, int):
            continue  # pydantic names the member of a plain union that it tried
        shown.append(str(step))
        types_here = [m for t in models if step in t.model_fields for m in _members(t.model_fields[step].annotation)]
        if types_here == [ExplainerConfig]:
            kind = values["explain"].get("kind", DEFAULT_KIND)
            types_here = [explainer_type(kind).config_type] if kind in EXPLAINERS else types_here
    return fields, shown


def _tag(model: type[BaseModel]) -> Any:
    kind = model.model_fields.get("kind")
    return None if kind is None else kind.default


def _members(annotation: Any) -> list[Any]:
    """Types inside a union, Optional or Annotated."""
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        return _members(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return [m for argument in typing.get_args(annotation) for m in _members(argument)]
    return [annotation]
