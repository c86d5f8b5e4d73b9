"""The training of `photo`. The settings that made the bundled weights are in their MODEL_CARD.md.

It begins with an ImageNet network and learns names and places from captions alone: no box is read. Two packages bring
the weights that it begins with, and only training needs them; `photo_parts.PACKAGES` is the line to type.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from pydantic import Field
from torch import Tensor, nn

from pipeline.finetune.fit import LATEST, TrainingFolder, TrainingRun
from pipeline.finetune.ranks import RankGroup
from pipeline.training.model import (
    CONTEXT_LENGTH,
    Optimisers,
    Settings,
    architecture,
    encode_text,
    follow,
    muon_and_adamw,
)
from pipeline.training.photo_data import Material, PhotoBatch, prepare
from pipeline.training.photo_parts import (
    Bridge,
    Scales,
    distillation_loss,
    load_imagenet,
    local_logits,
    look,
    matching_loss,
    soft_matching_loss,
    tail_blocks,
)
from stages.shared.model.device import PRECISIONS, fast_precision
from stages.shared.model.towers.photo_trunk import GRID, STRIDE_PX, TRUNK_NAME, WIDTH

MODEL_CFG: Final[dict[str, Any]] = {
    "embed_dim": WIDTH,
    "vision_cfg": {
        "timm_model_name": TRUNK_NAME,
        "timm_model_pretrained": False,
        "timm_pool": "abs_attn",
        "timm_proj": "",
    },
    "text_cfg": {"context_length": CONTEXT_LENGTH, "width": 192, "heads": 6, "layers": 4},
}
"""Arguments of `open_clip.CLIP` less `image_size` and `vocab_size`."""

PREPROCESS_CFG: Final[dict[str, Any]] = {"mean": [127 / 255] * 3, "std": [128 / 255] * 3}
"""How images are prepared, in open_clip's terms; the ImageNet weights want RGB in 0-255 less 127, divided by 128."""

_WARMUP_STEPS: Final = 40
_TAIL_DECAY, _TEXT_DECAY = 0.02, 0.01
_LEAST_SHARE: Final = 0.01  # of the learning rate, at the end of a phase

_KINDS: Final = ("caption", "soft", "phrase", "local", "faithful")
"""The losses of matching, in the order of `PhotoTraining._match`, with the weights that a phase gives them."""

_FIT_TEXTS: Final = 8_000  # that the first projection beside the images is fitted on


class Distillation(Settings):
    """A part of the training in which the text tower learns to give another's vectors."""

    kind: Literal["distil"] = "distil"
    name: str
    target: Literal["teacher", "bridge"]  # the text teacher's vectors, or those that the bridge makes of them
    steps: int  # captions and phrases in turn
    captions: int = 192  # of a step
    phrases: int = 384  # of a step
    matrix_lr: float = 3e-3  # Muon's, for the matrices of the blocks
    other_lr: float = 2e-3  # AdamW's, for everything else


class Matching(Settings):
    """A part of the training in which images and texts are matched."""

    kind: Literal["match"] = "match"
    name: str
    texts: Literal["bridge", "tower"]  # embeds the texts: from the teacher's vectors, or the tower that is kept
    steps: int
    batch: int = 192  # photographs of a step
    window: int = GRID  # side of the window of the grid that is looked at, at a random place: a crop that saves time
    keep: int = 64  # tokens of the window that reach the head; patch dropout
    trained_blocks: int = 0  # of the network's last blocks; with 0 its last convolution is fixed, too
    tail_lr: float = 1e-4  # of the network's own weights
    head_lr: float = 1e-3  # of the neck, the pooling and the bridge
    text_lr: float = 5e-4  # of the text tower
    weight_decay: float = 0.1  # of the matrices of the neck, the pooling and the bridge
    caption_weight: float = 0.5  # of the loss between photographs and captions
    soft_weight: float = 0.0  # of the same with the teacher's similarities as soft targets
    phrase_weight: float = 1.0  # of the loss between photographs and phrases
    local_weight: float = 1.5  # of the loss between tokens and phrases
    faithful_weight: float = 2.0  # of the text tower's distance to the bridge's vectors


