"""Other origins of regions than heat maps: published ways of making the same rows, for comparison.

base.py      the base class of sources: a stage that fills `Record.regions` itself
naming.py    boxes of any origin -> regions, called by the best phrase or concept of a pool according to CLIP
looks.py     CLIP's embedding of a box: of its part of the image, or from dense features
grid.py      two sources: `grid` and `crops`
proposals.py, boxes.py    one source each

To add a source, write one file with a `SourceConfig` and a `RegionSource`, and name it in `SOURCES`.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import BeforeValidator, SerializeAsAny

from stages.contract.kinds import KindTable
from stages.sources.base import HEAT_MAPS, RegionSourceConfig

__all__ = ["HEAT_MAPS", "SOURCES", "AnySourceConfig"]

SOURCES: Final[KindTable[Any]] = KindTable(
    {
        HEAT_MAPS: "stages.sources.base:NoSource",
        "proposals": "stages.sources.proposals:ProposalSource",
        "grid": "stages.sources.grid:GridSource",
        "boxes": "stages.sources.boxes:BoxSource",
        "crops": "stages.sources.grid:CropSource",
    },
    default=HEAT_MAPS,
)
"""Every value of `source.kind`. All but the first are a `base.RegionSource`."""

AnySourceConfig = Annotated[SerializeAsAny[RegionSourceConfig], BeforeValidator(SOURCES.config)]
"""The `source` section of a run."""
