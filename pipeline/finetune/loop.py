"""Fine-tuning from the dataset to the tuned model: `finetune`."""

from __future__ import annotations

import copy
import json
import math
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import open_clip
import torch
from safetensors.torch import save
from torch import Tensor, nn

from pipeline.finetune import RECIPES
from pipeline.finetune.config import FinetuneConfig
from pipeline.finetune.folder import CARD, VOCABULARY, WEIGHTS, WRITTEN_BY, TrainingFolder
from pipeline.finetune.material import TrainingBatch, TuningData, reject_long_phrases
from pipeline.finetune.ranks import RankGroup, joined
from pipeline.finetune.recipe import Student
from stages.contract.errors import ConfigError, InputError, OutputError, ResourceError, ResumeError, one_line
from stages.shared.model.device import PRECISIONS, pick_device, warn_of_slow_precision
from stages.shared.model.load import fetch_files, module_of, usable_model
from stages.shared.model.recognise import OPEN_CLIP_CONFIG, Described
from stages.shared.model.tokenizer import tokenizer_of
from stages.shared.model.towers.photo_trunk import TRUNK_NAME

OnStep = Callable[[int, int], None]
"""Called on the leading rank after each step, with the number of steps that are done and of all."""

LOG_EVERY: Final = 10  # steps of a line of the log; the last step ends a line, too


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """A finished fine-tuning."""

    model: Path  # folder of the tuned model, in the layout of open_clip's push_to_hf_hub
    steps: int  # also those of former starts
    images: int  # of the dataset
    bad_images: int  # left out in this start because they could not be read, counted each time
    losses: dict[str, float]  # of the last line of the log
    seconds: float  # of this start


def finetune(
    config: FinetuneConfig,
    on_step: OnStep | None = None,
    say: Callable[[str], None] | None = None,
    *,
    fresh: bool = False,
) -> Tuned:
    """Fine-tune a model on a dataset, or resume the training in `config.out`.

    In a group of processes (torchrun, or one that is initialised, as Ray Train does it) each call is one rank, and the
    losses are those of one process with the whole batch, up to rounding. `say` takes a message for people before the
    training begins. `fresh` begins anew: a training in `config.out` and its model are deleted after the first step.

    Raise ConfigError, WeightsError or ResourceError if the model or a setting cannot be used, InputError if the
    dataset cannot be read or holds nothing to learn from, ResumeError if the folder holds another training, a damaged
    checkpoint or a `model/` that no training wrote, and OutputError if it cannot be written; the checkpoints before are
    kept.
    """
    device = pick_device(config.model.device)
    with joined(device) as ranks:
        with ranks.together():
            if (size := config.batch_size) < ranks.size:
                raise ConfigError(f"batch_size: {size} images a step are fewer than the {ranks.size} ranks")
            described = usable_model(config.model)
            material, tokenizer = _checked(config, described, device)
            if described.pretrained is not None and ranks.leads:
                fetch_files(described.name, described.pretrained, say or (lambda _: None))
            saved = _former(config.out, fresh=fresh) if ranks.leads else None
        saved = ranks.broadcast(saved)
        with ranks.together():
            training = FineTuning(config, described, tokenizer, device, ranks, material, saved)
        if say is not None and ranks.leads:
            say(training.described())
        begun = time.monotonic()
        saved = None
        try:
            training.run(on_step, fresh=fresh)
        except torch.OutOfMemoryError as error:
            raise ResourceError(f"the GPU's memory is full: lower batch_size. {one_line(error)}") from error
        if ranks.leads:
            training.write_model()
        ranks.objects(None)  # wait for the leading rank's files
        return Tuned(
            model=training.folder.model,
            steps=training.step,
            images=material.images,
            bad_images=material.bad_images,
            losses=training.means,
            seconds=time.monotonic() - begun,
        )