Phase = Annotated[Distillation | Matching, Field(discriminator="kind")]

DEFAULT_PHASES: Final[tuple[Distillation | Matching, ...]] = (
    Distillation(name="words", target="teacher", steps=1300),
    Matching(name="head", texts="bridge", steps=100, batch=256, keep=20, head_lr=2e-3, weight_decay=0.2),
    Matching(name="tail", texts="bridge", steps=350, window=12, trained_blocks=4),
    Distillation(name="bridge", target="bridge", steps=100, matrix_lr=2e-3, other_lr=1e-3),
    Matching(
        name="joint", texts="tower", steps=320, window=12, trained_blocks=4, tail_lr=7e-5, head_lr=7e-4, soft_weight=0.5
    ),
)
"""The text tower learns words; new parts learn beside a fixed network; the network's end learns too; the text tower
takes the bridge's place; all learn together."""


class PhotoConfig(Settings):
    """Everything that decides the weights, apart from library versions, the processor and the number of threads."""

    seed: int = 0  # of the initial weights and of every random choice
    held_out: int = 500  # last training photographs, left out so that calibrations can be fitted on them
    variants: int = 4  # of each photograph; 0.4 GB of the run's folder each
    phrases_per_photo: int = 3  # that each photograph adds to the batch's bank
    similar_captions: float = 0.8  # captions whose teacher vectors have a higher cosine are no negatives
    similar_phrases: float = 0.6  # phrases with a higher cosine to one of a photograph are no negatives of it
    softness: float = 0.1  # temperature of the teacher's cosines in the soft targets
    average_decay: float = 0.99  # per step, of the averaged weights, which are exported
    phases: tuple[Phase, ...] = DEFAULT_PHASES


def train_photo(config: PhotoConfig, root: Path, out: Path, *, checkpoint_every_s: float = 180.0) -> Path:
    """Train the photograph model, or resume the training in a folder. Return the last checkpoint.

    Features and the teacher's vectors are computed once and kept in the folder. Matrices are multiplied in bf16 on a
    CPU with instructions for it, else in fp32. Raise InputError if photographs under `root` are missing or damaged,
    ConfigError if a package that brings weights is not installed, and WeightsError if it holds others.
    """
    folder = TrainingFolder(out)
    torch.manual_seed(config.seed)
    features = load_imagenet()
    material = prepare(config, root, out, features)
    model = CLIP(**architecture(MODEL_CFG, material.tokenizer, GRID * STRIDE_PX))
    model.visual.trunk.features.eval().load_state_dict(features.state_dict())
    training = PhotoTraining(material, model, folder, checkpoint_every_s)
    if (saved := folder.read_checkpoint()) is not None:
        training.resume(saved)
    training.run()
    return out / LATEST


