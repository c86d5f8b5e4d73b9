"""Turns a training into the bundled model: configuration, fp16 weights, vocabulary, model card, checksums."""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from open_clip.model import CLIP
from safetensors.torch import save
from torch import Tensor

from pipeline.finetune.fit import LATEST, TrainingFolder
from pipeline.scenes.captions import COLOUR_NAMES, HELDOUT_PAIRS, KINDS
from pipeline.training import drawn, photo
from pipeline.training.batches import VOCABULARY_FILE, load_vocabulary
from pipeline.training.model import CONTEXT_LENGTH, architecture, positions_at
from stages.shared.model.catalog import CHECKSUMS_FILE, WEIGHTS_ROOT, sha256_of
from stages.shared.model.towers.photo_trunk import GRID, STRIDE_PX
from stages.shared.storage import replacing, write_text

CONFIG_FILE: Final = "model.json"
WEIGHTS_FILE: Final = "model.safetensors"
CARD_FILE: Final = "MODEL_CARD.md"
FIGURES_FILE: Final = "FIGURES.md"  # measurements, written by hand; the card of `photo` includes it if it exists
PHOTO_SIDE_PX: Final = 352  # of its images: 22 x 22 tokens, chosen on the photographs held out

_POSITIONS: Final = "visual.positional_embedding"


def export_demo(
    run: Path, folder: Path | None = None, *, side_px: int | None = None, note: str = "", evaluation_scenes: int = 500
) -> dict[str, str]:
    """Write the averaged weights of a training of `demo` into a folder that stock open_clip can load.

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
    config, log = saved["config"], TrainingFolder(run).lines()
    last = {line["phase"]: line for line in log}
    phases = {phase["name"]: phase for phase in config["phases"]}
    rows = [
        f"| {name} | {line['step']:,} | {phases[name]['side_px']} | {phases[name]['patch_dropout']:.0%} "
        f"| {line['caption_loss']:.3f} | {line['bank_loss']:.3f} | {line.get('top1', float('nan')):.3f} |"
        for name, line in last.items()
    ]
    known = {
        "counts": (len(KINDS), len(COLOUR_NAMES), len(HELDOUT_PAIRS), len(KINDS) * len(COLOUR_NAMES)),
        "kinds": ", ".join(KINDS),
        "colours": ", ".join(COLOUR_NAMES),
        "steps": log[-1]["step"],
        "images": log[-1]["step"] * config["batch"],
        "cpu_minutes": round(log[-1]["cpu_s"] / 60),
        "machine": f"{os.cpu_count()} CPU cores ({platform.machine()}), no GPU",
        "torch_version": torch.__version__,
        "precision": " and ".join(sorted({line["precision"] for line in log})),
        "scenes": evaluation_scenes,
        "top1": drawn.class_top1(model, tokenizer, scenes=evaluation_scenes, render_scale=1.8),
        "note": note,
    }
    return _write("demo", run, folder, settings, drawn.PREPROCESS_CFG, halves, config, rows, known)


def export_photo(
    run: Path, folder: Path | None = None, *, side_px: int = PHOTO_SIDE_PX, note: str = ""
) -> dict[str, str]:
    """Write the averaged weights of a training of `photo`; see `export_demo`.

    The side may be larger than in training: the network then sees smaller things and has more tokens for them. Raises
    ValueError if the text tower has not learned to stand beside the images yet.
    """
    saved: dict[str, Any] = torch.load(run / LATEST, weights_only=True)
    settings = architecture(photo.MODEL_CFG, load_vocabulary(run), GRID * STRIDE_PX)
    average: dict[str, Tensor] = saved["average"]
    halves = {
        name.removeprefix("model."): value.to(torch.float16 if value.is_floating_point() else value.dtype).contiguous()
        for name, value in average.items()
        if name.startswith("model.")
    }
    halves["logit_scale"] = average["scales.logs"][0].clone().to(torch.float16)  # that of the captions
    width = halves["text_projection"].shape[1]
    if width != settings["embed_dim"]:
        raise ValueError(f"expected texts of {settings['embed_dim']} channels, got {width}: train on")
    CLIP(**settings).load_state_dict(halves)
    settings["vision_cfg"]["image_size"] = side_px
    config, log = saved["config"], TrainingFolder(run).lines()
    rows = []
    for phase in config["phases"]:
        line = [each for each in log if each["phase"] == phase["name"]][-1]
        losses = (
            f"{line[key]:.3f}" if (key := f"{name}_loss") in line else ""
            for name in ("caption", "phrase", "local", "distillation")
        )
        rows.append(f"| {phase['name']} | {line['step']:,} | {' | '.join(losses)} |")
    figures = (folder or WEIGHTS_ROOT / "photo") / FIGURES_FILE
    known = {
        "trained": (GRID, GRID * STRIDE_PX),
        "grid": side_px // STRIDE_PX,
        "stride_px": STRIDE_PX,
        "photographs": saved["photographs"],
        "words": saved["texts"],
        "figures": f"\n{figures.read_text('utf-8').strip()}\n\n" if figures.is_file() else "\n",
        "note": note,
    }
    return _write("photo", run, folder, settings, photo.PREPROCESS_CFG, halves, config, rows, known)


def _write(
    name: str,
    run: Path,
    folder: Path | None,
    settings: dict[str, Any],
    preprocess: Mapping[str, Any],
    halves: dict[str, Tensor],
    config: Mapping[str, Any],
    phases: list[str],
    known: Mapping[str, Any],
) -> dict[str, str]:
    """Write the files of a model for the side in `settings`, and its checksums if the folder is the catalog's.

    `phases` are rows of the card's table, and `known` further values for it.
    """
    weights = save(halves, metadata={"format": "pt"})
    side_px, own = settings["vision_cfg"]["image_size"], WEIGHTS_ROOT / name
    folder = folder or own
    folder.mkdir(parents=True, exist_ok=True)
    settings["text_cfg"]["tokenizer_kwargs"] = {"bpe_path": VOCABULARY_FILE}
    described = {"model_cfg": settings, "preprocess_cfg": {"size": side_px, "mode": "RGB", **preprocess}}
    described["preprocess_cfg"] |= {"interpolation": "bicubic", "resize_mode": "squash"}
    shutil.copyfile(run / VOCABULARY_FILE, folder / VOCABULARY_FILE)
    write_text(folder / CONFIG_FILE, json.dumps(described, indent=2) + "\n")
    with replacing(folder / WEIGHTS_FILE) as temporary:
        temporary.write_bytes(weights)
    checksums = {each: sha256_of(folder / each) for each in (CONFIG_FILE, WEIGHTS_FILE, VOCABULARY_FILE)}
    card = Path(__file__).with_name("cards") / f"{name}.md"
    text = card.read_text("utf-8").format(
        files="\n".join(f"| `{each}` | `{checksum}` |" for each, checksum in checksums.items()),
        parameters=sum(value.numel() for value in halves.values()),
        size_bytes=len(weights),
        side_px=side_px,
        context_length=CONTEXT_LENGTH,
        phases="\n".join(phases),
        config=json.dumps(config, indent=1),
        given=config,
        **known,
    )
    write_text(folder / CARD_FILE, text)
    if folder.resolve() == own.resolve():
        path = WEIGHTS_ROOT / CHECKSUMS_FILE
        write_text(path, json.dumps({**json.loads(path.read_text("utf-8")), name: checksums}, indent=1) + "\n")
    return checksums
