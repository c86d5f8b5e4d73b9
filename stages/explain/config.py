"""The settings that every explainer has. This module does not import torch, because the driver reads it too."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from stages.shared.model.config import InputSpec, TowerKind


class ExplainerConfig(BaseModel):
    """Settings of an explainer. Each explainer derives a model of its own with `kind: Literal["x"] = "x"`.

    All values are concrete: a stored configuration says what was computed, and null means none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str
    """Name of the explainer in `EXPLAINERS`."""

    image_size: Literal["model", "keep"] | Annotated[int, Field(ge=8, le=4096)] = "model"
    """`model`: the network's square input, with the whole image and no crop. `keep`: the aspect ratio is kept and each
    side is rounded to the patch. A number: a square of that many pixels, rounded to the patch."""

    scales: tuple[Annotated[float, Field(gt=0.0, le=4.0)], ...] = (1.0,)
    """Sizes at which the image is looked at, as shares of `image_size`, the largest first: the map is the mean of the
    maps of all, on the grid of the first. Each costs a forward of its own, by its area. On photographs [1.27, 1] makes
    better boxes than [1] (measured; configs/README.md)."""

    shorter_side_px: Annotated[int, Field(ge=8)] | None = None
    """With `keep`: a shorter side above this is shrunk to it. Null: the image is not shrunk."""

    max_side_px: Annotated[int, Field(ge=8)] = 2048
    """With `keep`: the longest side allowed, against panoramas that do not fit into memory. Grad-ECLIP's authors have
    no such bound; a large value restores them."""

    contrast: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.25
    """Share of the hottest other phrase's map that is taken away from each map of an image (`stage.contrasted`; not
    from the paper). On drawn scenes 0.25 raised box recall from .814 to .843 and box IoU from .748 to .767
    (with GrabCut; configs/README.md); 0.5 is no better. A phrase that is alone in its image keeps its map; 0 makes maps
    independent of the other phrases."""

    affinity: Literal["none", "propagation"] = "none"
    """How heat follows things. `propagation`: neighbouring tokens that are alike share it (`stages.explain.affinity`;
    not from the paper). Pointing gains on photographs, and on drawn scenes where nothing else looks at the image's
    colours (measured; configs/README.md)."""

    affinity_reach: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.65
    """Share of its heat that a token passes on in every step. On drawn scenes 0.5 gives the best boxes and 0.8 the best
    peaks; photographs like 0.8 (measured)."""

    affinity_depth: Annotated[float, Field(ge=0.0, le=1.0)] = 0.33
    """With a class token: the block whose incoming tokens are compared, as a share of all blocks; no later than the
    first block that Grad-ECLIP explains. Later tokens know too much of the whole image (measured). Other towers have it
    without effect: there the last tokens are compared."""

    importance: Literal["none", "eos"] = "none"
    """Whether each phrase also gets its share of its caption's importance for the image: `eos`, by the token that ends
    the caption (`stages.explain.text.importance`). It costs 1.6 text forwards for each caption (measured)."""

    importance_depth: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Share of the text tower's blocks that importance is summed over, the last ones. 0.67 is the authors' 8 of CLIP's
    12."""

    importance_heads: Literal["single", "model"] = "model"
    """Attention heads in these blocks: the network's own, or one head over the full width as in the authors' code,
    which changes the cosine."""

    importance_weight: Literal["none", "words", "all"] = "none"
    """What a token's gradient is multiplied by. `all`: the authors' cosine of query and key, min-max normalised over
    all tokens of the context, those behind the text included. `words`: the same over the caption's own tokens."""

    importance_rectify: Literal["sum", "block"] = "block"
    """ReLU after the blocks are summed (`sum`, the authors), or on each block before (`block`)."""

    templates: tuple[str, ...] | Literal["openai_imagenet"] = ("{}",)
    """Prompts whose embeddings are averaged; `{}` is the phrase. `openai_imagenet` stands for the 80 templates
    of the authors' evaluation code."""

    phrases_per_step: Annotated[int, Field(ge=1, le=256)] = 8
    """The phrases of an image are computed in groups of this size. The size is fixed, so that results do not depend
    on how many phrases a neighbour has. All images of a batch get as many groups as the one with most phrases: a group
    takes 4 % of an image's time, and with 6 to 16 phrases an image the empty ones 1 % (ViT-B-32, batches of 8, one core
    of a CPU), so that nothing is gathered to leave them out."""

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
            raise ValueError("scales: begin with 1 where image_size is keep; max_side_px says how large an image gets")
        return self

    def canvas(self, spec: InputSpec) -> dict[str, Any]:
        """The settings of the prepare stage that resize images for this explainer and a model's input."""
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

    def for_tower(self, kind: TowerKind) -> Self:
        """The settings for a kind of tower: where a default is wrong for it, the value that is right there.

        What was set is never changed.

        Raises:
            ConfigError: A value that was set makes no sense for such a tower.
        """
        return self

    def decides_maps(self) -> dict[str, Any]:
        """The settings that a calibration of scores depends on, as plain values."""
        idle = set() if self.affinity != "none" else {"affinity_reach", "affinity_depth"}
        if self.scales == (1.0,):
            idle.add("scales")
        words = {name for name in type(self).model_fields if name.startswith("importance")}
        return self.model_dump(mode="json", exclude={"variant", "phrases_per_step", "max_side_px"} | idle | words)
