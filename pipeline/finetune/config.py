"""The settings of a fine-tuning. Who only checks them imports torch, too, for those of the recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SerializeAsAny

from pipeline.finetune import RECIPES
from stages.shared.model.config import ModelConfig

Learns = Literal["all", "image"]
"""Which side of the model learns: both, or the image tower alone."""


class RecipeConfig(BaseModel):
    """Settings that every recipe has."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str
    """Name in `RECIPES`."""

    learns: Learns = "all"
    """`image` leaves the text tower as it is, as recipes without texts of regions do."""

    caption_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the loss between images and captions, which keeps the model able to retrieve."""


AnyRecipeConfig = Annotated[SerializeAsAny[RecipeConfig], BeforeValidator(RECIPES.config)]
"""The `recipe` section."""


class DataConfig(BaseModel):
    """The dataset, and which of its regions."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    """Folder or URL of the dataset."""

    image_root: str | None = None
    """Folder or URL of the images, if they have moved since the run and the dataset does not hold them."""

    min_score: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Only regions with at least this score. Images without one still count for their captions."""

    where: str = ""
    """Only regions for which this SQL condition holds."""

    boxes: Literal["own", "shuffled"] = "own"
    """`shuffled` gives each region the box of another region of its image (the only one of an image one of another
    image): a control, with which nothing can be learned about places."""

    loaders: Annotated[int, Field(ge=0, le=64)] = 0
    """Processes of each rank that decode images; 0: none beside the one that trains."""


class FinetuneConfig(BaseModel):
    """Everything a fine-tuning depends on."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    data: DataConfig
    model: ModelConfig = ModelConfig()
    """The model to begin with. `precision` is that of the products: bf16 is torch's autocast, weights stay in fp32."""

    recipe: AnyRecipeConfig = Field(default_factory=RECIPES.config)

    frozen: tuple[str, ...] = ()
    """Parameters whose names begin so stay as they are, e.g. `[visual.trunk.features]`. Where nothing in
    front of a layer learns, its backward pass ends there."""

    epochs: Annotated[float, Field(gt=0, le=10_000)] = 1.0
    """How often every image is seen."""

    batch_size: Annotated[int, Field(ge=2, le=65_536)] = 32
    """Images of a step, of all ranks together."""

    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-5
    """The highest; it rises over the warm-up and falls along half a cosine to 0. The default is the field's for large
    pretrained models (CLIPSelf, CLIM, FineCLIP); small ones want ten times as much."""

    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """AdamW's, of matrices; biases, norms and temperatures have none."""

    warmup_steps: Annotated[int, Field(ge=0)] = 20
    """Steps over which the learning rate rises."""

    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradients longer than this are shortened to it."""

    interpolate: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the tuned weights in those that are written; the rest are those that it began with. CLIPSelf's code
    takes .7 for RegionCLIP. 1: the tuned ones alone."""

    seed: Annotated[int, Field(ge=0)] = 0
    """Of the order of images, the choice of captions, and what a recipe draws."""

    checkpoint_every_s: Annotated[float, Field(ge=0)] = 300.0
    """Seconds between checkpoints; 0: after every step."""

    out: Path
    """Folder to write: `model/`, `log.jsonl`, and `latest.pt` to go on from."""

    def decides(self) -> dict[str, Any]:
        """The settings that decide the weights, for who goes on; plain values."""
        plain: dict[str, Any] = self.model_dump(mode="json", exclude={"out", "checkpoint_every_s"})
        plain["data"].pop("loaders")
        for key in ("device", "threads", "batch_size"):
            plain["model"].pop(key)
        return plain
