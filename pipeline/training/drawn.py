"""The training of `demo` on drawn scenes. The settings that made the bundled weights are in their MODEL_CARD.md."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor, nn

from pipeline.finetune.fit import LATEST, TrainingFolder, TrainingRun
from pipeline.finetune.ranks import RankGroup
from pipeline.finetune.recipe import contrastive, one_way
from pipeline.scenes.captions import COLOUR_NAMES, KINDS
from pipeline.scenes.scene import make_scene, resize_image
from pipeline.training.batches import (
    PhraseBank,
    SceneBatches,
    concept_column,
    known_true,
    load_vocabulary,
    scene_words,
    write_vocabulary,
)
from pipeline.training.model import (
    CONTEXT_LENGTH,
    Optimisers,
    Settings,
    architecture,
    encode_image,
    encode_text,
    follow,
    muon_and_adamw,
    positions_at,
)
from stages.shared.model.device import PRECISIONS, fast_precision

MODEL_CFG: Final[dict[str, Any]] = {
    "embed_dim": 192,
    "vision_cfg": {"patch_size": 10, "width": 192, "layers": 6, "head_width": 32, "mlp_ratio": 3.0},
    "text_cfg": {"context_length": CONTEXT_LENGTH, "width": 128, "heads": 4, "layers": 3},
}
"""Arguments of `open_clip.CLIP` less `image_size` and `vocab_size`."""

PREPROCESS_CFG: Final[dict[str, Any]] = {
    "mean": [0.48145466, 0.4578275, 0.40821073],
    "std": [0.26862954, 0.26130258, 0.27577711],
}
"""How images are prepared, in open_clip's terms: RGB in 0-1 less mean, divided by std."""

_PATCH_PX: Final[int] = MODEL_CFG["vision_cfg"]["patch_size"]
_EVALUATION_SEED: Final = 4_321
_MOST_LOG_SCALE: Final = 4.6052


class Phase(Settings):
    """A part of the training at one image size."""

    name: str
    steps: int
    side_px: int  # a multiple of the patch; positions are interpolated between phases
    render_scale: float = 1.0  # every third scene is drawn larger by this factor and averaged down, as a file is
    patch_dropout: float = 0.0  # share of the patches left out of each image
    max_objects: int = 5  # in a scene
    min_size_rel: float = 0.15  # of the smallest thing, relative to the side
    max_size_rel: float = 0.55  # of the largest thing
    lr_start: float = 1.0  # factor on both learning rates at the first step
    lr_end: float = 1.0  # factor at the last step; linear in between


DEFAULT_PHASES: Final = (
    Phase(name="crops", steps=900, side_px=70, max_objects=2, min_size_rel=0.3, max_size_rel=0.95),
    Phase(name="scenes", steps=1600, side_px=140, patch_dropout=0.5, lr_end=0.6),
    Phase(name="fine", steps=500, side_px=200, render_scale=1.8, patch_dropout=0.5, lr_start=0.6, lr_end=0.15),
    Phase(name="whole", steps=90, side_px=200, render_scale=1.8, lr_start=0.15, lr_end=0.02),
)
"""Large things teach names fast; whole scenes, a finer grid and finally all patches follow."""


class TrainConfig(Settings):
    """Everything that decides the weights, apart from library versions, the processor and the number of threads."""

    seed: int = 1  # of the initial weights, the scenes, the wordings and the patch dropout
    batch: int = 128  # images of a step; smaller was worse (measured at 64)
    matrix_lr: float = 3e-3  # Muon's, for the matrices of the transformer blocks
    matrix_weight_decay: float = 0.05  # Muon's, decoupled
    other_lr: float = 1e-3  # AdamW's, for everything else
    warmup_steps: int = 100  # in which both rates rise linearly from zero
    bank_weight: float = 1.0  # of the phrase bank's loss beside the captions' loss
    average_decay: float = 0.997  # per step, of the averaged weights, which are exported
    phases: tuple[Phase, ...] = DEFAULT_PHASES
    evaluation_scenes: int = 200  # held-out, with one thing each, for the log's top-1


def train(config: TrainConfig, out: Path, *, checkpoint_every_s: float = 180.0) -> Path:
    """Train a model from scratch, or resume the training in a folder. Return the last checkpoint.

    Matrices are multiplied in bf16 on a CPU with instructions for it, else in fp32. Log and model card say which.
    Phases and learning rates may differ from those of the training that is resumed.
    """
    folder = TrainingFolder(out)
    write_vocabulary(out, scene_words())
    torch.manual_seed(config.seed)
    training = SceneTraining(config, folder, checkpoint_every_s)
    if (saved := folder.read_checkpoint()) is not None:
        training.resume(saved)
    training.run()
    return out / LATEST


