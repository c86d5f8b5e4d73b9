"""Where regions come from, if not from heat maps: the others' ways of making the same rows, to compare them.

config.py    the `source` section of a run, without a model
base.py      what a source is: a stage that fills `Record.regions` itself
pools.py     lists of concepts that regions may be called by
looks.py     what CLIP sees in a box: its part of the image, or dense features
naming.py    boxes of any origin -> regions, called by the best phrase according to CLIP
grid.py, crops.py, proposals.py, boxes.py    one source each

To add a source, write one file with a `SourceConfig` and a `RegionSource`, and name it in `SOURCES`.
"""

from __future__ import annotations

from pkgutil import resolve_name
from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import BeforeValidator, SerializeAsAny
from pydantic_core import PydanticCustomError

from stages.sources.config import HEAT_MAPS, HeatMapSource, RegionSourceConfig

if TYPE_CHECKING:
    from stages.sources.base import RegionSource

__all__ = [
    "HEAT_MAPS", "SOURCES", "AnySourceConfig", "source_config", "source_config_type", "source_kinds", "source_type",
]  # fmt: skip

SOURCES: Final[dict[str, str]] = {
    "proposals": "stages.sources.proposals:ProposalSource",
    "grid": "stages.sources.grid:GridSource",
    "boxes": "stages.sources.boxes:BoxSource",
    "crops": "stages.sources.crops:CropSource",
}
"""Kind -> module and class of what takes the place of heat maps. The module is imported when the kind is asked for."""


def source_kinds() -> list[str]:
    """All values of `source.kind`."""
    return [HEAT_MAPS, *SOURCES]


def source_type(kind: str) -> type[RegionSource[Any]]:
    """The source of a kind. Raises KeyError for a kind that is not in the table."""
    found: type[RegionSource[Any]] = resolve_name(SOURCES[kind])
    return found


def source_config_type(kind: str) -> type[RegionSourceConfig]:
    """The settings of a kind. Raises KeyError for a kind that there is not."""
    return HeatMapSource if kind == HEAT_MAPS else source_type(kind).config_type


def source_config(values: Any = None) -> Any:
    """Plain values -> the settings of the source that their `kind` names; heat maps without one.

    Settings that are ready, and values that are not a mapping, are returned as they are.

    Raises:
        PydanticCustomError: The kind is unknown.
        ValidationError: The source refuses a value.
    """
    if values is None:
        values = {}
    if not isinstance(values, dict):
        return values
    kind = values.get("kind", HEAT_MAPS)
    if kind not in source_kinds():
        context = {"tag": str(kind), "expected_tags": ", ".join(source_kinds()), "discriminator": "kind"}
        raise PydanticCustomError("union_tag_invalid", "no kind {tag}; kinds: {expected_tags}", context)
    return source_config_type(kind).model_validate(values)


AnySourceConfig = Annotated[SerializeAsAny[RegionSourceConfig], BeforeValidator(source_config)]
"""The `source` section of a run."""
