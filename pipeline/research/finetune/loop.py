"""Fine-tuning from the dataset to the tuned model: `finetune`."""

from __future__ import annotations

import copy
import json
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import save
from torch import Tensor, nn

from phrasebox.pipeline.research.finetune.config import RECIPES, FinetuneConfig
from phrasebox.pipeline.research.finetune.folder import (
    CARD,
    VOCABULARY,
    WEIGHTS,
    WRITTEN_BY,
    TrainingFolder,
)
from phrasebox.pipeline.research.finetune.material import TrainingBatch, TuningData
from phrasebox.pipeline.research.finetune.ranks import RankGroup, join_group
from phrasebox.pipeline.research.finetune.recipe import Student
from phrasebox.pipeline.research.frozen import store_outputs
from phrasebox.stages.contract.errors import (
    ConfigError,
    InputError,
    OutputError,
    ResourceError,
    ResumeError,
    one_line,
)
from phrasebox.stages.contract.values import Json
from phrasebox.stages.model.checkpoints.files import OPEN_CLIP_CONFIG
from phrasebox.stages.model.config import ModelDescription
from phrasebox.stages.model.describe import describe
from phrasebox.stages.model.device import DTYPES, pick_device, warn_of_slow_precision
from phrasebox.stages.model.load import fetch
from phrasebox.stages.model.module import module_of
from phrasebox.stages.model.tokenizer import tokenizer_of
from phrasebox.stages.model.towers.photo_trunk import TRUNK_NAME

OnStep = Callable[[int, int], None]
"""Called on the leading rank after each step, with the number of completed steps and of all."""

WEIGHT_DECAY: Final = 0.1  # AdamW's, of matrices; biases, norms and temperatures have none

CLIP_NORM: Final = 1.0  # longer gradients are shortened to it

LOG_EVERY: Final = 10  # steps between lines of the log; the last step writes a line, too


@dataclass(frozen=True, slots=True, kw_only=True)
class TunedModel:
    """A finished fine-tuning.

    Attributes:
        model: Folder of the tuned model, in the layout of open_clip's push_to_hf_hub.
        steps: Number of steps, including those before the training was resumed.
        images: Number of images in the dataset.
        bad_images: Number of images that this process could not read and left out; repeated
            ones count again.
        full_texts: Number of different phrases and captions that filled the model's context in
            this process; what is behind it was cut.
        losses: Means of the last line of the log, by name.
        seconds: Time of this process.
    """

    model: Path
    steps: int
    images: int
    bad_images: int
    full_texts: int
    losses: dict[str, float]
    seconds: float


def finetune(
    config: FinetuneConfig,
    on_step: OnStep | None = None,
    say: Callable[[str], None] | None = None,
    *,
    fresh: bool = False,
) -> TunedModel:
    """Fine-tune a model on a dataset, or resume the training in `config.out`.

    In a group of processes (of torchrun, or initialised by Ray Train) each call is one rank.
    The losses are equal to those of one process with the whole batch, up to rounding.

    Args:
        config: All settings.
        on_step: See `OnStep`.
        say: Takes a message for people before the first step.
        fresh: Whether a training in `config.out` and its model are replaced, after the first step.

    Raises:
        ConfigError, WeightsError, ResourceError: The model or a setting cannot be used.
        InputError: The dataset cannot be read or has nothing to learn from.
        ResumeError: The folder holds another training, a damaged checkpoint or a foreign `model/`.
        OutputError: The folder cannot be written. Older checkpoints are kept.
    """
    device = pick_device(config.model.device)
    with join_group(device) as ranks:
        with ranks.share_errors():
            description = describe(config.model)
            material = _prepare(config, description, device, ranks.size)
            checkpoint = None
            if ranks.is_leader:
                fetch(description, say or (lambda _: None))
                checkpoint = None if fresh else TrainingFolder(config.out).read_checkpoint()
        checkpoint = ranks.broadcast(checkpoint)
        with ranks.share_errors():
            if checkpoint is not None:
                _check_settings(config, material, checkpoint)
            training = FineTuning(config, description, device, ranks, material)
            if checkpoint is not None:
                training.resume(checkpoint)
        del checkpoint  # its memory
        if say is not None and ranks.is_leader:
            say(training.describe())
        start = time.monotonic()
        try:
            training.run(on_step, fresh=fresh)
        except torch.OutOfMemoryError as error:
            raise ResourceError(f"the GPU's memory is full: lower batch_size. {one_line(error)}") from error
        if ranks.is_leader:
            training.write_model()
        ranks.gather_objects(None)  # wait for the leading rank's files
        return TunedModel(
            model=training.folder.model,
            steps=training.step,
            images=material.images,
            bad_images=material.bad_images,
            full_texts=len(training.student.full_texts),
            losses=training.losses,
            seconds=time.monotonic() - start,
        )


