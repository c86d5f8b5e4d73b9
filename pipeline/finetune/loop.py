"""The training: steps, schedule, checkpoints, and the model at the end."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import InitVar, dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from pipeline.finetune import RECIPES
from pipeline.finetune.card import card_of
from pipeline.finetune.config import FinetuneConfig
from pipeline.finetune.files import TuningFolder, refuse_unwritable
from pipeline.finetune.material import TrainingBatch, TuningData, refuse_long_phrases
from pipeline.finetune.ranks import RankGroup, joined
from pipeline.finetune.recipes.base import Recipe
from pipeline.finetune.student import Student
from stages.contract.errors import ConfigError, InputError, ResumeError
from stages.shared.model.clip import ClipModel
from stages.shared.model.device import PRECISIONS, pick_device, warn_of_slow_precision
from stages.shared.model.load import fetch_files, from_open_clip, module_of, usable_model
from stages.shared.model.recognise import Described
from stages.shared.model.tokenizer import tokenizer_of

OnStep = Callable[[int, int], None]
"""Called on the leading rank after each step, with the number of steps that are done and of all."""

LOG_EVERY: Final = 10
"""Steps of a line of the log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """What a fine-tuning came to.

    Attributes:
        model: folder of the tuned model.
        steps: that were taken, those before this start among them.
        images: of the dataset.
        bad_images: images of this start that could not be read and were left out, counted each time.
        losses: of the last line of the log.
        seconds: of this start.
    """

    model: Path
    steps: int
    images: int
    bad_images: int
    losses: dict[str, float]
    seconds: float


def finetune(config: FinetuneConfig, on_step: OnStep | None = None, say: Callable[[str], None] | None = None) -> Tuned:
    """Fine-tune a model on a dataset, or go on with what an earlier call began in `config.out`.

    In a group of processes (torchrun, or one that is initialised, as Ray Train does it) each call is one rank, and the
    losses are those of one process with the whole batch, up to rounding.

    Args:
        config: all settings.
        on_step: see `OnStep`.
        say: takes what a person should know before the training begins.

    Raises:
        ConfigError, WeightsError, ResourceError: the model or a setting cannot be used.
        InputError: the dataset cannot be read, or holds nothing to learn from.
        ResumeError: the folder holds another training, or a damaged checkpoint.
        OutputError: the folder cannot be written; the checkpoints before are kept.
    """
    device = pick_device(config.model.device)
    with joined(device) as ranks:
        with ranks.together():
            if config.batch_size < ranks.size:
                raise ConfigError(
                    f"batch_size: {config.batch_size} images a step are fewer than the {ranks.size} ranks"
                )
            model = usable_model(config.model)
            material, tokenizer = _checked(config, model, device)
            if model.pretrained is not None and ranks.leads:
                fetch_files(model.name, model.pretrained, say or (lambda _: None))
            saved = TuningFolder(config.out).read_checkpoint() if ranks.leads else None
        saved = ranks.broadcast(saved)
        with ranks.together():
            training = Training(config, model, tokenizer, device, ranks, material, saved)
        if say is not None and ranks.leads:
            say(training.described())
        return training.run(on_step)


def _checked(config: FinetuneConfig, model: Described, device: torch.device) -> tuple[TuningData, Any]:
    """The dataset and the tokenizer of a training that can begin. Raises as `finetune`."""
    refuse_unwritable(model)
    if config.model.precision == "fp16":
        raise ConfigError("model.precision: gradients are too small for fp16; take bf16, or fp32")
    warn_of_slow_precision(config.model.precision, device)
    if config.model.threads is not None and device.type == "cpu":
        torch.set_num_threads(config.model.threads)
    recipe = RECIPES[config.recipe.kind]
    side_px = model.input.size_px * recipe.enlarged
    material = TuningData(config.data, side_px=side_px, seed=config.seed, batch_size=config.batch_size)
    tokenizer = tokenizer_of(model)
    if recipe.needs_regions:
        phrases = material.phrases()
        if not phrases:
            raise InputError(
                f"{config.data.path} has no regions to learn from{_chosen(config)}: lower data.min_score or "
                "data.where, or take a recipe that needs none: clim, clipself, captions"
            )
        refuse_long_phrases(phrases, tokenizer)
    return material, tokenizer


