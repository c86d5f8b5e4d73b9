"""The training loop: phases, log lines, checkpoints, going on from one, and how well the model names things."""

from __future__ import annotations

import copy
import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import load_file
from torch import Tensor

from pipeline.scenes.captions import COLOUR_NAMES, KINDS
from pipeline.scenes.scene import make_scene, resize_image
from pipeline.training.batches import (
    Batch,
    PhraseBank,
    SceneBatches,
    concept_column,
    load_batches,
    write_vocabulary,
)
from pipeline.training.config import MODEL_CFG, Phase, TrainConfig
from pipeline.training.model import (
    bank_loss,
    build_model,
    caption_loss,
    encode_image,
    encode_text,
    known_true,
    make_optimisers,
    model_at,
    normalise,
)
from stages.shared.model.catalog import sha256_of
from stages.shared.model.device import PRECISIONS, fast_precision

VOCABULARY_FILE: Final = "bpe_vocab.txt.gz"
WEIGHTS_FILE: Final = "model.safetensors"
CARD_FILE: Final = "MODEL_CARD.md"
LATEST_FILE: Final = "latest.pt"
LOG_FILE: Final = "log.jsonl"
_LOG_EVERY_STEPS: Final = 20
_EVALUATION_SEED: Final = 4_321
_TRAINING: Final = "## Training\n"
_SAVED: Final = ("step", "active_s", "log", "earlier")
"""Attributes of a run that a checkpoint holds as they are."""


def train(
    config: TrainConfig,
    out: Path,
    *,
    workers: int = 1,
    checkpoint_every_s: float = 180.0,
    resume: Path | None = None,
    from_weights: Path | None = None,
) -> Path:
    """Train a model from scratch, or go on with one.

    Exported weights hold neither the optimisers' memory nor the step: going on from them is a new run with its own
    warm-up, steps and log. Give it another seed, or it draws the scenes that the weights have seen. Its model card
    describes the earlier training too.

    Matrices are multiplied in bf16 on a CPU with instructions for it, else in fp32. Log and model card say which.

    Args:
        config: what to do; when going on, the phases and learning rates may differ from the checkpoint's.
        out: folder for the vocabulary, the log and the checkpoints.
        workers: processes that draw scenes.
        checkpoint_every_s: seconds of wall time between checkpoints; 0 for only the last.
        resume: a checkpoint to go on from.
        from_weights: a folder that `pipeline.training.export.export` wrote, to start from; not with `resume`.

    Returns:
        The last checkpoint, `out/latest.pt`.

    Raises:
        ValueError: both `resume` and `from_weights`, or weights that are not of this architecture and vocabulary.
    """
    if resume is not None and from_weights is not None:
        raise ValueError("expected a checkpoint or exported weights to go on from, got both")
    out.mkdir(parents=True, exist_ok=True)
    write_vocabulary(out / VOCABULARY_FILE)
    torch.manual_seed(config.seed)
    training = _Training(
        config=config,
        out=out,
        workers=workers,
        checkpoint_every_s=checkpoint_every_s,
        precision=fast_precision(torch.device("cpu")),
        tokenizer=load_tokenizer(out),
    )
    if from_weights is not None:
        training.begin_with(from_weights)
    elif resume is not None:
        training.resume(resume)
    else:
        training.build(config.phases[0].side_px)
    training.run()
    training.save()
    return out / LATEST_FILE


def load_tokenizer(folder: Path) -> SimpleTokenizer:
    """The tokenizer of a training folder or of exported weights."""
    return SimpleTokenizer(
        bpe_path=str(folder / VOCABULARY_FILE), context_length=MODEL_CFG["text_cfg"]["context_length"]
    )


