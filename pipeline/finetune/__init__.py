"""Fine-tuning a CLIP on a dataset, so that its patches know what they show.

To add a recipe, write one file with a `RecipeConfig` and a `Recipe`, and name it in `RECIPES`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from stages.contract.kinds import KindTable

if TYPE_CHECKING:
    from pipeline.finetune.recipes.base import Recipe

RECIPES: Final[KindTable[Recipe[Any]]] = KindTable(
    {
        "align": "pipeline.finetune.recipes.align:Align",
        "clipself": "pipeline.finetune.recipes.clipself:ClipSelf",
        "clim": "pipeline.finetune.recipes.clim:Clim",
        "captions": "pipeline.finetune.recipes.captions:Captions",
    },
    default="align",
)
"""What a model is taught."""
