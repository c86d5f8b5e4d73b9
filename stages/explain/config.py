"""The settings that every explainer has, and those of the default one. The driver reads them too: no torch here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from phrasebox.stages.contract.errors import ConfigError
from phrasebox.stages.model.config import TOWER_WORDS, InputSpec, TowerKind


class ExplainerConfig(BaseModel):
    """Settings of an explainer, each of which derives a model of its own with `kind: Literal["x"] = "x"`.

    All values are concrete: a stored configuration says what was computed, and null means none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str = Field(description="Name of the explainer in `EXPLAINERS`.")
    image_size: Literal["model", "keep"] | Annotated[int, Field(ge=8, le=4096)] = Field(
        default="model",
        description="`model`: the network's square input, with the whole image and no crop. `keep`: the aspect ratio "
        "is kept. A number: a square of that many pixels. Sides are rounded to the patch. Larger images give better "
        "boxes and cost by their area, so `model` is the default (measured; the model card of `photo`). Methods that "
        "segment with a ViT of 224 px scale the shorter side to 336 px (SCLIP, arXiv 2312.01597), 2.3 times the work.",
    )
    scales: tuple[Annotated[float, Field(gt=0.0, le=4.0)], ...] = Field(
        default=(1.0,),
        description="Sizes of the image as shares of `image_size`, the largest first: the map is the mean of the maps "
        "of all, on the grid of the first. Each costs a forward pass of its own, by its area. On photographs [1.27, 1] "
        "gives better boxes than [1] (measured; docs/benchmarks/photographs.md).",
    )
    shorter_side_px: int | None = Field(
        default=None,
        ge=8,
        description="With `keep`: the most that the shorter side may have. Null: no bound.",
    )
    max_side_px: int = Field(
        default=2048,
        ge=8,
        description="With `keep`: the most that a side may have; the authors have no such bound.",
    )
    contrast: float = Field(
        default=0.0,
        ge=0.0,
        lt=1.0,
        description="Share of the hottest other phrase's map that is subtracted from each map of an image "
        "(`subtract_others`; not from the papers). With 0, maps do not depend on the other phrases. 0 is best on "
        "photographs and 0.25 on synthetic scenes (measured; docs/benchmarks/photographs.md, settings.md).",
    )
    affinity: Literal["none", "propagation"] = Field(
        default="propagation",
        description="`propagation`: neighbouring tokens that are alike share their heat "
        "(`phrasebox.stages.explain.maps`; not from the papers). Pointing and boxes gain on photographs with "
        "`photo`, and on synthetic scenes with a depth of 0.33 and no guide; a pretrained transformer was not measured "
        "(docs/benchmarks/settings.md).",
    )
    affinity_reach: float = Field(
        default=0.8,
        gt=0.0,
        lt=1.0,
        description="Share of its heat that a token passes on in each step. 0.8 was chosen on photographs.",
    )
    affinity_depth: float = Field(
        default=0.75,
        ge=0.0,
        le=1.0,
        description="With a class token: the block whose incoming tokens are compared, as a share of all blocks. Not "
        "measured with pretrained weights: SC-CLIP (arXiv 2411.15869) compares those behind block 9 of 12. On drawn "
        "scenes `demo` gains at 0.33 and not at 0.5 (docs/benchmarks/settings.md). Others ignore it.",
    )
    templates: tuple[str, ...] | Literal["openai_imagenet"] = Field(
        default=("{}",),
        description="Prompts that are averaged; `{}` is the phrase. `openai_imagenet`: the authors' 80.",
    )

    @field_validator("templates", mode="after")
    @classmethod
    def _hold_a_phrase(cls, value: tuple[str, ...] | str) -> tuple[str, ...] | str:
        if not isinstance(value, str) and (not value or any("{}" not in template for template in value)):
            raise ValueError("each template needs `{}` where the phrase goes")
        return value

    @model_validator(mode="after")
    def _scales_fall(self) -> Self:
        if not self.scales or sorted(set(self.scales), reverse=True) != list(self.scales):
            raise ValueError("scales: make each smaller than the one before, as [1.27, 1]")
        if self.image_size == "keep" and self.scales[0] != 1:
            raise ValueError(
                "scales: begin with 1 where image_size is keep; max_side_px says how large an image gets"
            )
        return self

    def canvas(self, spec: InputSpec) -> dict[str, Any]:
        """Return the settings of the prepare stage that resize images for this explainer and a model's input."""
        size = spec.size_px if isinstance(self.image_size, str) else self.image_size
        if size != spec.size_px or self.scales[0] != 1:
            size = max(1, round(size * self.scales[0] / spec.patch_px)) * spec.patch_px
        return {
            "mode": "keep" if self.image_size == "keep" else "square",
            "size_px": size,
            "patch_px": spec.patch_px,
            "shorter_side_max_px": self.shorter_side_px,
            "max_side_px": self.max_side_px,
            "interpolation": spec.interpolation,
        }

    @property
    def takes_texts_as_typed(self) -> bool:
        """Whether texts that somebody typed are embedded as they are; phrases of captions are always normalised."""
        return False

    def for_tower(self, kind: TowerKind) -> Self:
        """Return the settings for a kind of tower, with defaults that are wrong there replaced.

        Raise ConfigError if a value that was set, which is never changed, makes no sense for
        such a tower.
        """
        return self

    def map_settings(self) -> dict[str, Any]:
        """Return the settings that a calibration of scores depends on, as plain values."""
        unused = "affinity_" if self.affinity == "none" else ()
        without = {name for name in type(self).model_fields if name.startswith(unused)}
        return self.model_dump(mode="json", exclude={"variant", "max_side_px"} | without)