@dataclass(kw_only=True)
class _Training:
    """A run of training: first what stays the same from step to step, then what changes.

    Attributes:
        precision: the one that matrices are multiplied in, see `stages.shared.model.device`.
        average: the moving average of the model's weights.
        optimisers: see `make_optimisers`.
        active_s: processor time in seconds.
        log: all log lines.
        earlier: how the weights that the run began with were trained, in Markdown; "" for random ones.
    """

    config: TrainConfig
    out: Path
    workers: int
    checkpoint_every_s: float
    precision: str
    tokenizer: SimpleTokenizer
    bank: PhraseBank = field(init=False)
    model: CLIP = field(init=False)
    average: CLIP = field(init=False)
    optimisers: list[torch.optim.Optimizer] = field(init=False)
    step: int = 0
    active_s: float = 0.0
    log: list[dict[str, Any]] = field(default_factory=list)
    earlier: str = ""

    def __post_init__(self) -> None:
        self.bank = PhraseBank(self.tokenizer)

    def build(self, side_px: int) -> None:
        """Random weights."""
        self.model = build_model(self.tokenizer, side_px)
        self.average = copy.deepcopy(self.model)
        self.optimisers = make_optimisers(self.model, self.config)

    def resume(self, checkpoint: Path) -> None:
        """Everything as it was, except for the learning rates, which are those of the configuration."""
        saved: dict[str, Any] = torch.load(checkpoint, weights_only=True)
        self.build(saved["side_px"])
        self.model.load_state_dict(saved["model"])
        self.average.load_state_dict(saved["average"])
        for optimiser, values in zip(self.optimisers, saved["optimisers"], strict=True):
            rates = [group["full_lr"] for group in optimiser.param_groups]
            optimiser.load_state_dict(values)
            for group, rate in zip(optimiser.param_groups, rates, strict=True):
                group["full_lr"] = rate
        for name in _SAVED:
            setattr(self, name, saved[name])

    def begin_with(self, folder: Path) -> None:
        """Exported weights for model and moving average, and what their model card says of their training."""
        if load_tokenizer(folder).encoder != self.tokenizer.encoder:
            raise ValueError(f"expected the vocabulary of the scenes in {folder}, got another one")
        weights = {name: value.float() for name, value in load_file(folder / WEIGHTS_FILE).items()}
        patches = len(weights["visual.positional_embedding"]) - 1
        self.build(round(patches**0.5) * int(MODEL_CFG["vision_cfg"]["patch_size"]))
        try:
            self.model.load_state_dict(weights)
        except RuntimeError as error:
            raise ValueError(f"expected weights of the architecture of MODEL_CFG in {folder}: {error}") from error
        self.average.load_state_dict(weights)
        self.earlier = earlier_training((folder / CARD_FILE).read_text("utf-8"), sha256_of(folder / WEIGHTS_FILE))

    def run(self) -> None:
        """Take the steps of all phases that are not taken yet."""
        first_step = 0
        for phase in self.config.phases:
            if self.step < first_step + phase.steps:
                self._resize(phase.side_px)
                self._run_phase(phase, first_step)
            first_step += phase.steps

    def _resize(self, side_px: int) -> None:
        """Change the image size; the optimisers' memory is kept except for the positional embedding's."""
        if int(self.model.visual.image_size[0]) == side_px:
            return
        old = self.optimisers
        self.model = model_at(self.model, self.tokenizer, side_px)
        self.average = model_at(self.average, self.tokenizer, side_px)
        self.optimisers = make_optimisers(self.model, self.config)
        for before, after in zip(old, self.optimisers, strict=True):
            pairs = zip(before.param_groups[0]["params"], after.param_groups[0]["params"], strict=True)
            for was, now in pairs:
                if was.shape == now.shape and was in before.state:
                    after.state[now] = before.state[was]

    def _run_phase(self, phase: Phase, first_step: int) -> None:
        """Take the phase's remaining steps; `first_step` is the number of its first one."""
        config, last_step = self.config, first_step + phase.steps
        batches = SceneBatches(
            self.tokenizer, phase, seed=config.seed, size=config.batch, first=self.step, count=last_step - self.step
        )
        last_saved = last_logged = time.monotonic()
        losses: list[Tensor] = []
        cpu = time.process_time()
        for batch in load_batches(batches, workers=self.workers):
            share = (self.step - first_step) / max(1, phase.steps - 1)
            factor = phase.lr_start + (phase.lr_end - phase.lr_start) * share
            factor *= min(1.0, (self.step + 1) / config.warmup_steps)
            losses.append(self._take_step(phase, batch, factor))
            self.step += 1
            self.active_s += time.process_time() - cpu
            cpu = time.process_time()
            ended = self.step == last_step
            if self.step % _LOG_EVERY_STEPS and not ended:
                continue
            now = time.monotonic()
            captions, phrases = torch.stack(losses).mean(dim=0).tolist()
            line = {
                "phase": phase.name,
                "step": self.step,
                "caption_loss": round(captions, 4),
                "bank_loss": round(phrases, 4),
                "precision": self.precision,
                "images_per_s": round(len(losses) * config.batch / (now - last_logged), 1),
                "cpu_s": round(self.active_s),
            }
            losses, last_logged = [], now
            due = 0 < self.checkpoint_every_s < now - last_saved
            if due or ended:
                line["top1"] = round(class_top1(self.average, self.tokenizer, scenes=config.evaluation_scenes), 4)
            self.log.append(line)
            with (self.out / LOG_FILE).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)
            if due or ended:
                self.save()
                last_saved = last_logged = time.monotonic()

    def _take_step(self, phase: Phase, batch: Batch, factor: float) -> Tensor:
        """One optimiser step; returns the caption and the bank loss, float (2,)."""
        config, bank, model = self.config, self.bank, self.model
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + self.step)
        keep = None
        if phase.patch_dropout > 0:
            patches = (phase.side_px // int(model.visual.patch_size[0])) ** 2
            kept = round(patches * (1 - phase.patch_dropout))
            keep = torch.rand(len(batch.images), patches, generator=generator).topk(kept, dim=1).indices
        phrases = bank.tokens(generator)
        with torch.autocast("cpu", dtype=PRECISIONS[self.precision], enabled=self.precision != "fp32"):
            image = encode_image(model, normalise(batch.images), keep=keep)
            caption = encode_text(model, batch.tokens)
            phrase = encode_text(model, phrases)
        scale = model.logit_scale.exp()
        image = image.float()
        captions = caption_loss(
            scale * image @ caption.float().T, known_true(batch.claimed, batch.denied, batch.present)
        )
        logits = scale * image @ phrase.float().T
        positive = batch.present[:, bank.columns] > 0.5
        phrases_loss = (bank_loss(logits, positive) + 0.5 * bank_loss(logits.T, positive.T)) / 1.5
        loss: Tensor = captions + config.bank_weight * phrases_loss
        for optimiser in self.optimisers:
            optimiser.zero_grad(set_to_none=True)
            for group in optimiser.param_groups:
                group["lr"] = group["full_lr"] * factor
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in self.optimisers:
            optimiser.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=4.6052)
            decay = min(config.average_decay, (1 + self.step) / (10 + self.step))
            torch._foreach_lerp_(list(self.average.parameters()), list(model.parameters()), 1 - decay)
        return torch.stack([captions.detach(), phrases_loss.detach()])

    def save(self) -> None:
        """Write the checkpoint beside its place and move it there, so that a reader never sees half of one."""
        path = self.out / LATEST_FILE
        temporary = path.with_suffix(".tmp")
        saved = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "side_px": int(self.model.visual.image_size[0]),
            "config": self.config.model_dump(mode="json"),
        }
        torch.save(saved | {name: getattr(self, name) for name in _SAVED}, temporary)
        os.replace(temporary, path)


