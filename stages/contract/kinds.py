"""Tables of kinds: explainers, sources, readers, exporters and recipes. A new kind is one file and one line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pkgutil import resolve_name
from typing import Any, Generic, TypeVar

from pydantic_core import PydanticCustomError

KindT = TypeVar("KindT")


class KindTable(Mapping[str, type[KindT]], Generic[KindT]):
    """Kind -> class, in order. The module of a class is imported with its first use, since many import torch.

    Args:
        places: Kind -> "module:Class". The class has a `config_type`, the pydantic model of its settings.
        default: The kind of settings that name none.
        settings: Kind -> "module:Class" of a `config_type` that stands in a lighter module than its class.
    """

    def __init__(
        self, places: Mapping[str, str], *, default: str | None = None, settings: Mapping[str, str] | None = None
    ) -> None:
        self._places = places
        self._settings = settings or {}
        self.default = default

    def __getitem__(self, kind: str) -> type[KindT]:
        kind_type: type[KindT] = resolve_name(self._places[kind])
        return kind_type

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def config(self, values: Any = None) -> Any:
        """Return the settings of the kind in plain values; of the default kind if they name none.

        Finished settings, and values that are not a mapping, stay as they are. Raise PydanticCustomError if the kind is
        missing or unknown, ValidationError if it rejects a value.
        """
        if values is None:
            values = {}
        if not isinstance(values, dict):
            return values
        kind = values.get("kind", self.default)
        if kind is None:
            raise PydanticCustomError("union_tag_not_found", "missing {discriminator}", {"discriminator": "kind"})
        if kind not in self._places:
            context = {"tag": str(kind), "expected_tags": ", ".join(self)}
            raise PydanticCustomError("union_tag_invalid", "no kind {tag}; kinds: {expected_tags}", context)
        return self.config_type(kind).model_validate({**values, "kind": kind})

    def config_type(self, kind: str) -> Any:
        """Return the model of the settings of a kind."""
        if kind in self._settings:
            return resolve_name(self._settings[kind])
        return getattr(self[kind], "config_type")  # noqa: B009  KindT is any class
