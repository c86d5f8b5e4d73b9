"""Tables of kinds: explainers, sources, readers, exporters and recipes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel
from pydantic_core import PydanticCustomError

from phrasebox.stages.contract.plugins import PluginTable

KindT = TypeVar("KindT")


SettingsT = TypeVar("SettingsT", bound=BaseModel)


def with_absolute_files(settings: SettingsT) -> SettingsT:
    """Return settings whose paths are absolute, since workers have another current folder."""
    paths = {name: value.expanduser().absolute() for name, value in settings if isinstance(value, Path)}
    return settings.model_copy(update=paths)


class KindTable(PluginTable[type[KindT]]):
    """Kind -> class, which has a `config_type`: the pydantic model of its settings, with a literal `kind`.

    Args:
        default: Settings of the kind that is meant by settings which name none; its class is not imported for them.
            Without `order` it comes first.
    """

    def __init__(
        self, group: str, order: Sequence[str] = (), default: type[BaseModel] | None = None
    ) -> None:
        self._default_type = default
        self.default: str | None = None if default is None else default.model_fields["kind"].default
        first = () if self.default is None else (self.default,)
        super().__init__(group, order or first)

    def config(self, values: Any = None) -> Any:
        """Return the settings of the kind in plain values; of the default kind if they name none.

        Finished settings, and values that are not a mapping, stay as they are. Raise PydanticCustomError if the kind is
        missing or unknown, PluginError if it does not load, ValidationError if it rejects a value.
        """
        if values is None:
            values = {}
        if not isinstance(values, dict):
            return values
        kind = values.get("kind", self.default)
        if kind is None:
            raise PydanticCustomError(
                "union_tag_not_found", "missing {discriminator}", {"discriminator": "kind"}
            )
        if kind != self.default and kind not in self:
            context = {"tag": str(kind), "expected_tags": ", ".join(map(self.label, self))}
            raise PydanticCustomError("union_tag_invalid", "no kind {tag}; kinds: {expected_tags}", context)
        return self.config_type(kind).model_validate({**values, "kind": kind})

    def config_type(self, kind: str) -> Any:
        """Return the model of the settings of a kind. Raise PluginError if it does not load."""
        if kind == self.default:
            return self._default_type
        return getattr(self[kind], "config_type")  # noqa: B009  KindT is any class