def _chosen(config: FinetuneConfig) -> str:
    parts = [f"a score of {config.data.min_score} or more"] if config.data.min_score else []
    parts += [f"the condition {config.data.where}"] if config.data.where else []
    return f" with {' and '.join(parts)}" if parts else ""


@dataclass
class Training:
    """A training on one rank; see `finetune` for the arguments.

    Raises ResumeError if `saved`, the checkpoint that the leading rank read, is another training's.
    """

    config: FinetuneConfig
    model: Described
    tokenizer: Any
    device: torch.device
    ranks: RankGroup
    material: TuningData
    saved: InitVar[dict[str, Any] | None]
    folder: TuningFolder = field(init=False)
    student: Student = field(init=False)
    recipe: Recipe[Any] = field(init=False)
    optimiser: torch.optim.Optimizer = field(init=False)
    step: int = field(default=0, init=False)
    _is_half_done: bool = field(default=False, init=False)
    _unlogged: list[dict[str, Tensor]] = field(default_factory=list, init=False)
    _means: dict[str, float] = field(default_factory=dict, init=False)
    _logged: int = field(default=0, init=False)

    def __post_init__(self, saved: dict[str, Any] | None) -> None:
        config = self.config
        self.folder = TuningFolder(config.out)
        if saved is not None and saved["decides"] != self._decides():
            raise ResumeError(
                f"{config.out} holds a training with other settings ({', '.join(self._differing(saved['decides']))}): "
                "give another --out, or begin anew with --fresh"
            )
        module = module_of(self.model).float().to(self.device)
        self._start_state = {name: value.detach().clone() for name, value in module.state_dict().items()}
        self._most_scale = max(math.log(100), module.logit_scale.item())  # CLIP's bound; some begin above it
        start = self._frozen(module) if RECIPES[config.recipe.kind].needs_start else None
        for name, parameter in module.named_parameters():
            of_images = name.startswith("visual.") or name == "logit_scale"
            learns = config.recipe.learns == "all" or of_images
            parameter.requires_grad_(learns and not name.startswith(config.frozen))
        if not any(parameter.requires_grad for parameter in module.parameters()):
            raise ConfigError(f"frozen: nothing is left to learn of {self.model.name}")
        self.student = Student.of(module, self.tokenizer, self.model.input)
        self.recipe = RECIPES[config.recipe.kind](config.recipe, self.student, start)
        for _, parameter in self.recipe.own_parameters():
            parameter.data = parameter.data.to(self.device)
        self.optimiser = self._optimiser()
        self._last_saved = time.monotonic()
        if saved is not None:
            self._resume(saved)

    @property
    def steps(self) -> int:
        """Of the whole training."""
        return max(1, round(self.config.epochs * self.material.steps_per_epoch))

    def described(self) -> str:
        """What is about to happen, for people."""
        config, material = self.config, self.material
        learning = sum(parameter.numel() for _, parameter in self._parameters())
        begins = f"goes on from step {self.step:,}" if self.step else "begins"
        together = f" on {self.ranks.size} ranks" if self.ranks.size > 1 else ""
        return (
            f"{self.model.name} {begins} with recipe {config.recipe.kind}: {material.images:,} images, "
            f"{self.steps:,} steps of {config.batch_size}{together}, {learning / 1e6:.1f} million weights learn, "
            f"products in {config.model.precision} on {self.device}"
        )

    def run(self, on_step: OnStep | None) -> Tuned:
        """Take the steps that are not taken yet, and write the model."""
        begun = time.monotonic()
        try:
            remaining = range(self.step, self.steps)
            batches = self.material.batches(remaining, self.ranks.rank, self.ranks.size)
            for _ in remaining:
                with self.ranks.together():
                    batch = next(batches)
                self._take_step(batch)
                if self.step % LOG_EVERY == 0 or self.step == self.steps:
                    self._log()
                if on_step is not None and self.ranks.leads:
                    on_step(self.step, self.steps)
                if time.monotonic() - self._last_saved >= self.config.checkpoint_every_s:
                    self.save()
        except KeyboardInterrupt:
            if not self._is_half_done:
                self.save()
            raise
        self.save()
        folder = self.config.out
        if self.ranks.leads:
            folder = self._write_model()
        self.ranks.wait()
        return Tuned(
            model=folder,
            steps=self.step,
            images=self.material.images,
            bad_images=self.material.bad_images,
            losses=self._means,
            seconds=time.monotonic() - begun,
        )

    def save(self) -> None:
        """Write a checkpoint, on the leading rank."""
        self._last_saved = time.monotonic()
        if not self.ranks.leads:
            return
        self.folder.write_checkpoint(
            {
                "step": self.step,
                "decides": self._decides(),
                "log_bytes": self._logged,
                "unlogged": self._unlogged,
                "model": self.student.module.state_dict(),
                "recipe": {name: value.detach() for name, value in self.recipe.own_parameters()},
                "optimiser": self.optimiser.state_dict(),
            }
        )

    def _resume(self, saved: dict[str, Any]) -> None:
        self.student.module.load_state_dict(saved["model"])
        with torch.no_grad():
            for name, parameter in self.recipe.own_parameters():
                parameter.copy_(saved["recipe"][name])
        self.optimiser.load_state_dict(saved["optimiser"])
        self.step = saved["step"]
        self._logged, self._unlogged = saved["log_bytes"], saved["unlogged"]
        if self.ranks.leads:
            self.folder.cut_log(saved["log_bytes"])

    def _decides(self) -> dict[str, Any]:
        return {**self.config.decides(), "images": self.material.images}

    def _differing(self, other: dict[str, Any]) -> list[str]:
        own = self._decides()
        return sorted(key for key in {*own, *other} if own.get(key) != other.get(key))

    def _frozen(self, module: Any) -> ClipModel:
        """The model as it is now, whose weights stay."""
        copied = copy.deepcopy(module).eval().requires_grad_(False)
        spec, name = self.model.input, self.model.name
        return from_open_clip(copied, self.tokenizer, spec, name=name)

    def _parameters(self) -> list[tuple[str, nn.Parameter]]:
        own = self.recipe.own_parameters()
        return [*((n, p) for n, p in self.student.module.named_parameters() if p.requires_grad), *own]

    def _optimiser(self) -> torch.optim.Optimizer:
        config, named = self.config, self._parameters()
        matrices = [parameter for _, parameter in named if parameter.ndim > 1]
        others = [parameter for _, parameter in named if parameter.ndim <= 1]
        groups = [
            {"params": matrices, "weight_decay": config.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98), eps=1e-6)

    def _rate(self) -> float:
        """Share of the learning rate at this step."""
        warm = min(1.0, (self.step + 1) / max(1, self.config.warmup_steps))
        return warm * 0.5 * (1 + math.cos(math.pi * self.step / self.steps))

    def _take_step(self, batch: TrainingBatch) -> None:
        config = self.config
        for group in self.optimiser.param_groups:
            group["lr"] = config.learning_rate * self._rate()
        precision = PRECISIONS[config.model.precision]
        with torch.autocast(self.device.type, dtype=precision, enabled=precision != torch.float32):
            terms = self.recipe.terms(batch, self.ranks)
        loss = sum((weight * term for weight, term in terms.values()), torch.zeros((), device=self.device))
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        parameters = [parameter for _, parameter in self._parameters()]
        self.ranks.sum_gradients(parameters)
        nn.utils.clip_grad_norm_(parameters, config.clip_norm)
        self._is_half_done = True
        self.optimiser.step()
        with torch.no_grad():
            self.student.module.logit_scale.clamp_(max=self._most_scale)
        self._unlogged.append({"loss": loss.detach(), **{name: term.detach() for name, (_, term) in terms.items()}})
        self.step += 1
        self._is_half_done = False

    def _log(self) -> None:
        losses, self._unlogged = self._unlogged, []
        means = {name: round(float(torch.stack([each[name].cpu() for each in losses]).mean()), 5) for name in losses[0]}
        self._means = means
        if self.ranks.leads:
            rate = self.optimiser.param_groups[0]["lr"]
            self.folder.log({"step": self.step, "learning_rate": rate, **means})
            self._logged = self.folder.log_bytes()

    def _write_model(self) -> Path:
        """Write the tuned model, mixed with the one that it began with where the settings say so."""
        share, start = self.config.interpolate, self._start_state
        state = {
            name: value
            if share == 1 or not value.is_floating_point()
            else torch.lerp(start[name].float(), value, share)
            for name, value in self.student.module.state_dict().items()
        }
        card = card_of(self.config, self.model, self.material, self.folder.lines(), self.steps)
        return self.folder.write_model(self.model, self.student.module, state, card)