class SceneTraining(TrainingRun):
    """A training of `demo`; see `train`."""

    log_every = 20

    def __init__(self, config: TrainConfig, folder: TrainingFolder, checkpoint_every_s: float) -> None:
        super().__init__(folder, [phase.steps for phase in config.phases], checkpoint_every_s, RankGroup())
        self.config = config
        self.precision = fast_precision(torch.device("cpu"))
        self.tokenizer = load_vocabulary(folder.path)
        self.bank = PhraseBank(self.tokenizer)
        self._cpu_before_s = 0.0
        self.model: CLIP = CLIP(**architecture(MODEL_CFG, self.tokenizer, config.phases[0].side_px))
        self.average: CLIP = copy.deepcopy(self.model)  # the moving average of the weights
        rates = {"matrix_lr": config.matrix_lr, "matrix_decay": config.matrix_weight_decay, "other_lr": config.other_lr}
        self.optimisers = Optimisers(muon_and_adamw(self.model.named_parameters(), **rates))

    def _resize(self, side_px: int) -> None:
        """Change the image size: only the positional embedding differs, and what the optimisers remember of it."""
        for visual in (self.model.visual, self.average.visual):
            if visual.image_size[0] != side_px:
                positions: nn.Parameter = visual.positional_embedding
                positions.grad = None
                positions.data = positions_at(positions.data, side_px // _PATCH_PX)
                visual.image_size = (side_px, side_px)
                self.optimisers.forget(positions)

    def begin(self, phase: int) -> None:
        """See `TrainingRun.begin`."""
        settings = self.config.phases[phase]
        self._resize(settings.side_px)
        self._batches = SceneBatches(self.tokenizer, settings, seed=self.config.seed, size=self.config.batch)

    def take_step(self, phase: int, step: int) -> dict[str, Tensor]:
        """See `TrainingRun.take_step`."""
        config, settings, model, batch = self.config, self.config.phases[phase], self.model, self._batches[self.step]
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + self.step)
        patches = (settings.side_px // _PATCH_PX) ** 2
        order = torch.rand(len(batch.images), patches, generator=generator).argsort(dim=1)
        keep = order[:, : round(patches * (1 - settings.patch_dropout))]
        phrases = self.bank.tokens(generator)
        with torch.autocast("cpu", dtype=PRECISIONS[self.precision], enabled=self.precision != "fp32"):
            image = encode_image(model, normalise(batch.images), keep=keep)
            caption = encode_text(model, batch.tokens)
            phrase = encode_text(model, phrases)
        image, scale = image.float(), model.logit_scale.exp()
        own = torch.eye(len(image), dtype=torch.bool)
        known = known_true(batch.claimed, batch.denied, batch.present)
        of_captions = contrastive(scale * image @ caption.float().T, own, known)
        logits, positive = scale * image @ phrase.float().T, batch.present[:, self.bank.columns] > 0.5
        of_bank = (one_way(logits, positive, positive) + 0.5 * one_way(logits.T, positive.T, positive.T)) / 1.5
        self.optimisers.back(of_captions + config.bank_weight * of_bank)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        self.changing()
        share = settings.lr_start + (settings.lr_end - settings.lr_start) * step / max(1, settings.steps - 1)
        self.optimisers.step(share * min(1.0, (self.step + 1) / config.warmup_steps))
        with torch.no_grad():
            model.logit_scale.clamp_(max=_MOST_LOG_SCALE)
        follow(self.average, model, self.step, config.average_decay)
        return {"caption_loss": of_captions.detach(), "bank_loss": of_bank.detach()}

    def line(self, phase: int, step: int) -> dict[str, Any]:
        """See `TrainingRun.line`. The end of a phase has the average's `class_top1`."""
        settings = self.config.phases[phase]
        line = {"phase": settings.name, "step": self.step, "precision": self.precision, "cpu_s": round(self._cpu())}
        if step == settings.steps:
            line["top1"] = class_top1(self.average, self.tokenizer, scenes=self.config.evaluation_scenes)
        return line

    def _cpu(self) -> float:
        """Return the processor time of all sittings, in seconds."""
        return self._cpu_before_s + time.process_time()

    def state(self) -> dict[str, Any]:
        """See `TrainingRun.state`."""
        return {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimisers": self.optimisers.state(),
            "side_px": int(self.model.visual.image_size[0]),
            "config": self.config.model_dump(mode="json"),
            "cpu_s": self._cpu(),
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """See `TrainingRun.restore`."""
        self._resize(saved["side_px"])
        self.model.load_state_dict(saved["model"])
        self.average.load_state_dict(saved["average"])
        self.optimisers.restore(saved["optimisers"])
        self._cpu_before_s = saved["cpu_s"] - time.process_time()


def normalise(images: Tensor) -> Tensor:
    """Return uint8 (batch, 3, H, W) as float32, prepared as `PREPROCESS_CFG` says."""
    mean, std = (torch.tensor(PREPROCESS_CFG[key]).view(3, 1, 1) for key in ("mean", "std"))
    return (images.float() / 255.0 - mean) / std


@torch.inference_mode()
def class_top1(model: CLIP, tokenizer: SimpleTokenizer, *, scenes: int, render_scale: float = 1.0) -> float:
    """Return the share of held-out scenes with one thing whose nearest of all colour-kind phrases is the right one.

    About every seventh scene shows a pair that training never showed; chance is 1 in 360. Scenes are drawn larger by
    `render_scale` and averaged down.
    """
    side = int(model.visual.image_size[0])
    texts = encode_text(model, tokenizer([f"{colour} {kind}" for kind in KINDS for colour in COLOUR_NAMES]))
    right = 0
    for index in range(scenes):
        scene = make_scene(_EVALUATION_SEED, index, side_px=round(side * render_scale), max_objects=1)
        pixels = torch.from_numpy(np.array(resize_image(scene.image, side))).permute(2, 0, 1)[None]
        best = int((encode_image(model, normalise(pixels)) @ texts.T).argmax())
        right += best == concept_column(scene.objects[0].kind, scene.objects[0].colour)
    return right / scenes