def _prepare(
    config: FinetuneConfig,
    description: ModelDescription,
    device: torch.device,
    ranks: int,
) -> TuningData:
    """Check settings, model and dataset, and return the dataset. Raise as `finetune`."""
    if config.batch_size < ranks:
        raise ConfigError(
            f"{config.batch_size} images a step are fewer than the {ranks} ranks", key="batch_size"
        )
    options = description.architecture["text_cfg"].get("tokenizer_kwargs") or {}
    if description.dual_encoder is not None:
        raise ConfigError(
            f"{description.name} is a dual encoder of transformers, which cannot be written as a model of open_clip: "
            "take a model by open_clip's name and tag"
        )
    if description.siglip is not None or (description.vocabulary is not None and "bpe_path" not in options):
        raise ConfigError(
            f"{description.name} is a SigLIP in transformers' layout, which cannot be written as one of open_clip's: "
            "take it from open_clip, by name and tag"
        )
    if config.model.precision == "fp16":
        raise ConfigError("gradients are too small for fp16; take bf16, or fp32", key="model.precision")
    warn_of_slow_precision(config.model.precision, device)
    if config.model.threads is not None and device.type == "cpu":
        torch.set_num_threads(config.model.threads)
    side_px = description.input.size_px
    material = TuningData(config.data, side_px=side_px, seed=config.seed, batch_size=config.batch_size)
    if config.recipe.needs_regions and not material.count_regions():
        raise InputError(
            f"{config.data.path} has no regions to learn from: lower data.min_score or data.where, "
            "or take a recipe that needs none: captions, or clipself with recipe.places=grid"
        )
    return material


def _settings_of(config: FinetuneConfig, material: TuningData) -> Json:
    """Return what a resumed training must share with its checkpoint."""
    return {**config.result_settings(), "images": material.images}


def _check_settings(config: FinetuneConfig, material: TuningData, checkpoint: Json) -> None:
    """Raise ResumeError if the checkpoint is that of another training."""
    stored_settings = checkpoint["decides"]
    settings = _settings_of(config, material)
    if stored_settings != settings:
        differences = sorted(key for key, value in settings.items() if value != stored_settings.get(key))
        raise ResumeError(
            f"{config.out} holds a training with other settings ({', '.join(differences)}): give another --out, or "
            "begin anew with --fresh"
        )


