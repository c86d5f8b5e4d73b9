"""The training loop of the photograph model: its phases, log lines, checkpoints, and going on from one."""

from __future__ import annotations

import copy
import json
import math
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from torch import Tensor, nn

from pipeline.training.model import encode_text
from pipeline.training.photo.config import Distillation, Matching, PhotoConfig
from pipeline.training.photo.imagenet import load_imagenet, tail_blocks
from pipeline.training.photo.material import Material, PhotoBatch, prepare
from pipeline.training.photo.model import (
    Bridge,
    Scales,
    distillation_loss,
    local_logits,
    look,
    matching_loss,
    model_cfg,
    soft_matching_loss,
)
from stages.shared.model.device import PRECISIONS, fast_precision
from stages.shared.model.towers.photo_trunk import PhotoTrunk

LATEST_FILE: Final = "latest.pt"
LOG_FILE: Final = "log.jsonl"
_LOG_EVERY_STEPS: Final = 20
_WARMUP_STEPS: Final = 40
_TAIL_DECAY: Final = 0.02
_TEXT_DECAY: Final = 0.01
_LEAST_SHARE: Final = 0.01
"""Of the learning rate at the end of a phase."""

_KINDS: Final = ("caption", "soft", "phrase", "local", "faithful")
"""The losses of matching, in the order of `PhotoRun._match`, with the weights that a phase gives them."""

_FIT_TEXTS: Final = 8_000
"""Texts that the first projection beside the images is fitted on."""


def train_photo(
    config: PhotoConfig, root: Path, out: Path, *, checkpoint_every_s: float = 180.0, resume: bool = False
) -> Path:
    """Train the photograph model, or go on with a run.

    What is computed once (features, the teacher's vectors) is kept in the run's folder and used again. Matrices are
    multiplied in bf16 on a CPU with instructions for it, else in fp32.

    Args:
        config: What to do.
        root: Folder of the photographs.
        out: Folder for everything that the run writes.
        checkpoint_every_s: Seconds of wall time between checkpoints; 0 for only the last of each phase.
        resume: Whether to go on from the checkpoint in `out`.

    Returns:
        The last checkpoint, `out/latest.pt`.

    Raises:
        InputError: Photographs are missing or damaged.
        ConfigError: A package that brings weights to begin with is not installed.
        WeightsError: Such a package holds other weights.
    """
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    features = _features()
    material = prepare(config, root, out, features)
    model = CLIP(**model_cfg(material.tokenizer))
    model.visual.trunk.features.load_state_dict(features.state_dict())
    run = PhotoRun(material=material, model=model, out=out, checkpoint_every_s=checkpoint_every_s)
    if resume:
        run.resume(out / LATEST_FILE)
    run.run()
    return out / LATEST_FILE


def _features() -> nn.Module:
    """The ImageNet network at stride 16, in evaluation mode."""
    features: nn.Module = PhotoTrunk().features.eval()
    load_imagenet(features)
    return features


