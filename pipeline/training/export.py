"""Turns a training into the bundled model: configuration, fp16 weights, vocabulary, model card, checksums."""

from __future__ import annotations

import json
import os
import platform
import shutil
from pathlib import Path
from typing import Any, Final

import torch
from open_clip.model import CLIP
from safetensors.torch import save
from torch import Tensor

from pipeline.finetune.fit import LATEST, TrainingFolder
from pipeline.scenes.captions import COLOUR_NAMES, HELDOUT_PAIRS, KINDS
from pipeline.training import drawn
from pipeline.training.batches import VOCABULARY_FILE, load_vocabulary
from pipeline.training.model import CONTEXT_LENGTH, architecture, positions_at
from stages.shared.model.catalog import CHECKSUMS_FILE, WEIGHTS_ROOT, sha256_of
from stages.shared.storage import replacing, write_text

CONFIG_FILE: Final = "model.json"
WEIGHTS_FILE: Final = "model.safetensors"
CARD_FILE: Final = "MODEL_CARD.md"

_POSITIONS: Final = "visual.positional_embedding"


def export_demo(
    run: Path, folder: Path | None = None, *, side_px: int | None = None, note: str = "", evaluation_scenes: int = 500
) -> dict[str, str]:
    """Write the averaged weights of a training into a folder that stock open_clip can load.

    The folder is created if it does not exist; None is the catalog's, whose checksums are renewed too. The side is a
    multiple of the patch, None the checkpoint's own: interpolated positions hardly change recognition and give the heat
    maps a finer grid. The model card gets `note`, a sentence on how the run went, and a figure on held-out scenes with
    one thing. Return the SHA-256 of each file in hex.
    """
    saved: dict[str, Any] = torch.load(run / LATEST, weights_only=True)
    side, tokenizer = side_px or int(saved["side_px"]), load_vocabulary(run)
    settings = architecture(drawn.MODEL_CFG, tokenizer, side)
    average: dict[str, Tensor] = saved["average"]
    grid = side // int(settings["vision_cfg"]["patch_size"])
    average[_POSITIONS] = positions_at(average[_POSITIONS], grid)
    halves = {name: value.to(torch.float16).contiguous() for name, value in average.items()}
    model = CLIP(**settings).eval()
    model.load_state_dict(halves)
    weights = save(halves, metadata={"format": "pt"})
    own = WEIGHTS_ROOT / "demo"
    folder = folder or own
    folder.mkdir(parents=True, exist_ok=True)
    settings["text_cfg"]["tokenizer_kwargs"] = {"bpe_path": VOCABULARY_FILE}
    preprocess = {"size": side, "mode": "RGB", **drawn.PREPROCESS_CFG}
    preprocess |= {"interpolation": "bicubic", "resize_mode": "squash"}
    described = {"model_cfg": settings, "preprocess_cfg": preprocess}
    shutil.copyfile(run / VOCABULARY_FILE, folder / VOCABULARY_FILE)
    write_text(folder / CONFIG_FILE, json.dumps(described, indent=2) + "\n")
    with replacing(folder / WEIGHTS_FILE) as temporary:
        temporary.write_bytes(weights)
    checksums = {each: sha256_of(folder / each) for each in (CONFIG_FILE, WEIGHTS_FILE, VOCABULARY_FILE)}
    config, log = saved["config"], TrainingFolder(run).lines()
    phases = {phase["name"]: phase for phase in config["phases"]}
    rows = [
        f"| {name} | {line['step']:,} | {phases[name]['side_px']} | {phases[name]['patch_dropout']:.0%} "
        f"| {line['caption_loss']:.3f} | {line['bank_loss']:.3f} | {line.get('top1', float('nan')):.3f} |"
        for name, line in {line["phase"]: line for line in log}.items()
    ]
    text = Path(__file__).with_name("card.md").read_text("utf-8")
    card = text.format(
        files="\n".join(f"| `{each}` | `{checksum}` |" for each, checksum in checksums.items()),
        parameters=sum(value.numel() for value in halves.values()),
        size_bytes=len(weights),
        side_px=side,
        context_length=CONTEXT_LENGTH,
        phases="\n".join(rows),
        config=json.dumps(config, indent=1),
        given=config,
        counts=(len(KINDS), len(COLOUR_NAMES), len(HELDOUT_PAIRS), len(KINDS) * len(COLOUR_NAMES)),
        kinds=", ".join(KINDS),
        colours=", ".join(COLOUR_NAMES),
        steps=log[-1]["step"],
        images=log[-1]["step"] * config["batch"],
        cpu_minutes=round(log[-1]["cpu_s"] / 60),
        machine=f"{os.cpu_count()} CPU cores ({platform.machine()}), no GPU",
        torch_version=torch.__version__,
        precision=" and ".join(sorted({line["precision"] for line in log})),
        scenes=evaluation_scenes,
        top1=drawn.class_top1(model, tokenizer, scenes=evaluation_scenes, render_scale=1.8),
        note=note,
    )
    write_text(folder / CARD_FILE, card)
    if folder.resolve() == own.resolve():
        path = WEIGHTS_ROOT / CHECKSUMS_FILE
        write_text(path, json.dumps({**json.loads(path.read_text("utf-8")), "demo": checksums}, indent=1) + "\n")
    return checksums
