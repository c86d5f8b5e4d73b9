"""A configuration as text: YAML with every key once, and with a description above each key."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

import yaml
from pydantic import BaseModel

from stages.contract.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """SafeLoader that rejects duplicate keys; PyYAML would silently keep the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """See yaml."""
        keys: set[Any] = set()
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            key = self.construct_object(key_node, deep=True) if isinstance(key_node, yaml.ScalarNode) else None
            if key is not None and key in keys:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            keys.add(key)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return mapping


def parse_yaml(text: str) -> Any:
    """Return the value of YAML. Raise yaml.YAMLError, or ValueError for an invalid date."""
    return yaml.load(text, Loader=_Loader)  # noqa: S506  a SafeLoader


def dump_yaml(values: Mapping[str, Any]) -> str:
    """Return plain values as YAML."""
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def document_yaml(config: BaseModel, indent: str = "") -> list[str]:
    """Return lines of YAML with a comment above each key of a configuration."""
    lines: list[str] = []
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        comment = textwrap.wrap(field.description or "", 118 - len(indent))
        if isinstance(value, BaseModel):
            title = [f"{indent}{line}" for line in (*(f"# {line}" for line in comment), f"{name}:")]
            lines += [*([] if indent else [""]), *title, *document_yaml(value, indent + "  ")]
        else:
            plain = config.model_dump(mode="json", include={name})
            lines += [f"{indent}# {line}" for line in comment]
            lines += [f"{indent}{line}" for line in dump_yaml(plain).splitlines()]
    return lines


def assign(values: dict[str, Any], key: str, value: Any) -> None:
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


def as_yaml(values: Mapping[str, Any]) -> str:
    """Return the text of a configuration file with some keys (dotted) and their values."""
    nested: dict[str, Any] = {}
    for key, value in values.items():
        assign(nested, key, value)
    return dump_yaml(nested)
