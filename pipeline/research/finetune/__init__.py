"""Fine-tune a CLIP model on a dataset, for better features of its patches.

To add a recipe, write one file with a `RecipeConfig` and a `Recipe`, and name it in `RECIPES`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from stages.contract.kinds import KindTable

if TYPE_CHECKING:
    from pipeline.research.finetune.recipe import Recipe

RECIPES: Final[KindTable[Recipe[Any]]] = KindTable(
    {
        "align": "pipeline.research.finetune.align:Align",
        "captions": "pipeline.research.finetune.captions:Captions",
    },
    default="align",
    settings={"align": "pipeline.research.finetune.config:AlignConfig"},
)
"""The recipes of fine-tuning."""
