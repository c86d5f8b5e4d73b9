"""The settings of a fine-tuning.

Checking those of a recipe other than the default imports torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, Field, SerializeAsAny, field_validator

from phrasebox.stages.contract.kinds import KindTable
from phrasebox.stages.contract.values import Json
from phrasebox.stages.files.storage import absolute
from phrasebox.stages.model.config import AUTO, ModelConfig


class RecipeConfig(BaseModel, extra="forbid", frozen=True):
    """Settings that every recipe has."""

    kind: str = Field(description="Name in `RECIPES`.")
    caption_weight: float = Field(
        1.0,
        ge=0,
        description="Weight of the loss between images and captions, which keeps the model able to retrieve.",
    )

    @property
    def needs_regions(self) -> bool:
        """Whether a dataset without regions is rejected."""
        return False


class AlignConfig(RecipeConfig):
    """Regions against phrases."""

    kind: Literal["align"] = "align"
    region_weight: float = Field(
        0.5,
        gt=0,
        description="Weight of the loss between regions and phrases. FG-CLIP takes 0.1, with 12 million images.",
    )

    @property
    def needs_regions(self) -> bool:
        """See `RecipeConfig.needs_regions`."""
        return True


class CaptionsConfig(RecipeConfig):
    """Captions alone."""

    kind: Literal["captions"] = "captions"


RECIPES: Final[KindTable[Any]] = KindTable("phrasebox.recipes", default=AlignConfig)
"""The recipes of fine-tuning."""

AnyRecipeConfig = Annotated[SerializeAsAny[RecipeConfig], BeforeValidator(RECIPES.config)]
"""The `recipe` section."""


class DataConfig(BaseModel, extra="forbid", frozen=True):
    """The dataset, and the choice of its regions."""

    path: str = Field(description="Folder or URL of the dataset.")
    image_root: str | None = Field(
        None,
        description="Folder or URL of the images, if they have moved and the dataset does not hold them.",
    )
    min_score: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Only regions with at least this score. Other images still count for captions.",
    )
    where: str = Field("", description="Only regions for which this SQL condition holds.")
    boxes: Literal["own", "shuffled"] = Field(
        "own",
        description="`shuffled` gives each region the box of another object of its image (an "
        "only one that of another image), drawn anew in each epoch: a control, with which "
        "nothing can be learned about places.",
    )
    loaders: int = Field(
        0,
        ge=0,
        le=64,
        description="Processes of each rank that decode images; 0: the one that trains decodes them.",
    )


class FinetuneConfig(BaseModel, extra="forbid", frozen=True, protected_namespaces=()):
    """Everything a fine-tuning depends on."""

    data: DataConfig = Field(description="The dataset, and the choice of its regions.")
    model: ModelConfig = Field(
        ModelConfig(precision="fp32"),
        description="The model to begin with. `precision` is that of the products: bf16 is "
        "torch's autocast, weights stay in fp32. `auto` is fp32 here.",
    )
    recipe: AnyRecipeConfig = Field(
        default_factory=RECIPES.config,
        description="What the model is taught.",
    )
    frozen: tuple[str, ...] = Field(
        (),
        description="Parameters whose names begin so stay as they are, e.g. "
        "`[visual.trunk.features]`, or `[transformer, token_embedding]` of the text tower. If "
        "nothing in front of a layer learns, its backward pass ends there.",
    )
    frozen_outputs: Path | None = Field(
        None,
        description="Folder where the networks that `frozen` names store their outputs: each image is computed once, "
        "for all epochs and for all trainings with this folder. One of `photo` takes 1.2 MB.",
    )
    epochs: float = Field(1.0, gt=0, le=10_000, description="How often every image is seen.")
    batch_size: int = Field(
        32,
        ge=2,
        le=65_536,
        description="Images of a step, of all ranks together.",
    )
    learning_rate: float = Field(
        1e-5,
        gt=0,
        le=1,
        description="The highest; it rises over the warm-up and falls along half a cosine to 0. "
        "The default is the field's for large pretrained models (CLIPSelf, FineCLIP); small "
        "ones need ten times as much.",
    )
    warmup_steps: int = Field(20, ge=0, description="Steps over which the learning rate rises.")
    seed: int = Field(
        0,
        ge=0,
        description="Decides the order of images and the choice of captions.",
    )
    checkpoint_every_s: float = Field(
        300.0,
        ge=0,
        description="Seconds between checkpoints; 0: after every step.",
    )
    out: Path = Field(description="Folder to write: `model/`, `log.jsonl`, and `latest.pt` to resume from.")

    @field_validator("model")
    @classmethod
    def _resolve_precision(cls, model: ModelConfig) -> ModelConfig:
        """Return the model with `auto` as fp32: only the user may let a training round."""
        return model.model_copy(update={"precision": "fp32"}) if model.precision == AUTO else model

    def result_settings(self) -> Json:
        """Return the settings that determine the weights, as plain values: a resumed training must share them."""
        plain: Json = self.model_dump(mode="json", exclude={"out", "checkpoint_every_s", "frozen_outputs"})
        data = plain["data"]
        data.pop("loaders")
        data |= {key: absolute(data[key]) for key in ("path", "image_root") if data[key] is not None}
        for key in ("device", "threads", "batch_size"):
            plain["model"].pop(key)
        return plain
