"""The contract of settings: a dataset stores them, and the pages and errors are made of them."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel

from phrasebox.stages.contract.values import Json
from phrasebox.testing.requirement import require


def check_settings(config_type: type[BaseModel], values: Json | None = None) -> None:
    """Check the settings of a kind; `values` are those of the keys that have no default."""
    name = config_type.__name__
    config = config_type.model_validate(values or {})
    require(config_type.model_config.get("extra") == "forbid", f"{name} is closed: extra='forbid'")
    require(config_type.model_config.get("frozen"), f"{name} is frozen")
    if "kind" in config_type.model_fields:
        kind = config_type.model_fields["kind"]
        require(
            get_args(kind.annotation) == (kind.default,), f'{name} has a literal kind: Literal["x"] = "x"'
        )
    stored = config.model_dump(mode="json")
    for key, value in stored.items():
        may_be_none = config_type.model_fields[key].default is None
        require(value is not None or may_be_none, f"{name}.{key} is concrete: a dataset says what made it")
        require(_is_described(config_type, key), f"{name}.{key} has a description: Field(description=...)")
    require(config_type.model_validate(stored) == config, f"{name} is read back from JSON as it was stored")


def _is_described(config_type: type[Any], key: str) -> bool:
    """Whether a key is described where it is declared, or in a base class that declares it."""
    bases = [
        base for base in config_type.__mro__ if issubclass(base, BaseModel) and key in base.model_fields
    ]
    return any(base.model_fields[key].description for base in bases)