class FineTuning:
    """A fine-tuning on one rank. Raise ConfigError if no parameter of the model may learn."""

    def __init__(
        self,
        config: FinetuneConfig,
        description: ModelDescription,
        device: torch.device,
        ranks: RankGroup,
        material: TuningData,
    ) -> None:
        self.config = config
        self.model = description
        self.material = material
        self.device = device
        self.folder = TrainingFolder(config.out)
        self.ranks = ranks
        self.steps = max(1, round(config.epochs * material.steps_per_epoch))
        self.step = 0  # number of completed steps
        self.log: list[dict[str, float]] = []  # step, learning rate and mean losses
        self._checkpoint_s = time.monotonic()
        self._pending_losses: list[dict[str, Tensor]] = []
        self._is_half_done = False  # the weights have changed, but the step has not ended
        module = module_of(description).float().to(device)
        self._most_scale = max(
            math.log(100), module.logit_scale.item()
        )  # CLIP's bound; some begin above it
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(not name.startswith(config.frozen))
        self.student = Student.of(module, tokenizer_of(description), description.input)
        self.recipe = RECIPES[config.recipe.kind](config.recipe, self.student)
        self._trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
        if not self._trainable:
            raise ConfigError(f"nothing is left to learn of {description.name}", key="frozen")
        if config.frozen_outputs is not None:
            store_outputs(
                self.student.tower, config.frozen, config.frozen_outputs, DTYPES[config.model.precision]
            )
        for _, parameter in self.recipe.extra_parameters():
            parameter.data = parameter.data.to(device)
            self._trainable.append(parameter)
        groups = [
            {
                "params": [weight for weight in self._trainable if weight.ndim > 1],
                "weight_decay": WEIGHT_DECAY,
            },
            {"params": [weight for weight in self._trainable if weight.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimiser = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98), eps=1e-6)

    @property
    def losses(self) -> dict[str, float]:
        """The mean losses of the last line of the log, by name."""
        return {
            name: value for name, value in self.log[-1].items() if name not in ("step", "learning_rate")
        }

    def resume(self, checkpoint: Json) -> None:
        """Continue after the last step of a checkpoint with the same settings."""
        self.student.module.load_state_dict(checkpoint["model"])
        for name, parameter in self.recipe.extra_parameters():
            parameter.data.copy_(checkpoint["recipe"][name])
        self.optimiser.load_state_dict(checkpoint["optimiser"])
        self.step = checkpoint["step"]
        self.log = checkpoint["log"]
        self._pending_losses = checkpoint["unlogged"]
        if self.ranks.is_leader:
            self.folder.write_log(self.log)  # without the lines of steps after the checkpoint

    def describe(self) -> str:
        """Return one sentence about the training before its first step."""
        config = self.config
        count = sum(parameter.numel() for parameter in self._trainable)
        verb = f"resumes at step {self.step:,}" if self.step else "begins"
        rank_text = f" on {self.ranks.size} ranks" if self.ranks.size > 1 else ""
        return (
            f"{self.model.name} {verb} with recipe {config.recipe.kind}: {self.material.images:,} images, "
            f"{self.steps:,} steps of {config.batch_size}{rank_text}, {count / 1e6:.1f} million weights learn, "
            f"products in {config.model.precision} on {self.device}"
        )

    def run(self, on_step: OnStep | None = None, *, fresh: bool = False) -> None:
        """Take all remaining steps.

        A KeyboardInterrupt between two steps writes a checkpoint first. Log and checkpoints of
        an older training are deleted after the first step, and with `fresh` its model, too.
        """
        batches = self.material.batches(range(self.step, self.steps), self.ranks.rank, self.ranks.size)
        try:
            while self.step < self.steps:
                with self.ranks.share_errors():
                    batch = next(batches)
                self._pending_losses.append(self._take_step(batch))
                if self.step == 0 and self.ranks.is_leader:  # no check can fail after the first step
                    self.folder.clear()
                    if fresh:
                        shutil.rmtree(self.folder.model, ignore_errors=True)
                self.step += 1
                self._is_half_done = False
                if self.step % LOG_EVERY == 0 or self.step == self.steps:
                    self._log()
                if on_step is not None and self.ranks.is_leader:
                    on_step(self.step, self.steps)
                if (
                    self.step == self.steps
                    or time.monotonic() - self._checkpoint_s >= self.config.checkpoint_every_s
                ):
                    self._save()
        except KeyboardInterrupt:
            if self.step and not self._is_half_done:
                self._save()
            raise

    def _take_step(self, batch: TrainingBatch) -> dict[str, Tensor]:
        config = self.config
        warmth = min(1.0, (self.step + 1) / max(1, config.warmup_steps))
        for group in self.optimiser.param_groups:
            group["lr"] = (
                config.learning_rate * warmth * 0.5 * (1 + math.cos(math.pi * self.step / self.steps))
            )
        precision = DTYPES[config.model.precision]
        with torch.autocast(self.device.type, dtype=precision, enabled=precision != torch.float32):
            terms = self.recipe.terms(batch, self.ranks)
        loss = sum((weight * term for weight, term in terms.values()), torch.zeros((), device=self.device))
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.ranks.sum_gradients(self._trainable)
        nn.utils.clip_grad_norm_(self._trainable, CLIP_NORM)
        self._is_half_done = True
        self.optimiser.step()
        with torch.no_grad():
            self.student.module.logit_scale.clamp_(max=self._most_scale)
        return {"loss": loss.detach(), **{name: term.detach() for name, (_, term) in terms.items()}}

    def _log(self) -> None:
        losses = self._pending_losses
        self._pending_losses = []
        line = {"step": self.step, "learning_rate": self.optimiser.param_groups[0]["lr"]}
        for name in losses[0]:
            line[name] = round(float(torch.stack([terms[name].cpu() for terms in losses]).mean()), 5)
        self.log.append(line)
        if self.ranks.is_leader:
            self.folder.write_log(self.log)

    def _save(self) -> None:
        self._checkpoint_s = time.monotonic()
        if self.ranks.is_leader:
            checkpoint = {
                "step": self.step,
                "log": self.log,
                "unlogged": self._pending_losses,
                "decides": _settings_of(self.config, self.material),
                "model": self.student.module.state_dict(),
                "recipe": {name: value.detach() for name, value in self.recipe.extra_parameters()},
                "optimiser": self.optimiser.state_dict(),
            }
            self.folder.write_checkpoint(checkpoint)

    def write_model(self) -> None:
        """Write configuration, weights, vocabulary and card of the tuned model.

        Raise OutputError.
        """
        folder = self.folder.model
        temporary = folder.with_name(f"{folder.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir()
            self._write_settings(temporary)
            weights = self.student.module.state_dict()
            weights = {name: value.detach().cpu().contiguous().clone() for name, value in weights.items()}
            (temporary / WEIGHTS).write_bytes(save(weights, metadata={"format": "pt"}))
            (temporary / CARD).write_text(self._card(), encoding="utf-8")
            shutil.rmtree(folder, ignore_errors=True)
            temporary.rename(folder)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise OutputError(f"cannot write {folder}: {error.strerror or one_line(error)}") from error

    def _write_settings(self, folder: Path) -> None:
        """Write the model's configuration in open_clip's form, and its vocabulary if that is not CLIP's."""
        architecture = copy.deepcopy(self.model.architecture)
        spec = self.model.input
        options = architecture["text_cfg"].get("tokenizer_kwargs") or {}
        if self.model.vocabulary is not None:
            shutil.copyfile(self.model.vocabulary, folder / VOCABULARY)
            architecture["text_cfg"]["tokenizer_kwargs"] = {**options, "bpe_path": VOCABULARY}
        preprocess = {
            "size": spec.size_px,
            "mode": "RGB",
            "mean": spec.mean,
            "std": spec.std,
            "resize_mode": "squash",
        }
        preprocess["interpolation"] = spec.interpolation
        settings = {"model_cfg": architecture, "preprocess_cfg": preprocess}
        (folder / OPEN_CLIP_CONFIG).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    def _usage(self) -> str:
        """Return how to load the tuned model, for its card."""
        vision = self.model.architecture["vision_cfg"]
        text = self.model.architecture["text_cfg"]
        usage = '`phrasebox.Locator("FOLDER")` and `phrasebox run --model FOLDER` load it.'
        needs_vocabulary = "bpe_path" in (text.get("tokenizer_kwargs") or {})
        if needs_vocabulary or vision.get("timm_model_name") == TRUNK_NAME:
            return f"{usage} open_clip alone does not."
        return (
            "open_clip loads it by `local-dir:FOLDER`, and stretches each image to a square, as the training did.\n"
            f"`create_model_and_transforms(NAME, pretrained=FILE)` would crop the centre instead. {usage}"
        )

    def _card(self) -> str:
        config = self.config
        losses = ", ".join(f"{name} {value:.3f}" for name, value in self.losses.items())
        return f"""# {self.model.name}, fine-tuned by recipe {config.recipe.kind}

{WRITTEN_BY} for {self.steps:,} steps of {config.batch_size} images on {self.material.images:,} images of the
dataset `{config.data.path}`. Losses at the end: {losses}. Its licence follows from those of the model that it began
with and of the images.

{self._usage()}

```json
{json.dumps(config.result_settings(), indent=1)}
```
"""
