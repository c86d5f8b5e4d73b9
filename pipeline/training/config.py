"""The settings of a training run. Those that made the embedded model are in its MODEL_CARD.md."""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field

MODEL_CFG: Final[dict[str, Any]] = {
    "embed_dim": 192,
    "vision_cfg": {
        "image_size": 140,
        "patch_size": 10,
        "width": 192,
        "layers": 6,
        "head_width": 32,
        "mlp_ratio": 3.0,
    },
    "text_cfg": {"context_length": 32, "width": 128, "heads": 4, "layers": 3},
}
"""Arguments of `open_clip.CLIP` less `vocab_size`, which the tokenizer gives."""

PREPROCESS_CFG: Final[dict[str, Any]] = {
    "mean": [0.48145466, 0.4578275, 0.40821073],
    "std": [0.26862954, 0.26130258, 0.27577711],
    "interpolation": "bicubic",
    "resize_mode": "squash",
}
"""How images are prepared, in open_clip's terms: RGB in 0-1 less mean, divided by std."""


class Phase(BaseModel):
    """A part of the training at one image size."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    """Shown in the log."""
    steps: Annotated[int, Field(ge=1)]
    """Optimiser steps."""
    side_px: Annotated[int, Field(ge=64)]
    """Side of the images, a multiple of the patch; positions are interpolated between phases."""
    render_scale: Annotated[float, Field(ge=1.0, le=3.0)] = 1.0
    """Every third scene is drawn larger by this factor and averaged down, as one from a file would be."""
    patch_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of the patches left out of each image."""
    max_objects: Annotated[int, Field(ge=1, le=6)] = 5
    """Most things in a scene."""
    min_size_rel: Annotated[float, Field(gt=0.0, le=1.0)] = 0.15
    """Smallest thing relative to the side."""
    max_size_rel: Annotated[float, Field(gt=0.0, le=1.0)] = 0.55
    """Largest thing relative to the side."""
    lr_start: Annotated[float, Field(ge=0.0, le=1.0)] = 1.0
    """Factor on both learning rates at the phase's first step."""
    lr_end: Annotated[float, Field(ge=0.0, le=1.0)] = 1.0
    """Factor at its last step; linear in between."""


DEFAULT_PHASES: Final = (
    Phase(name="crops", steps=900, side_px=70, max_objects=2, min_size_rel=0.3, max_size_rel=0.95),
    Phase(name="scenes", steps=1600, side_px=140, patch_dropout=0.5, lr_end=0.6),
    Phase(name="fine", steps=500, side_px=200, render_scale=1.8, patch_dropout=0.5, lr_start=0.6, lr_end=0.15),
    Phase(name="whole", steps=90, side_px=200, render_scale=1.8, lr_start=0.15, lr_end=0.02),
)
"""Large things teach names fast; whole scenes, a finer grid and finally all patches follow."""

SMOKE_PHASES: Final = (
    Phase(name="crops", steps=8, side_px=70, max_objects=1, min_size_rel=0.5, max_size_rel=0.95),
    Phase(name="scenes", steps=2, side_px=140, patch_dropout=0.5, lr_end=0.2),
)
"""A run of seconds that goes through every kind of step."""


class TrainConfig(BaseModel):
    """Everything that decides the weights, apart from library versions, the processor and the number of threads."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: Annotated[int, Field(ge=0)] = 1
    """Seed of the initial weights, the scenes, the wordings and the patch dropout."""
    batch: Annotated[int, Field(ge=2)] = 128
    """Images per step; smaller was worse (measured at 64)."""
    matrix_lr: Annotated[float, Field(gt=0)] = 3e-3
    """Muon's learning rate, for the matrices of the transformer blocks."""
    matrix_weight_decay: Annotated[float, Field(ge=0)] = 0.05
    """Muon's decoupled weight decay."""
    other_lr: Annotated[float, Field(gt=0)] = 1e-3
    """AdamW's learning rate, for everything else."""
    warmup_steps: Annotated[int, Field(ge=1)] = 100
    """Steps in which both rates rise linearly from zero."""
    bank_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the phrase bank's loss beside the captions' loss."""
    average_decay: Annotated[float, Field(ge=0, lt=1)] = 0.997
    """Decay per step of the moving average of the weights, which is what is exported."""
    phases: tuple[Phase, ...] = DEFAULT_PHASES
    """In order."""
    evaluation_scenes: Annotated[int, Field(ge=1)] = 200
    """Held-out scenes with one thing each for the top-1 in the log."""