@dataclass(kw_only=True)
class PhotoRun:
    """A run: first what stays the same from step to step, then what changes.

    Attributes:
        material: What it learns from.
        model: The model, its norms folded.
        out: The run's folder.
        checkpoint_every_s: Seconds of wall time between checkpoints.
        precision: The one that matrices are multiplied in, see `stages.shared.model.device`.
        bridge: From the teacher's vectors to the images.
        scales: Factors of the losses.
        average: Moving average of everything that learns.
        phase: Number of the phase that is under way.
        step: Steps taken in it.
        log: All log lines.
    """

    material: Material
    model: CLIP
    out: Path
    checkpoint_every_s: float
    precision: str = field(default_factory=lambda: fast_precision(torch.device("cpu")))
    bridge: Bridge = field(init=False)
    scales: Scales = field(init=False)
    average: nn.ModuleDict = field(init=False)
    phase: int = 0
    step: int = 0
    log: list[dict[str, Any]] = field(default_factory=list)
    _optimisers: list[torch.optim.Optimizer] = field(default_factory=list)
    _saved_optimisers: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.bridge, self.scales = Bridge(self._embed_dim), Scales()
        self.average = copy.deepcopy(self._modules())

    @property
    def _embed_dim(self) -> int:
        return int(self.model.visual.head.pool.out_features)

    def _modules(self) -> nn.ModuleDict:
        return nn.ModuleDict({"model": self.model, "bridge": self.bridge, "scales": self.scales})

    def resume(self, checkpoint: Path) -> None:
        """Everything as it was."""
        saved: dict[str, Any] = torch.load(checkpoint, weights_only=True)
        self.phase, self.step, self.log = saved["phase"], saved["step"], saved["log"]
        # The projection's width says which vectors the text tower was learning.
        projection = nn.Parameter(saved["state"]["model.text_projection"].clone())
        self.model.text_projection = projection
        self.average["model"].text_projection = nn.Parameter(projection.detach().clone())
        self._modules().load_state_dict(saved["state"])
        self.average.load_state_dict(saved["average"])
        self._saved_optimisers = saved["optimisers"]

    def run(self) -> None:
        """Take the steps of all phases that are not taken yet."""
        for number in range(self.phase, len(self.material.config.phases)):
            self._run_phase(number)

    def _run_phase(self, number: int) -> None:
        phase = self.material.config.phases[number]
        if self.phase != number or self.step == 0:
            self.phase, self.step = number, 0
            self._begin(phase)
        torch.manual_seed(self.material.config.seed * 1_000 + number)
        self._optimisers = self._make_optimisers(phase)
        for optimiser, values in zip(self._optimisers, self._saved_optimisers, strict=False):
            optimiser.load_state_dict(values)
        self._saved_optimisers = []
        losses: list[Tensor] = []
        last_saved = last_logged = time.monotonic()
        cpu = time.process_time()
        while self.step < phase.steps:
            share = min(1.0, (self.step + 1) / _WARMUP_STEPS) * _decline(phase, self.step) + _LEAST_SHARE
            torch.manual_seed((self.material.config.seed * 1_000 + number) * 1_000_003 + self.step)  # of the dropout
            losses.append(self._take_step(phase, number, share))
            self.step += 1
            ended = self.step == phase.steps
            if self.step % _LOG_EVERY_STEPS and not ended:
                continue
            now = time.monotonic()
            self._write_line(phase, losses, seconds=now - last_logged, cpu_s=time.process_time() - cpu)
            losses, last_logged, cpu = [], now, time.process_time()
            if ended or 0 < self.checkpoint_every_s < now - last_saved:
                self.save()
                last_saved = last_logged = time.monotonic()

    def _begin(self, phase: Distillation | Matching) -> None:
        """Go on from the moving average of the phase before; a distillation gets a projection of its target's width."""
        if self.phase > 0:
            self._modules().load_state_dict(self.average.state_dict())
        if isinstance(phase, Distillation):
            self.model.text_projection = nn.Parameter(self._fitted_projection(phase.target))
        self.average = copy.deepcopy(self._modules()).requires_grad_(False)

    @torch.no_grad()
    def _fitted_projection(self, target: str) -> Tensor:
        """The projection of the text tower that comes nearest to the wanted vectors, by least squares."""
        rng = np.random.default_rng([self.material.config.seed, 7])
        size = min(_FIT_TEXTS, len(self.material.texts.texts))
        chosen = torch.from_numpy(rng.choice(len(self.material.texts.texts), size, replace=False))
        width = int(self.model.ln_final.normalized_shape[0])
        self.model.text_projection = nn.Parameter(torch.eye(width))
        x = torch.cat([encode_text(self.model, self.material.tokens[part]) for part in chosen.split(500)])
        x = x * math.sqrt(width)  # what a layer norm gives has this length
        wanted = self._wanted(chosen, target)
        ridge = 1e-2 * len(x) * torch.eye(width)
        fitted: Tensor = torch.linalg.solve(x.T @ x + ridge, x.T @ wanted)
        return fitted

    def _wanted(self, places: Tensor, target: str) -> Tensor:
        """The vectors that texts should have, length 1."""
        vectors = self.material.vectors[places]
        if target == "teacher":
            return F.normalize(vectors, dim=-1)
        self.bridge.eval()
        with torch.no_grad():
            made: Tensor = self.bridge(vectors)
        self.bridge.train()
        return made

    def _make_optimisers(self, phase: Distillation | Matching) -> list[torch.optim.Optimizer]:
        """For the phase's parameters; each group holds its full learning rate under "full_lr"."""
        self._modules().requires_grad_(False)
        text = {name: value for name, value in self.model.named_parameters() if not name.startswith("visual.")}
        text.pop("logit_scale", None)
        optimisers: list[torch.optim.Optimizer] = []
        if isinstance(phase, Distillation):
            matrices = [value for name, value in text.items() if ".resblocks." in name and value.ndim == 2]
            others = [value for name, value in text.items() if not (".resblocks." in name and value.ndim == 2)]
            optimisers = [
                torch.optim.Muon(matrices, lr=phase.matrix_lr, weight_decay=0.05),
                torch.optim.AdamW(others, lr=phase.other_lr, betas=(0.9, 0.98), weight_decay=0.0),
            ]
        else:
            optimisers = [torch.optim.AdamW(self._groups(phase, list(text.values())), betas=(0.9, 0.98))]
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["full_lr"] = group["lr"]
                for value in group["params"]:
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
        matrices = [value for value in head if value.ndim >= 2]
        groups.append({"params": matrices, "lr": phase.head_lr, "weight_decay": phase.weight_decay})
        groups.append({"params": [v for v in head if v.ndim < 2], "lr": phase.head_lr, "weight_decay": 0.0})
        return groups

    def _take_step(self, phase: Distillation | Matching, number: int, share: float) -> Tensor:
        """One optimiser step; returns the losses by kind."""
        for optimiser in self._optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["full_lr"] * share
            optimiser.zero_grad()
        kind = PRECISIONS[self.precision]
        with torch.autocast("cpu", dtype=kind, enabled=kind != torch.float32):
            if isinstance(phase, Distillation):
                losses = self._distil(phase, number)
                loss = losses.sum()
            else:
                batch = self.material.batch(phase, number, self.step)
                losses, loss = self._match(phase, batch)
        loss.backward()
        for optimiser in self._optimisers:
            for group in optimiser.param_groups:
                nn.utils.clip_grad_norm_(group["params"], 1.0)
            optimiser.step()
        decay = min(self.material.config.average_decay, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            for mean, value in zip(self.average.parameters(), self._modules().parameters(), strict=True):
                mean.lerp_(value, 1.0 - decay)
        return losses.detach()

    def _distil(self, phase: Distillation, number: int) -> Tensor:
        """Captions and phrases in turn."""
        rng = np.random.default_rng([self.material.config.seed, number, self.step])
        captions, texts = self.material.texts.captions, len(self.material.texts.texts)
        first, last, size = (captions, texts, phase.phrases) if self.step % 2 else (0, captions, phase.captions)
        places = torch.from_numpy(rng.integers(first, max(last, first + 1), size).clip(max=texts - 1))
        y = encode_text(self.model, self.material.tokens[places]).float()
        return distillation_loss(y, self._wanted(places, phase.target))[None]

    def _match(self, phase: Matching, batch: PhotoBatch) -> tuple[Tensor, Tensor]:
        seen = look(
            self.model,
            batch.front,
            corner=batch.corner,
            keep=batch.keep,
            trained_blocks=phase.trained_blocks,
            precision=PRECISIONS[self.precision],
        )
        captions, phrases, unfaithful = self._embed(phase, batch)
        of_captions, of_phrases, of_tokens = self.scales()
        own = torch.eye(len(captions), dtype=torch.bool)
        whole = seen.whole.float()
        logits = of_captions * captions @ whole.T
        alike = self.material.similarity(batch.captions) / self.material.config.softness
        losses = torch.stack(
            [
                matching_loss(logits, own, batch.same_caption),
                soft_matching_loss(logits, alike),
                matching_loss(of_phrases * phrases @ whole.T, batch.belongs, batch.near),
                matching_loss(local_logits(phrases, seen.tokens, of_tokens).float(), batch.belongs, batch.near),
                unfaithful,
            ]
        )
        weights = torch.tensor([getattr(phase, f"{name}_weight") for name in _KINDS])
        return losses, losses @ weights

    def _embed(self, phase: Matching, batch: PhotoBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Captions (B, E), phrases (P, E), and how far both are from the bridge's vectors, 0 for the bridge itself."""
        if phase.texts == "bridge":
            both = self.bridge(self.material.vectors[torch.cat([batch.captions, batch.phrases])]).float()
            captions, phrases = both[: len(batch.captions)], both[len(batch.captions) :]
            return captions, phrases, torch.zeros(())
        pairs = [
            (encode_text(self.model, self.material.tokens[places]).float(), self._wanted(places, "bridge"))
            for places in (batch.captions, batch.phrases)
        ]
        unfaithful = sum((1.0 - (mine * wanted).sum(dim=-1)).mean() for mine, wanted in pairs)
        return pairs[0][0], pairs[1][0], torch.as_tensor(unfaithful)

    def _write_line(
        self, phase: Distillation | Matching, losses: list[Tensor], *, seconds: float, cpu_s: float
    ) -> None:
        means = torch.stack(losses).mean(dim=0).tolist()
        names = ("distillation",) if isinstance(phase, Distillation) else _KINDS
        line: dict[str, Any] = {"phase": phase.name, "step": self.step}
        line |= {"seconds": round(seconds, 1), "cpu_s": round(cpu_s, 1)}
        line |= {f"{name}_loss": round(value, 4) for name, value in zip(names, means, strict=True)}
        line["precision"] = self.precision
        self.log.append(line)
        with (self.out / LOG_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)

    def save(self) -> None:
        """Write the checkpoint; a run that is stopped meanwhile leaves the one before."""
        temporary = self.out / f"{LATEST_FILE}.tmp"
        torch.save(
            {
                "phase": self.phase,
                "step": self.step,
                "log": self.log,
                "photographs": self.material.photographs,
                "texts": len(self.material.texts.texts),
                "config": self.material.config.model_dump(mode="json"),
                "state": self._modules().state_dict(),
                "average": self.average.state_dict(),
                "optimisers": [optimiser.state_dict() for optimiser in self._optimisers],
            },
            temporary,
        )
        os.replace(temporary, self.out / LATEST_FILE)


def _decline(phase: Distillation | Matching, step: int) -> float:
    """Share of the learning rate: straight down for distillation, a half cosine for matching."""
    done = step / phase.steps
    return 1.0 - done if isinstance(phase, Distillation) else 0.5 + 0.5 * math.cos(math.pi * done)
