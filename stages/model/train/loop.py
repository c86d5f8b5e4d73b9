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

from stages.model.catalog import sha256_of
from stages.model.device import PRECISIONS, fast_precision
from stages.model.scenes.scene import make_scene, resize_image
from stages.model.scenes.vocabulary import COLOUR_NAMES, KINDS
from stages.model.train.batches import (
    Batch,
    PhraseBank,
    SceneBatches,
    concept_column,
    load_batches,
    write_vocabulary,
)
from stages.model.train.config import MODEL_CFG, Phase, TrainConfig
from stages.model.train.model import (
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

VOCABULARY_FILE: Final = "bpe_vocab.txt.gz"
WEIGHTS_FILE: Final = "model.safetensors"
CARD_FILE: Final = "MODEL_CARD.md"
LATEST_FILE: Final = "latest.pt"
LOG_FILE: Final = "log.jsonl"
_LOG_EVERY_STEPS: Final = 20
_EVALUATION_SEED: Final = 4_321
_TRAINING: Final = "## Training\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class _TrainSetting:
    """What stays the same from step to step."""

    config: TrainConfig
    tokenizer: SimpleTokenizer
    bank: PhraseBank
    out: Path
    workers: int
    checkpoint_every_s: float
    precision: str


@dataclass(slots=True)
class _TrainState:
    """What changes from step to step.

    Attributes:
        model, average: the weights, and their moving average.
        optimisers: as `make_optimisers` gives them.
        step: steps taken.
        active_s: processor time in seconds.
        log: all log lines.
        earlier: how the weights that the run began with were trained, in Markdown; "" for random ones.
    """

    model: CLIP
    average: CLIP
    optimisers: list[torch.optim.Optimizer]
    step: int = 0
    active_s: float = 0.0
    log: list[dict[str, Any]] = field(default_factory=list)
    earlier: str = ""


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
        from_weights: a folder that `stages.model.train.export.export` wrote, to start from; not with `resume`.

    Returns:
        The last checkpoint, `out/latest.pt`.

    Raises:
        ValueError: both `resume` and `from_weights`, or weights that are not of this architecture and vocabulary.
    """
    if resume is not None and from_weights is not None:
        raise ValueError("expected a checkpoint or exported weights to go on from, got both")
    out.mkdir(parents=True, exist_ok=True)
    write_vocabulary(out / VOCABULARY_FILE)
    tokenizer = load_tokenizer(out)
    torch.manual_seed(config.seed)
    setting = _TrainSetting(
        config=config,
        tokenizer=tokenizer,
        bank=PhraseBank(tokenizer),
        out=out,
        workers=workers,
        checkpoint_every_s=checkpoint_every_s,
        precision=fast_precision(torch.device("cpu")),
    )
    state = _start(config, tokenizer, resume) if from_weights is None else _from(from_weights, config, tokenizer)
    first_step = 0
    for phase in config.phases:
        if state.step < first_step + phase.steps:
            _enter_phase(setting, state, phase)
            _run_phase(setting, state, phase, first_step)
        first_step += phase.steps
    _save(setting, state)
    return out / LATEST_FILE


def load_tokenizer(folder: Path) -> SimpleTokenizer:
    """The tokenizer of a training folder or of exported weights."""
    return SimpleTokenizer(
        bpe_path=str(folder / VOCABULARY_FILE), context_length=MODEL_CFG["text_cfg"]["context_length"]
    )


def _start(config: TrainConfig, tokenizer: SimpleTokenizer, resume: Path | None) -> _TrainState:
    """Step 0 with random weights, or where a checkpoint stopped, with the learning rates of `config`."""
    saved: dict[str, Any] | None = None if resume is None else torch.load(resume, weights_only=True)
    model = build_model(tokenizer, config.phases[0].side_px if saved is None else int(saved["side_px"]))
    state = _TrainState(model, copy.deepcopy(model), make_optimisers(model, config))
    if saved is not None:
        model.load_state_dict(saved["model"])
        state.average.load_state_dict(saved["average"])
        for optimiser, values in zip(state.optimisers, saved["optimisers"], strict=True):
            rates = [group["full_lr"] for group in optimiser.param_groups]
            optimiser.load_state_dict(values)
            for group, rate in zip(optimiser.param_groups, rates, strict=True):
                group["full_lr"] = rate
        for name in ("step", "active_s", "log", "earlier"):
            setattr(state, name, saved[name])
    return state


def _from(folder: Path, config: TrainConfig, tokenizer: SimpleTokenizer) -> _TrainState:
    """Step 0 with model and moving average at exported weights, and what their model card says of them."""
    if load_tokenizer(folder).encoder != tokenizer.encoder:
        raise ValueError(f"expected the vocabulary of the scenes in {folder}, got another one")
    weights = {name: value.float() for name, value in load_file(folder / WEIGHTS_FILE).items()}
    patches = len(weights["visual.positional_embedding"]) - 1
    side_px = round(patches**0.5) * int(MODEL_CFG["vision_cfg"]["patch_size"])
    model = build_model(tokenizer, side_px)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"expected weights of the architecture of MODEL_CFG in {folder}: {error}") from error
    earlier = earlier_training((folder / CARD_FILE).read_text("utf-8"), sha256_of(folder / WEIGHTS_FILE))
    return _TrainState(model, copy.deepcopy(model), make_optimisers(model, config), earlier=earlier)


def earlier_training(card: str, weights_sha256: str) -> str:
    """The training section of a model card, for the card of a run that begins with its weights.

    Args:
        card: the text of a card by `stages.model.train.export`.
        weights_sha256: checksum of the weights that it belongs to.

    Raises:
        ValueError: the card has no such section.
    """
    _, found, section = card.partition(_TRAINING)
    if not found:
        raise ValueError(f"expected a model card with the section {_TRAINING.strip()!r}")
    return f"## Before that\n\nThe weights it began with: `{weights_sha256}`.\n{section}"


def _enter_phase(setting: _TrainSetting, state: _TrainState, phase: Phase) -> None:
    """Change the image size; the optimisers' memory is kept except for the positional embedding's."""
    if int(state.model.visual.image_size[0]) == phase.side_px:
        return
    old = state.optimisers
    state.model = model_at(state.model, setting.tokenizer, phase.side_px)
    state.average = model_at(state.average, setting.tokenizer, phase.side_px)
    state.optimisers = make_optimisers(state.model, setting.config)
    for before, after in zip(old, state.optimisers, strict=True):
        pairs = zip(before.param_groups[0]["params"], after.param_groups[0]["params"], strict=True)
        for was, now in pairs:
            if was.shape == now.shape and was in before.state:
                after.state[now] = before.state[was]


def _run_phase(setting: _TrainSetting, state: _TrainState, phase: Phase, first_step: int) -> None:
    """Take the phase's remaining steps; `first_step` is the number of its first one."""
    config = setting.config
    last_step = first_step + phase.steps
    batches = SceneBatches(
        setting.tokenizer,
        phase,
        seed=config.seed,
        size=config.batch,
        first=state.step,
        count=last_step - state.step,
    )
    last_saved = last_logged = time.monotonic()
    losses: list[Tensor] = []
    cpu = time.process_time()
    for batch in load_batches(batches, workers=setting.workers):
        share = (state.step - first_step) / max(1, phase.steps - 1)
        factor = phase.lr_start + (phase.lr_end - phase.lr_start) * share
        factor *= min(1.0, (state.step + 1) / config.warmup_steps)
        losses.append(_step(setting, state, phase, batch, factor))
        state.step += 1
        state.active_s += time.process_time() - cpu
        cpu = time.process_time()
        ended = state.step == last_step
        if state.step % _LOG_EVERY_STEPS and not ended:
            continue
        now = time.monotonic()
        captions, phrases = torch.stack(losses).mean(dim=0).tolist()
        line = {
            "phase": phase.name,
            "step": state.step,
            "caption_loss": round(captions, 4),
            "bank_loss": round(phrases, 4),
            "precision": setting.precision,
            "images_per_s": round(len(losses) * config.batch / (now - last_logged), 1),
            "cpu_s": round(state.active_s),
        }
        losses, last_logged = [], now
        due = setting.checkpoint_every_s > 0 and now - last_saved > setting.checkpoint_every_s
        if due or ended:
            top1 = class_top1(state.average, setting.tokenizer, scenes=config.evaluation_scenes)
            line["top1"] = round(top1, 4)
        _log(setting, state, line)
        if due or ended:
            _save(setting, state)
            last_saved = last_logged = time.monotonic()


def _step(setting: _TrainSetting, state: _TrainState, phase: Phase, batch: Batch, factor: float) -> Tensor:
    """One optimiser step; returns the caption and the bank loss, float (2,)."""
    config, bank = setting.config, setting.bank
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + state.step)
    model = state.model
    keep = None
    if phase.patch_dropout > 0:
        patches = (phase.side_px // int(model.visual.patch_size[0])) ** 2
        kept = round(patches * (1 - phase.patch_dropout))
        keep = torch.rand(len(batch.images), patches, generator=generator).topk(kept, dim=1).indices
    phrases = bank.tokens(generator)
    with torch.autocast("cpu", dtype=PRECISIONS[setting.precision], enabled=setting.precision != "fp32"):
        image = encode_image(model, normalise(batch.images), keep=keep)
        caption = encode_text(model, batch.tokens)
        phrase = encode_text(model, phrases)
    scale = model.logit_scale.exp()
    image = image.float()
    captions = caption_loss(scale * image @ caption.float().T, known_true(batch.claimed, batch.denied, batch.present))
    logits = scale * image @ phrase.float().T
    positive = batch.present[:, bank.columns] > 0.5
    phrases_loss = (bank_loss(logits, positive) + 0.5 * bank_loss(logits.T, positive.T)) / 1.5
    loss: Tensor = captions + config.bank_weight * phrases_loss
    for optimiser in state.optimisers:
        optimiser.zero_grad(set_to_none=True)
        for group in optimiser.param_groups:
            group["lr"] = group["full_lr"] * factor
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimiser in state.optimisers:
        optimiser.step()
    with torch.no_grad():
        model.logit_scale.clamp_(max=4.6052)
        decay = min(config.average_decay, (1 + state.step) / (10 + state.step))
        torch._foreach_lerp_(list(state.average.parameters()), list(model.parameters()), 1 - decay)
    return torch.stack([captions.detach(), phrases_loss.detach()])


def _log(setting: _TrainSetting, state: _TrainState, line: dict[str, Any]) -> None:
    state.log.append(line)
    with (setting.out / LOG_FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line), flush=True)


def _save(setting: _TrainSetting, state: _TrainState) -> None:
    """Write the checkpoint beside its place and move it there, so that a reader never sees half of one."""
    path = setting.out / LATEST_FILE
    temporary = path.with_suffix(".tmp")
    torch.save(
        {
            "model": state.model.state_dict(),
            "average": state.average.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in state.optimisers],
            "side_px": int(state.model.visual.image_size[0]),
            "step": state.step,
            "active_s": state.active_s,
            "log": state.log,
            "earlier": state.earlier,
            "config": setting.config.model_dump(mode="json"),
        },
        temporary,
    )
    os.replace(temporary, path)


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
