"""Fine-tuning a CLIP on a dataset, so that its patches know what they show.

To add a recipe, write one file with a `RecipeConfig` and a `Recipe`, and name it in `RECIPES`.
"""

from __future__ import annotations

from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, Final

from pydantic_core import PydanticCustomError

if TYPE_CHECKING:
    from pipeline.finetune.recipes.base import Recipe

__all__ = ["RECIPES", "recipe_config", "recipe_type"]

DEFAULT_RECIPE: Final = "align"

RECIPES: Final[dict[str, str]] = {
    "align": "pipeline.finetune.recipes.align:Align",
    "clipself": "pipeline.finetune.recipes.clipself:ClipSelf",
    "clim": "pipeline.finetune.recipes.clim:Clim",
    "captions": "pipeline.finetune.recipes.captions:Captions",
}
"""Kind -> module and class. The module is imported when the kind is asked for, because it imports torch."""


def recipe_type(kind: str) -> type[Recipe[Any]]:
    """The recipe of a kind. Raises KeyError for a kind that is not in the table."""
    found: type[Recipe[Any]] = resolve_name(RECIPES[kind])
    return found


def recipe_config(values: Any = None) -> Any:
    """Plain values -> the settings of the recipe that their `kind` names; align without one.

    Settings that are ready, and values that are not a mapping, are returned as they are.

    Raises:
        PydanticCustomError: The kind is unknown.
        ValidationError: The recipe refuses a value.
    """
    if values is None:
        values = {}
    if not isinstance(values, dict):
        return values
    kind = values.get("kind", DEFAULT_RECIPE)
    if kind not in RECIPES:
        context = {"tag": str(kind), "expected_tags": ", ".join(RECIPES), "discriminator": "kind"}
        raise PydanticCustomError("union_tag_invalid", "expected one of {expected_tags}, got {tag}", context)
    return recipe_type(kind).config_type.model_validate({**values, "kind": kind})
