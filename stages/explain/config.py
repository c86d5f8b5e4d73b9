"""Settings of the explainers; no torch in here, the driver reads this too."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from stages.model.config import InputSpec

Variant = Literal["recommended", "authors", "notebook"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """A variant with all its settings; each means what `GradEclipConfig` says."""

    heads: Literal["single", "model"]
    similarity: Literal["projected", "raw"]
    spatial_weight: bool
    blocks: int
    path: Literal["full", "class"]
    rectify: Literal["sum", "block"]
    image_size: Literal["model", "keep"] | int
    shorter_side_px: int | None
    contrast: float


VARIANTS: Final[dict[Variant, Settings]] = {
    "recommended": Settings(
        heads="model",
        similarity="raw",
        spatial_weight=True,
        blocks=4,
        path="class",
        rectify="block",
        image_size="model",
        shorter_side_px=None,
        contrast=0.25,
    ),
    "authors": Settings(
        heads="single",
        similarity="projected",
        spatial_weight=True,
        blocks=1,
        path="full",
        rectify="block",
        image_size="keep",
        shorter_side_px=640,
        contrast=0.0,
    ),
    "notebook": Settings(
        heads="single",
        similarity="raw",
        spatial_weight=True,
        blocks=1,
        path="full",
        rectify="block",
        image_size="keep",
        shorter_side_px=None,
        contrast=0.0,
    ),
}
"""recommended: what our measurements favour. authors: `generate_emap.py` of the Grad-ECLIP repository,
with which the paper was evaluated. notebook: its `grad_eclip_image.ipynb`."""


class GradEclipConfig(BaseModel):
    """Grad-ECLIP (arXiv 2502.18816). `variant` is a bundle; every other key overrides one of its settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["grad_eclip"] = "grad_eclip"

    variant: Variant = "recommended"
    """recommended | authors | notebook, see VARIANTS."""

    heads: Literal["single", "model"] | None = None
    """Attention heads in the explained blocks: `model` leaves the network as it is; `single` recomputes
    them with one head over the full width, as the authors' code does, which changes the cosine."""

    similarity: Literal["projected", "raw"] | None = None
    """Queries and keys of the spatial weight: after the output projection (the authors' evaluation code)
    or before it (their notebook)."""

    spatial_weight: bool | None = None
    """Multiply by the min-max normalised cosine of query and keys."""

    blocks: Annotated[int, Field(ge=1)] | None = None
    """How many of the last blocks are explained and summed."""

    path: Literal["full", "class"] | None = None
    """Where gradients flow when there are several blocks: through all tokens (`full`, the authors), or
    through the class token only, with the patch tokens held constant (`class`; not from the paper,
    exact for the last block, and next to free)."""

    rectify: Literal["sum", "block"] | None = None
    """ReLU after the blocks are summed (`sum`), or on each block before (`block`, the authors). On drawn scenes
    `block` gave a box IoU of .621 against .595 (configs/README.md)."""

    image_size: Literal["model", "keep"] | Annotated[int, Field(ge=8, le=4096)] | None = None
    """`model`: the network's square input, whole image, no crop. `keep`: aspect kept, each side rounded
    to the patch (the authors). A number: a square of that many pixels, rounded to the patch."""

    shorter_side_px: Annotated[int, Field(ge=8)] | None = None
    """With `keep`: a shorter side above this is shrunk to it (640 in the authors' evaluation code)."""

    contrast: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    """Share of the hottest other phrase's map that is taken away from each map of an image (`contrast.py`; not
    from the paper). On drawn scenes 0.25 raised box recall from .814 to .843 and box IoU from .748 to .767
    (with GrabCut; configs/README.md); 0.5 is no better. A phrase that is alone in its image keeps its map; 0 makes maps
    independent of the other phrases."""

    max_side_px: Annotated[int, Field(ge=8)] = 2048
    """With `keep`: bound of the longer side, against panoramas that do not fit into memory. The authors
    have no such bound; a large value restores them."""

    templates: tuple[str, ...] | Literal["openai_imagenet"] = ("{}",)
    """Prompts whose embeddings are averaged; `{}` is the phrase. `openai_imagenet` are the 80 templates
    of the authors' evaluation code."""

    phrases_per_step: Annotated[int, Field(ge=1, le=256)] = 8
    """Gradients of this many phrases per image are taken at once. Fixed, so that results do not depend
    on how many phrases a neighbour has."""

    @field_validator("templates", mode="after")
    @classmethod
    def _hold_a_phrase(cls, value: tuple[str, ...] | str) -> tuple[str, ...] | str:
        if not isinstance(value, str) and (not value or any("{}" not in template for template in value)):
            raise ValueError("each template needs `{}` where the phrase goes")
        return value

    @property
    def settings(self) -> Settings:
        """The variant with the overrides applied."""
        base = VARIANTS[self.variant]
        given = {key: value for key in asdict(base) if (value := getattr(self, key)) is not None}
        return replace(base, **given)

    def canvas(self, spec: InputSpec) -> dict[str, Any]:
        """How images must be resized for this explainer and a model's input: settings of the prepare stage."""
        settings = self.settings
        size = spec.size_px
        if isinstance(settings.image_size, int):
            size = max(1, round(settings.image_size / spec.patch_px)) * spec.patch_px
        return {
            "mode": "keep" if settings.image_size == "keep" else "square",
            "size_px": size,
            "patch_px": spec.patch_px,
            "shorter_side_max_px": settings.shorter_side_px,
            "max_side_px": self.max_side_px,
            "interpolation": spec.interpolation,
        }


ExplainerConfig = GradEclipConfig
"""The union of all explainers' settings, told apart by `kind`."""
