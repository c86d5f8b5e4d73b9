"""The training loop: phases, log lines, checkpoints, and going on from one."""

from __future__ import annotations

import copy
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import load_file
from torch import Tensor

from stages.model.catalog import sha256_of
from stages.model.device import PRECISIONS, fast_precision
from stages.model.train.batches import Batch, PhraseBank, SceneBatches, load_batches, normalise
from stages.model.train.card import told_training
from stages.model.train.config import MODEL_CFG, Phase, TrainConfig
from stages.model.train.evaluate import class_top1
from stages.model.train.forward import encode_image, encode_text
from stages.model.train.loss import bank_loss, caption_loss, known_true
from stages.model.train.model import build_model, make_optimisers, model_at
from stages.model.train.tokenizer import write_vocabulary

VOCABULARY_FILE = "bpe_vocab.txt.gz"
WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "MODEL_CARD.md"
LATEST_FILE = "latest.pt"
LOG_FILE = "log.jsonl"
_LOG_EVERY_STEPS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class _Setting:
    """What stays the same from step to step."""

    config: TrainConfig
    tokenizer: SimpleTokenizer
    bank: PhraseBank
    out: Path
    workers: int
    checkpoint_every_s: float
    precision: str


@dataclass(slots=True)
class _State:
    """What changes from step to step, and `earlier`: how the weights it began with were trained, in Markdown."""

    model: CLIP
    average: CLIP
    optimisers: list[torch.optim.Optimizer]
    step: int
    active_s: float
    log: list[dict[str, Any]]
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
    warm-up, steps counted from 0 and the log from its first line. Give it another seed, or it draws the scenes that
    the weights have seen. Its model card tells the earlier training too.

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
    setting = _Setting(
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


def _start(config: TrainConfig, tokenizer: SimpleTokenizer, resume: Path | None) -> _State:
    side = config.phases[0].side_px
    saved: dict[str, Any] | None = None
    if resume is not None:
        saved = torch.load(resume, weights_only=True)
        side = int(saved["side_px"])
    model = build_model(tokenizer, side)
    state = _State(model, copy.deepcopy(model), make_optimisers(model, config), 0, 0.0, [])
    if saved is not None:
        model.load_state_dict(saved["model"])
        state.average.load_state_dict(saved["average"])
        for optimiser, values in zip(state.optimisers, saved["optimisers"], strict=True):
            rates = [group["full_lr"] for group in optimiser.param_groups]
            optimiser.load_state_dict(values)
            for group, rate in zip(optimiser.param_groups, rates, strict=True):
                group["full_lr"] = rate
        state.step, state.active_s, state.log = (
            int(saved["step"]),
            float(saved["active_s"]),
            list(saved["log"]),
        )
        state.earlier = str(saved["earlier"])
    return state


def _from(folder: Path, config: TrainConfig, tokenizer: SimpleTokenizer) -> _State:
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
    earlier = told_training((folder / CARD_FILE).read_text("utf-8"), sha256_of(folder / WEIGHTS_FILE))
    return _State(model, copy.deepcopy(model), make_optimisers(model, config), 0, 0.0, [], earlier)


def _enter_phase(setting: _Setting, state: _State, phase: Phase) -> None:
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


def _run_phase(setting: _Setting, state: _State, phase: Phase, first_step: int) -> None:
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


def _step(setting: _Setting, state: _State, phase: Phase, batch: Batch, factor: float) -> Tensor:
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


def _log(setting: _Setting, state: _State, line: dict[str, Any]) -> None:
    state.log.append(line)
    with (setting.out / LOG_FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line), flush=True)


def _save(setting: _Setting, state: _State) -> None:
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