def _checked(config: FinetuneConfig, described: Described, device: torch.device) -> tuple[TuningData, Any]:
    """Return the dataset and the tokenizer of a training that can begin. Raise as `finetune`."""
    if described.tokenizer is not None or described.siglip is not None:
        raise ConfigError(
            f"{described.name} is a SigLIP in transformers' layout, which cannot be written as one of open_clip's: "
            "take it from open_clip, by name and tag"
        )
    if config.model.precision == "fp16":
        raise ConfigError("model.precision: gradients are too small for fp16; take bf16, or fp32")
    warn_of_slow_precision(config.model.precision, device)
    if config.model.threads is not None and device.type == "cpu":
        torch.set_num_threads(config.model.threads)
    recipe = RECIPES[config.recipe.kind]
    side_px = described.input.size_px
    material = TuningData(config.data, side_px=side_px, seed=config.seed, batch_size=config.batch_size)
    tokenizer = tokenizer_of(described)
    if recipe.needs_regions:
        phrases = material.phrases()
        if not phrases:
            chosen = [f"a score of {config.data.min_score} or more"] if config.data.min_score else []
            chosen += [f"the condition {config.data.where}"] if config.data.where else []
            raise InputError(
                f"{config.data.path} has no regions to learn from{' with ' if chosen else ''}{' and '.join(chosen)}: "
                "lower data.min_score or data.where, or take a recipe that needs none: clim, captions"
            )
        reject_long_phrases(phrases, tokenizer)
    return material, tokenizer


def _former(out: Path, *, fresh: bool) -> dict[str, Any] | None:
    """Return the checkpoint to resume from. Raise ResumeError if there is none that can be read, or may be replaced."""
    folder = TrainingFolder(out)
    folder.check_model()
    return None if fresh else folder.read_checkpoint()


