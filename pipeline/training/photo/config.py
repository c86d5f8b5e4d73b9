"""The settings of a training run of the photograph model. Those that made the weights are in their MODEL_CARD.md."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from stages.shared.model.towers.photo_trunk import GRID, STRIDE_PX, TRUNK_NAME, WIDTH

CONTEXT_LENGTH: Final = 32
"""Tokens of a text; the longest caption in the training photographs has some 40, and one in 300 is cut."""

MODEL_CFG: Final[dict[str, Any]] = {
    "embed_dim": WIDTH,
    "vision_cfg": {
        "timm_model_name": TRUNK_NAME,
        "timm_model_pretrained": False,
        "timm_pool": "abs_attn",
        "timm_proj": "",
        "image_size": GRID * STRIDE_PX,
    },
    "text_cfg": {"context_length": CONTEXT_LENGTH, "width": 192, "heads": 6, "layers": 4},
}
"""Arguments of `open_clip.CLIP` less `vocab_size`, which the tokenizer gives."""

PREPROCESS_CFG: Final[dict[str, Any]] = {
    "mean": [127 / 255] * 3,
    "std": [128 / 255] * 3,
    "interpolation": "bicubic",
    "resize_mode": "squash",
}
"""How images are prepared, in open_clip's terms; the ImageNet weights want RGB in 0-255 less 127, divided by 128."""

Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]


class Distillation(BaseModel):
    """A part of the training in which the text tower learns to give another's vectors."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["distil"] = "distil"
    name: str
    """Shown in the log."""
    target: Literal["teacher", "bridge"]
    """Whose vectors: the text teacher's own, or those that the bridge makes of them, beside the images."""
    steps: Annotated[int, Field(ge=1)]
    """Optimiser steps, captions and phrases in turn."""
    captions: Annotated[int, Field(ge=2)] = 192
    """Captions of a step."""
    phrases: Annotated[int, Field(ge=2)] = 384
    """Phrases of a step."""
    matrix_lr: Positive = 3e-3
    """Muon's learning rate, for the matrices of the blocks."""
    other_lr: Positive = 2e-3
    """AdamW's learning rate, for everything else."""


class Matching(BaseModel):
    """A part of the training in which images and texts are matched."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["match"] = "match"
    name: str
    """Shown in the log."""
    texts: Literal["bridge", "tower"]
    """What embeds the texts: a bridge from the teacher's vectors, or the text tower that is kept."""
    steps: Annotated[int, Field(ge=1)]
    """Optimiser steps."""
    batch: Annotated[int, Field(ge=2)] = 192
    """Photographs of a step."""
    window: Annotated[int, Field(ge=1, le=GRID)] = GRID
    """Side of the window of the grid that a photograph is looked at through, at a random place; as cheap as it is
    small, and a crop of the photograph that costs nothing."""
    keep: Annotated[int, Field(ge=1)] = 64
    """Tokens of the window that reach the head; patch dropout."""
    trained_blocks: Annotated[int, Field(ge=0, le=6)] = 0
    """How many of the network's last blocks learn. With 0 its last convolution is fixed, too."""
    tail_lr: Positive = 1e-4
    """Learning rate of the network's own weights."""
    head_lr: Positive = 1e-3
    """Learning rate of the neck, the pooling and the bridge."""
    text_lr: Positive = 5e-4
    """Learning rate of the text tower."""
    weight_decay: Weight = 0.1
    """Of the matrices of the neck, the pooling and the bridge."""
    caption_weight: Weight = 0.5
    """Weight of the loss between photographs and their captions."""
    soft_weight: Weight = 0.0
    """Weight of the same with soft targets: as near as the teacher thinks a caption is to the other photographs'."""
    phrase_weight: Weight = 1.0
    """Weight of the loss between photographs and phrases."""
    local_weight: Weight = 1.5
    """Weight of the loss between tokens and phrases."""
    faithful_weight: Weight = 2.0
    """Weight of staying near the bridge's vectors, for the text tower."""


Phase = Annotated[Distillation | Matching, Field(discriminator="kind")]

DEFAULT_PHASES: Final[tuple[Distillation | Matching, ...]] = (
    Distillation(name="words", target="teacher", steps=1300),
    Matching(name="head", texts="bridge", steps=100, batch=256, keep=20, head_lr=2e-3, weight_decay=0.2),
    Matching(name="tail", texts="bridge", steps=350, window=12, trained_blocks=4),
    Distillation(name="bridge", target="bridge", steps=100, matrix_lr=2e-3, other_lr=1e-3),
    Matching(
        name="joint",
        texts="tower",
        steps=320,
        window=12,
        trained_blocks=4,
        tail_lr=7e-5,
        head_lr=7e-4,
        soft_weight=0.5,
    ),
)
"""The text tower learns words; new parts learn beside a fixed network; the network's end learns too; the text tower
takes the bridge's place; all learn together."""


class PhotoConfig(BaseModel):
    """Everything that decides the weights, apart from library versions, the processor and the number of threads."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the initial weights and of every random choice."""
    held_out: Annotated[int, Field(ge=0)] = 500
    """How many of the last training photographs are never trained on, so that settings and calibrations can be fitted
    on photographs that the model does not know and that dev's figures do not depend on."""
    variants: Annotated[int, Field(ge=1)] = 4
    """Variants of each photograph that training sees, see `pipeline.training.photo.variants`; 0.4 GB of the run's
    folder each."""
    phrases_per_photo: Annotated[int, Field(ge=1)] = 3
    """Phrases that each photograph of a batch adds to the batch's bank."""
    similar_captions: Annotated[float, Field(ge=0, le=1)] = 0.8
    """Captions whose teacher vectors have a cosine above this are not trained apart."""
    similar_phrases: Annotated[float, Field(ge=0, le=1)] = 0.6
    """Phrases this near to a phrase of a photograph are not trained away from it."""
    softness: Positive = 0.1
    """Temperature of the teacher's cosines in the soft targets."""
    average_decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Decay per step of the moving average of the weights, which is what is exported."""
    phases: tuple[Phase, ...] = DEFAULT_PHASES
    """In order."""
