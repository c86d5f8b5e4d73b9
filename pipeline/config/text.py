"""A configuration as text: YAML with every key once, and with a description above each key."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from typing import Any, Final

import yaml
from pydantic import BaseModel

from phrasebox.stages.contract.errors import ConfigError, one_line
from phrasebox.stages.contract.values import Json


class _Loader(yaml.SafeLoader):
    """SafeLoader that rejects duplicate keys; PyYAML would silently keep the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """See yaml."""
        keys: set[Any] = set()
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            key = (
                self.construct_object(key_node, deep=True)
                if isinstance(key_node, yaml.ScalarNode)
                else None
            )
            if key is not None and key in keys:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            keys.add(key)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return mapping


def parse_yaml(text: str | bytes) -> Any:
    """Return the value of a YAML text. Raise ConfigError for other text: callers put its name before the message."""
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506  a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: the 30th of February
        raise ConfigError(f"is not YAML: {one_line(error)}") from error


def dump_yaml(values: Json) -> str:
    """Return plain values as YAML."""
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def to_yaml(config: BaseModel) -> str:
    """Return a configuration as YAML."""
    return dump_yaml(config.model_dump(mode="json"))


def to_documented_yaml(config: BaseModel, kinds: Mapping[str, Iterable[str]]) -> str:
    """Return a configuration as YAML; each key has its meaning and values above it.

    `kinds` has the names of all kinds of a section.
    """
    return "\n".join(_documented(config, kinds)) + "\n"


def _documented(config: BaseModel, kinds: Mapping[str, Iterable[str]], indent: str = "") -> list[str]:
    lines: list[str] = []
    values_of = allowed_values(type(config))
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            more = f"Kinds: {', '.join(kinds[name])}." if name in kinds else ""
            body = [f"{name}:", *_documented(value, {}, "  ")]
            lines += [] if indent else [""]
        else:
            more = f"[{values_of[name]}]"
            body = dump_yaml(config.model_dump(mode="json", include={name})).splitlines()
        comment = textwrap.wrap(f"{field.description or ''} {more}".strip(), 118 - len(indent))
        lines += [f"{indent}{line}" for line in (*(f"# {line}" for line in comment), *body)]
    return lines


def allowed_values(model: type[BaseModel]) -> dict[str, str]:
    """Return the values that each key of a section takes, in words.

    >>> from typing import Literal
    >>> from pydantic import Field
    >>> class Blur(BaseModel):
    ...     kind: Literal["none", "mean"] = "none"
    ...     share: float | None = Field(None, ge=0, lt=1)
    >>> allowed_values(Blur)
    {'kind': 'none | mean', 'share': 'number >= 0 < 1 | null'}
    """
    schema = model.model_json_schema()
    definitions = schema.get("$defs", {})
    return {name: _values(part, definitions) for name, part in schema["properties"].items()}


_BOUNDS: Final = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
_TYPES: Final = {"boolean": "true | false", "string": "text", "object": "keys", "null": "null"}


def _values(schema: Mapping[str, Any], definitions: Json) -> str:
    """Return the values of a JSON schema in words."""
    if "$ref" in schema:
        return _values(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return " | ".join(dict.fromkeys(_values(part, definitions) for part in schema[key]))
    if "const" in schema or "enum" in schema:
        return " | ".join(map(str, schema.get("enum", [schema.get("const")])))
    kind = schema.get("type", "any")
    if kind == "array":
        inner = _values(schema.get("items", {}), definitions)
        return f"list of {inner}"
    if kind == "string" and schema.get("format") == "path":
        return "path"
    bounds = [
        f"{sign} {schema[key]:,}".removesuffix(".0") for key, sign in _BOUNDS.items() if key in schema
    ]
    return " ".join([_TYPES.get(kind, kind), *bounds])


def assign(values: Json, key: str, value: Any) -> None:
    """Put a value under a dotted key, in nested dicts.

    Raise ConfigError if a part of the key holds a value.
    """
    *parents, name = key.split(".")
    place = values
    for parent in parents:
        section = place.setdefault(parent, {})
        if not isinstance(section, dict):
            raise ConfigError(f"{parent} holds the value {section!r}, not keys", key=key)
        place = section
    place[name] = value