AUTHORS: Final[Mapping[str, Any]] = {
    "heads": "single",
    "similarity": "projected",
    "image_size": "keep",
    "shorter_side_px": 640,
    "affinity": "none",
}
"""The preset `authors`, as the settings that differ from the defaults: `generate_emap.py` of the
Grad-ECLIP repository, with which the paper was evaluated."""


class GradEclipConfig(ExplainerConfig):
    """Grad-ECLIP (arXiv 2502.18816). `variant` is a preset; every other key overrides one of its settings."""

    kind: Literal["grad_eclip"] = "grad_eclip"
    variant: Literal["recommended", "authors"] = Field(
        default="recommended",
        description="Preset of the settings below: `recommended` has their defaults, `authors` those of the paper's "
        "evaluation code. Every other key overrides one of them, and a dataset stores all values.",
    )
    heads: Literal["single", "model"] = Field(
        default="model",
        description="The network's own, or one over the full width as in the authors' code.",
    )
    similarity: Literal["projected", "raw"] = Field(
        default="raw",
        description="q', k': after the output projection (the authors' code) or before it.",
    )
    blocks: int = Field(
        default=1,
        ge=1,
        description="The number of last blocks that are explained and summed. 1 is the paper's, which was evaluated "
        "with OpenAI's ViT-B-16; of the six blocks of `demo` four are better (measured; docs/benchmarks/settings.md). "
        "Always 1 for towers with a pool.",
    )

    @property
    def takes_texts_as_typed(self) -> bool:
        """See `ExplainerConfig.takes_texts_as_typed`: the authors' code has no step that cuts phrases."""
        return self.variant == "authors"

    def for_tower(self, kind: TowerKind) -> Self:
        """See `ExplainerConfig.for_tower`: a pool is one block."""
        if kind == "class_token" or self.blocks == 1:
            return self
        raise ConfigError(
            f"Grad-ECLIP can explain one block of this model and not {self.blocks}: set explain.blocks=1 or leave it "
            f"out. The model is no stack of blocks with a class token: it has {TOWER_WORDS[kind]}",
            key="explain.blocks",
        )

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, values: Any) -> Any:
        is_authors = isinstance(values, dict) and values.get("variant") == "authors"
        return {**AUTHORS, **values} if is_authors else values