def earlier_training(card: str, weights_sha256: str) -> str:
    """The training section of a model card, for the card of a run that begins with its weights.

    Args:
        card: the text of a card by `pipeline.training.export`.
        weights_sha256: checksum of the weights that it belongs to.

    Raises:
        ValueError: the card has no such section.
    """
    _, found, section = card.partition(_TRAINING)
    if not found:
        raise ValueError(f"expected a model card with the section {_TRAINING.strip()!r}")
    return f"## Before that\n\nThe weights it began with: `{weights_sha256}`.\n{section}"


@torch.inference_mode()
def class_top1(model: CLIP, tokenizer: SimpleTokenizer, *, scenes: int, render_scale: float = 1.0) -> float:
    """Share of held-out scenes with one thing whose nearest of all colour-kind phrases is the right one.

    Args:
        model: the model; its image size sets the scenes'.
        tokenizer: its tokenizer.
        scenes: how many scenes; about every seventh shows a pair that training never showed.
        render_scale: draw scenes larger by this factor and average them down.

    Returns:
        0-1; chance is 1 in 360.
    """
    side = int(model.visual.image_size[0])
    phrases = [f"{colour} {kind}" for kind in KINDS for colour in COLOUR_NAMES]
    texts = encode_text(model, tokenizer(phrases))
    images, truth = [], []
    for index in range(scenes):
        scene = make_scene(_EVALUATION_SEED, index, side_px=round(side * render_scale), max_objects=1)
        images.append(resize_image(scene.image, side))
        truth.append(concept_column(scene.objects[0].kind, scene.objects[0].colour))
    right = 0
    for first in range(0, scenes, 50):
        block = torch.from_numpy(np.stack(images[first : first + 50])).permute(0, 3, 1, 2)
        best = (encode_image(model, normalise(block)) @ texts.T).argmax(dim=1)
        right += int((best == torch.tensor(truth[first : first + 50])).sum())
    return right / scenes
