"""The settings that sources of regions share. The driver reads them, so this module imports no model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

HEAT_MAPS: Final = "grad_eclip"
"""The kind that is no stage of this room: `explain` computes heat maps, by any method, and `regions` cuts them."""


class RegionSourceConfig(BaseModel):
    """Settings of a source. Each source derives a model of its own with `kind: Literal["x"] = "x"`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str
    """Where regions come from: `grad_eclip` or a name in `SOURCES`."""


class HeatMapSource(RegionSourceConfig):
    """Regions are cut from heat maps, as `explain` and `regions` say."""

    kind: Literal["grad_eclip"] = "grad_eclip"


class NoSource:
    """The entry of `SOURCES` for heat maps: settings, and no stage."""

    config_type: ClassVar = HeatMapSource


class NamedBoxesConfig(RegionSourceConfig):
    """Settings of sources that make boxes without names and let CLIP choose the best phrase of each."""

    pool: Path | Literal["captions"] = "captions"
    """What a box may be called. `captions`: the phrases of the image's own captions. A file: its concepts, one a line
    (`phrasebox pool` writes one), whatever the captions say."""

    by: Literal["crop", "roi"] = "crop"
    """What is compared with the phrases. `crop`: the embedding of the image's part in the box, one forward pass of the
    image tower for each box. `roi`: RoIAlign on the dense features of the whole image (`towers.dense`),
    one forward pass for all boxes."""

    enlarge: Annotated[float, Field(ge=1.0, le=4.0)] = 1.0
    """By how much the sides of a box are multiplied before its part of the image is cut out (`by: crop`), so that
    something around the thing is seen. CLIPSelf (arXiv 2310.01403) takes 1.5 for proposals."""

    temperature: Annotated[float, Field(gt=0.0, le=1.0)] = 0.01
    """Of the softmax over all that a box may be called. .01 is RegionCLIP's (arXiv 2112.09106)."""

    min_score: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Boxes whose best phrase has a smaller share of the softmax are left out."""

    per_phrase: Annotated[int, Field(ge=1)] | None = None
    """The most boxes of one phrase, those with the highest score. Null: all of them, as RegionCLIP keeps them."""

    templates: tuple[str, ...] = ("{}",)
    """Prompts whose embeddings are averaged; `{}` is the phrase."""

    longest_side_px: Annotated[int, Field(ge=32, le=4096)] = 448
    """The image is reduced to this longer side, its aspect kept, before boxes are made and cut out. A smaller image is
    not enlarged. 448 leaves a box of half the image the 224 pixels that most models take."""

    @field_validator("templates", mode="after")
    @classmethod
    def _hold_a_phrase(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or any("{}" not in template for template in value):
            raise ValueError("each template needs `{}` where the phrase goes")
        return value