class FineTuning:
    """A fine-tuning on one rank. Raises ResumeError if `saved`, the checkpoint to resume, is another training's."""

    def __init__(
        self,
        config: FinetuneConfig,
        described: Described,
        tokenizer: Any,
        device: torch.device,
        ranks: RankGroup,
        material: TuningData,
        saved: dict[str, Any] | None,
    ) -> None:
        self.config = config
        self.model = described
        self.material = material
        self.device = device
        self.folder = TrainingFolder(config.out)
        self.ranks = ranks
        self.steps, self.step = max(1, round(config.epochs * material.steps_per_epoch)), 0  # all, and those taken
        self.means: dict[str, float] = {}  # losses of the last line of the log
        self._saved_s = time.monotonic()
        self._unlogged: list[dict[str, Tensor]] = []
        self._log_bytes = 0
        self._is_half_done = False  # weights have changed, and the step has not ended
        self._decides = {**config.decides(), "images": material.images}
        if saved is not None and saved["decides"] != self._decides:
            former = saved["decides"]
            differing = sorted(key for key, value in self._decides.items() if value != former.get(key))
            raise ResumeError(
                f"{config.out} holds a training with other settings ({', '.join(differing)}): give another --out, or "
                "begin anew with --fresh"
            )
        module = module_of(described).float().to(device)
        kept = module.state_dict() if config.interpolate < 1 else {}
        self._start = {name: value.detach().clone() for name, value in kept.items()}
        self._most_scale = max(math.log(100), module.logit_scale.item())  # CLIP's bound; some begin above it
        for name, parameter in module.named_parameters():
            of_images = name.startswith("visual.") or name == "logit_scale"
            learns = config.recipe.learns == "all" or of_images
            parameter.requires_grad_(learns and not name.startswith(config.frozen))
        self._learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
        if not self._learning:
            raise ConfigError(f"frozen: nothing is left to learn of {described.name}")
        self.student = Student.of(module, tokenizer, described.input)
        self.recipe = RECIPES[config.recipe.kind](config.recipe, self.student)
        for _, parameter in self.recipe.own_parameters():
            parameter.data = parameter.data.to(device)
            self._learning.append(parameter)
        groups = [
            {"params": [each for each in self._learning if each.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [each for each in self._learning if each.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimiser = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98), eps=1e-6)
        if saved is not None:
            self._resume(saved)

    def described(self) -> str:
        """Return one sentence about the training that is about to begin or to resume."""
        config = self.config
        learning = sum(parameter.numel() for parameter in self._learning)
        begins = f"resumes at step {self.step:,}" if self.step else "begins"
        together = f" on {self.ranks.size} ranks" if self.ranks.size > 1 else ""
        return (
            f"{self.model.name} {begins} with recipe {config.recipe.kind}: {self.material.images:,} images, "
            f"{self.steps:,} steps of {config.batch_size}{together}, {learning / 1e6:.1f} million weights learn, "
            f"products in {config.model.precision} on {self.device}"
        )

    def run(self, on_step: OnStep | None = None, *, fresh: bool = False) -> None:
        """Take the steps that are left. A stop by KeyboardInterrupt between two steps writes a checkpoint first.

        Log and checkpoints of a former training are deleted after the first step, and with `fresh` its model, too.
        """
        batches = self.material.batches(range(self.step, self.steps), self.ranks.rank, self.ranks.size)
        try:
            while self.step < self.steps:
                with self.ranks.together():
                    batch = next(batches)
                self._unlogged.append(self._take_step(batch))
                if self.step == 0 and self.ranks.leads:  # nothing refuses this training any more
                    self.folder.clear(with_model=fresh)
                self.step += 1
                self._is_half_done = False
                if self.step % LOG_EVERY == 0 or self.step == self.steps:
                    self._log()
                if on_step is not None and self.ranks.leads:
                    on_step(self.step, self.steps)
                if self.step == self.steps or time.monotonic() - self._saved_s >= self.config.checkpoint_every_s:
                    self._save()
        except KeyboardInterrupt:
            if self.step and not self._is_half_done:
                self._save()
            raise

    def _take_step(self, batch: TrainingBatch) -> dict[str, Tensor]:
        config = self.config
        warm = min(1.0, (self.step + 1) / max(1, config.warmup_steps))
        for group in self.optimiser.param_groups:
            group["lr"] = config.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * self.step / self.steps))
        precision = PRECISIONS[config.model.precision]
        with torch.autocast(self.device.type, dtype=precision, enabled=precision != torch.float32):
            terms = self.recipe.terms(batch, self.ranks)
        loss = sum((weight * term for weight, term in terms.values()), torch.zeros((), device=self.device))
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.ranks.sum_gradients(self._learning)
        nn.utils.clip_grad_norm_(self._learning, config.clip_norm)
        self._is_half_done = True
        self.optimiser.step()
        with torch.no_grad():
            self.student.module.logit_scale.clamp_(max=self._most_scale)
        return {"loss": loss.detach(), **{name: term.detach() for name, (_, term) in terms.items()}}

    def _log(self) -> None:
        losses = self._unlogged
        self._unlogged = []
        means = {name: torch.stack([each[name].cpu() for each in losses]).mean() for name in losses[0]}
        self.means = {name: round(float(mean), 5) for name, mean in means.items()}
        if self.ranks.leads:
            line = {"step": self.step, "learning_rate": self.optimiser.param_groups[0]["lr"], **self.means}
            self._log_bytes = self.folder.log(line)

    def _save(self) -> None:
        self._saved_s = time.monotonic()
        if self.ranks.leads:
            saved = {
                "step": self.step,
                "log_bytes": self._log_bytes,
                "unlogged": self._unlogged,
                "decides": self._decides,
                "model": self.student.module.state_dict(),
                "recipe": {name: value.detach() for name, value in self.recipe.own_parameters()},
                "optimiser": self.optimiser.state_dict(),
            }
            self.folder.write_checkpoint(saved)

    def _resume(self, saved: Mapping[str, Any]) -> None:
        self.student.module.load_state_dict(saved["model"])
        for name, parameter in self.recipe.own_parameters():
            parameter.data.copy_(saved["recipe"][name])
        self.optimiser.load_state_dict(saved["optimiser"])
        self.step = saved["step"]
        self._log_bytes = saved["log_bytes"]
        self._unlogged = saved["unlogged"]
        if self.ranks.leads:
            self.folder.cut_log(self._log_bytes)

    def write_model(self) -> None:
        """Write configuration, weights, vocabulary and card of the tuned model. Raise OutputError."""
        folder = self.folder.model
        beside = folder.with_name(f"{folder.name}.tmp")
        shutil.rmtree(beside, ignore_errors=True)
        try:
            beside.mkdir()
            self._write_settings(beside)
            (beside / WEIGHTS).write_bytes(save(self._written(), metadata={"format": "pt"}))
            (beside / CARD).write_text(self._card(), encoding="utf-8")
            shutil.rmtree(folder, ignore_errors=True)
            beside.rename(folder)
        except OSError as error:
            shutil.rmtree(beside, ignore_errors=True)
            raise OutputError(f"cannot write {folder}: {error.strerror or one_line(error)}") from error

    def _written(self) -> dict[str, Tensor]:
        """Return the weights to write: those learned, mixed with those of the start if the settings say so."""
        share = self.config.interpolate
        state = self.student.module.state_dict()
        if share < 1:
            state = {
                name: torch.lerp(self._start[name].float(), value, share) if value.is_floating_point() else value
                for name, value in state.items()
            }
        return {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}

    def _write_settings(self, folder: Path) -> None:
        """Write the model's configuration as open_clip has it, and its vocabulary if it has one of its own."""
        architecture = copy.deepcopy(self.model.architecture)
        spec = self.model.input
        options = architecture["text_cfg"].get("tokenizer_kwargs") or {}
        if self.model.folder is not None and "bpe_path" in options:
            shutil.copyfile(self.model.folder / options["bpe_path"], folder / VOCABULARY)
            architecture["text_cfg"]["tokenizer_kwargs"] = {**options, "bpe_path": VOCABULARY}
        if any(isinstance(part, open_clip.transformer.QuickGELU) for part in self.student.module.modules()):
            architecture["quick_gelu"] = True  # nothing else in OpenAI's files says it
        preprocess = {"size": spec.size_px, "mode": "RGB", "mean": spec.mean, "std": spec.std, "resize_mode": "squash"}
        preprocess["interpolation"] = spec.interpolation
        settings = {"model_cfg": architecture, "preprocess_cfg": preprocess}
        (folder / OPEN_CLIP_CONFIG).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    def _loading(self) -> str:
        """Say what loads the tuned model."""
        vision = self.model.architecture["vision_cfg"]
        text = self.model.architecture["text_cfg"]
        lacks = "vocabulary" if "bpe_path" in (text.get("tokenizer_kwargs") or {}) else ""
        lacks = "image tower" if vision.get("timm_model_name") == TRUNK_NAME else lacks
        by_phrasebox = '`phrasebox.Locator("FOLDER")` and `phrasebox run --model FOLDER` load it.'
        if lacks:
            return f"{by_phrasebox} open_clip alone does not: it cannot find the {lacks}."
        return (
            "open_clip loads it by `local-dir:FOLDER`, and stretches each image to a square, as the training did.\n"
            f"`create_model_and_transforms(NAME, pretrained=FILE)` would crop the centre instead. {by_phrasebox}"
        )

    def _card(self) -> str:
        config = self.config
        lines = self.folder.lines()
        names = [name for name in (lines[-1] if lines else {}) if name not in ("step", "learning_rate")]
        shown = [lines[0], *lines[1:-1:10], lines[-1]] if len(lines) > 1 else lines
        table = "\n".join(" | ".join([f"| {row['step']:,}", *(f"{row[n]:.3f}" for n in names)]) + " |" for row in shown)
        share = 1 - config.interpolate
        mixed = f", mixed with {share:.0%} of the weights that it began with" if share else ""
        return f"""# {self.model.name}, fine-tuned by recipe {config.recipe.kind}

{WRITTEN_BY} for {self.steps:,} steps of {config.batch_size} images on {self.material.images:,} images of the
dataset `{config.data.path}`{mixed}. Its licence follows from those of the model that it began with and of the images.

{self._loading()}

| step | {" | ".join(names)} |
|{"---|" * (len(names) + 1)}
{table}

```json
{json.dumps(config.decides(), indent=1)}
```
"""