class PhotoTraining(TrainingRun):
    """A training of `photo`."""

    log_every = 20

    def __init__(self, material: Material, model: CLIP, folder: TrainingFolder, checkpoint_every_s: float) -> None:
        self.config = material.config
        super().__init__(folder, [phase.steps for phase in self.config.phases], checkpoint_every_s, RankGroup())
        self.material, self.model = material, model
        self.kind = PRECISIONS[fast_precision(torch.device("cpu"))]
        self.bridge, self.scales = Bridge(int(model.visual.head.pool.out_features)), Scales()
        self.average = copy.deepcopy(self._modules())  # the moving average of everything that learns
        self.optimisers = Optimisers([])
        self._saved_optimisers: list[Any] = []

    def _modules(self) -> nn.ModuleDict:
        return nn.ModuleDict({"model": self.model, "bridge": self.bridge, "scales": self.scales})

    def begin(self, phase: int, *, is_new: bool) -> None:
        """Begin with the average of the phase before; a distillation gets a projection of its target's width."""
        settings = self.config.phases[phase]
        if is_new:
            if phase > 0:
                self._modules().load_state_dict(self.average.state_dict())
            if isinstance(settings, Distillation):
                self.model.text_projection = nn.Parameter(self._fitted_projection(settings.target))
            self.average = copy.deepcopy(self._modules()).requires_grad_(False)
        self.optimisers = self._make_optimisers(settings)
        if not is_new:
            self.optimisers.restore(self._saved_optimisers)

    @torch.no_grad()
    def _fitted_projection(self, target: str) -> Tensor:
        """Return the projection of the text tower that comes nearest to the wanted vectors, by least squares."""
        rng = np.random.default_rng([self.config.seed, 7])
        size = min(_FIT_TEXTS, len(self.material.texts.texts))
        chosen = torch.from_numpy(rng.choice(len(self.material.texts.texts), size, replace=False))
        width = int(self.model.ln_final.normalized_shape[0])
        self.model.text_projection = nn.Parameter(torch.eye(width))
        x = torch.cat([encode_text(self.model, self.material.tokens[part]) for part in chosen.split(500)])
        x = x * math.sqrt(width)  # the length of a layer norm's output
        ridge = 1e-2 * len(x) * torch.eye(width)
        fitted: Tensor = torch.linalg.solve(x.T @ x + ridge, x.T @ self._wanted(chosen, target))
        return fitted

    def _wanted(self, places: Tensor, target: str) -> Tensor:
        """Return the vectors that texts should have, length 1."""
        vectors = self.material.vectors[places]
        if target == "teacher":
            return F.normalize(vectors, dim=-1)
        self.bridge.eval()
        with torch.no_grad():
            made: Tensor = self.bridge(vectors)
        self.bridge.train()
        return made

    def _make_optimisers(self, phase: Distillation | Matching) -> Optimisers:
        """Make the optimisers of the phase's parameters, and let only these have gradients."""
        self._modules().requires_grad_(False)
        text = {name: value for name, value in self.model.named_parameters() if not name.startswith("visual.")}
        text.pop("logit_scale", None)
        if isinstance(phase, Distillation):
            rates = {"matrix_lr": phase.matrix_lr, "matrix_decay": 0.05, "other_lr": phase.other_lr}
            optimisers = Optimisers(muon_and_adamw(text.items(), **rates))
        else:
            optimisers = Optimisers([torch.optim.AdamW(self._groups(phase, list(text.values())), betas=(0.9, 0.98))])
        for value in chain(*optimisers.groups):
            value.requires_grad_(True)
        return optimisers

    def _groups(self, phase: Matching, text: list[nn.Parameter]) -> list[dict[str, Any]]:
        trunk = self.model.visual.trunk
        head = [*trunk.neck.parameters(), *self.model.visual.head.parameters(), *self.scales.parameters()]
        groups = []
        if phase.texts == "tower":
            groups.append({"params": text, "lr": phase.text_lr, "weight_decay": _TEXT_DECAY})
        else:
            head += list(self.bridge.parameters())
        if phase.trained_blocks:
            tail = [trunk.features.conv_head.weight, trunk.features.bn2.bias]
            for block in tail_blocks(trunk.features)[-phase.trained_blocks :]:
                tail += [block.conv_pw.weight, block.bn1.bias, block.conv_pwl.weight, block.bn3.bias]
            groups.append({"params": tail, "lr": phase.tail_lr, "weight_decay": _TAIL_DECAY})
        for is_matrix, decay in ((True, phase.weight_decay), (False, 0.0)):
            values = [value for value in head if (value.ndim >= 2) == is_matrix]
            groups.append({"params": values, "lr": phase.head_lr, "weight_decay": decay})
        return groups

    def take_step(self, phase: int, step: int) -> dict[str, Tensor]:
        """See `TrainingRun.take_step`."""
        settings = self.config.phases[phase]
        torch.manual_seed((self.config.seed * 1_000 + phase) * 1_000_003 + step)  # decides the dropout
        with torch.autocast("cpu", dtype=self.kind, enabled=self.kind != torch.float32):
            if isinstance(settings, Distillation):
                loss = self._distil(settings, phase, step)
                losses = {"distillation_loss": loss.detach()}
            else:
                parts = self._match(settings, self.material.batch(settings, phase, step))
                loss = parts @ torch.tensor([getattr(settings, f"{name}_weight") for name in _KINDS])
                losses = {f"{name}_loss": part for name, part in zip(_KINDS, parts.detach(), strict=True)}
        self.optimisers.back(loss)
        for group in self.optimisers.groups:
            nn.utils.clip_grad_norm_(group, 1.0)
        self.changing()
        self.optimisers.step(min(1.0, (step + 1) / _WARMUP_STEPS) * _decline(settings, step) + _LEAST_SHARE)
        follow(self.average, self._modules(), step, self.config.average_decay)
        return losses

    def _distil(self, phase: Distillation, number: int, step: int) -> Tensor:
        """Take captions and phrases in turn."""
        rng = np.random.default_rng([self.config.seed, number, step])
        captions, texts = self.material.texts.captions, len(self.material.texts.texts)
        first, last, size = (captions, texts, phase.phrases) if step % 2 else (0, captions, phase.captions)
        places = torch.from_numpy(rng.integers(first, max(last, first + 1), size).clip(max=texts - 1))
        y = encode_text(self.model, self.material.tokens[places]).float()
        return distillation_loss(y, self._wanted(places, phase.target))

    def _match(self, phase: Matching, batch: PhotoBatch) -> Tensor:
        """Return the losses in the order of `_KINDS`."""
        window: dict[str, Any] = {"corner": batch.corner, "keep": batch.keep, "precision": self.kind}
        seen = look(self.model, batch.front, trained_blocks=phase.trained_blocks, **window)
        captions, phrases, unfaithful = self._embed(phase, batch)
        of_captions, of_phrases, of_tokens = self.scales()
        whole, own = seen.whole.float(), torch.eye(len(captions), dtype=torch.bool)
        logits = of_captions * captions @ whole.T
        alike = self.material.similarity(batch.captions) / self.config.softness
        local = local_logits(phrases, seen.tokens, of_tokens).float()
        of_whole, soft = matching_loss(logits, own, batch.same_caption), soft_matching_loss(logits, alike)
        by_phrase = matching_loss(of_phrases * phrases @ whole.T, batch.belongs, batch.near)
        return torch.stack([of_whole, soft, by_phrase, matching_loss(local, batch.belongs, batch.near), unfaithful])

    def _embed(self, phase: Matching, batch: PhotoBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Embed captions (B, E) and phrases (P, E); also return their distance from the bridge's vectors."""
        parts = (batch.captions, batch.phrases)
        if phase.texts == "bridge":
            captions, phrases = self.bridge(self.material.vectors[torch.cat(parts)]).float().split([*map(len, parts)])
            return captions, phrases, torch.zeros(())
        made = [encode_text(self.model, self.material.tokens[places]).float() for places in parts]
        near = [(own * self._wanted(places, "bridge")).sum(dim=-1) for own, places in zip(made, parts, strict=True)]
        return made[0], made[1], 2.0 - near[0].mean() - near[1].mean()

    def line(self, phase: int, step: int) -> dict[str, Any]:
        """See `TrainingRun.line`. `step` counts within the phase."""
        precision = str(self.kind).removeprefix("torch.")
        cpu_s = round(time.process_time(), 1)
        return {"phase": self.config.phases[phase].name, "step": step, "precision": precision, "cpu_s": cpu_s}

    def state(self) -> dict[str, Any]:
        """See `TrainingRun.state`."""
        return {
            "photographs": self.material.photographs,
            "texts": len(self.material.texts.texts),
            "config": self.config.model_dump(mode="json"),
            "state": self._modules().state_dict(),
            "average": self.average.state_dict(),
            "optimisers": self.optimisers.state(),
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """See `TrainingRun.restore`. The projection's width says which vectors the text tower was learning."""
        projection = saved["state"]["model.text_projection"]
        self.model.text_projection = nn.Parameter(projection.clone())
        self.average = copy.deepcopy(self._modules()).requires_grad_(False)
        self._modules().load_state_dict(saved["state"])
        self.average.load_state_dict(saved["average"])
        self._saved_optimisers = saved["optimisers"]


def _decline(phase: Distillation | Matching, step: int) -> float:
    """Return the share of the learning rate: straight down for distillation, a half cosine for matching."""
    done = step / phase.steps
    return 1.0 - done if isinstance(phase, Distillation) else 0.5 + 0.5 * math.cos(math.pi * done)
