"""Turns a checkpoint into what is shipped: configuration, fp16 weights, vocabulary, card, checksums."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
from pathlib import Path
from typing import Any, Final

import torch
from open_clip.model import CLIP
from safetensors.torch import save
from torch import Tensor

from stages.model.catalog import WEIGHTS_ROOT, sha256_of
from stages.model.train.card import write_card
from stages.model.train.config import MODEL_CFG, PREPROCESS_CFG
from stages.model.train.evaluate import class_top1
from stages.model.train.loop import CARD_FILE, VOCABULARY_FILE, WEIGHTS_FILE, load_tokenizer
from stages.model.train.model import model_cfg, resize_positions

CONFIG_FILE: Final = "model.json"
_CARD_SCENES: Final = 500
_POSITIONS: Final = "visual.positional_embedding"


def export(
    checkpoint: Path, folder: Path, *, side_px: int | None = None, note: str = "", evaluation_scenes: int = _CARD_SCENES
) -> dict[str, str]:
    """Write the averaged weights of a checkpoint into a folder that stock open_clip can load.

    Where the folder is the catalog's own, the checksums in `stages/model/catalog.py` are renewed too.

    Args:
        checkpoint: a file of `stages.model.train.loop.train`; the vocabulary is taken from beside it.
        folder: where to write; made if it is not there. Files of the same names are replaced.
        side_px: image side to export for, a multiple of the patch; None for the checkpoint's own. The positional
            embedding is interpolated, which hardly changes what is recognised and gives the heat maps a finer grid.
        note: a sentence on how the run went, for the model card.
        evaluation_scenes: held-out scenes with one thing for the figure in the model card.

    Returns:
        File name -> SHA-256 in hex.
    """
    saved: dict[str, Any] = torch.load(checkpoint, weights_only=True)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(checkpoint.parent / VOCABULARY_FILE, folder / VOCABULARY_FILE)
    tokenizer = load_tokenizer(folder)
    side = side_px or int(saved["side_px"])
    architecture = model_cfg(tokenizer, side)
    average: dict[str, Tensor] = saved["average"]
    grid = side // int(architecture["vision_cfg"]["patch_size"])
    average[_POSITIONS] = resize_positions(average[_POSITIONS], grid)
    halves = {name: value.to(torch.float16).contiguous() for name, value in average.items()}
    model = CLIP(**architecture).eval()
    model.load_state_dict(halves)
    top1 = class_top1(model, tokenizer, scenes=evaluation_scenes, render_scale=1.8)

    architecture["text_cfg"]["tokenizer_kwargs"] = {"bpe_path": VOCABULARY_FILE}
    settings = {
        "model_cfg": architecture,
        "preprocess_cfg": {"size": architecture["vision_cfg"]["image_size"]},
    }
    settings["preprocess_cfg"].update(mode="RGB", **PREPROCESS_CFG)
    _replace(folder / CONFIG_FILE, (json.dumps(settings, indent=2) + "\n").encode("utf-8"))
    _replace(folder / WEIGHTS_FILE, save(halves, metadata={"format": "pt"}))

    checksums = {name: sha256_of(folder / name) for name in (CONFIG_FILE, WEIGHTS_FILE, VOCABULARY_FILE)}
    card = write_card(
        config=saved["config"],
        log=saved["log"],
        checksums=checksums,
        side_px=side,
        parameters=sum(value.numel() for value in halves.values()),
        size_bytes=(folder / WEIGHTS_FILE).stat().st_size,
        top1=top1,
        note=note,
        scenes=evaluation_scenes,
        machine=f"{os.cpu_count()} CPU cores ({platform.machine()}), no GPU",
        torch_version=torch.__version__,
        context_length=MODEL_CFG["text_cfg"]["context_length"],
        earlier=saved["earlier"],
    )
    _replace(folder / CARD_FILE, card.encode("utf-8"))
    if folder.resolve() == (WEIGHTS_ROOT / "demo").resolve():
        renew_checksums(WEIGHTS_ROOT.parent / "catalog.py", checksums)
    return checksums


def renew_checksums(catalog: Path, checksums: dict[str, str]) -> None:
    """Put new checksums into the catalog's source.

    Args:
        catalog: the source file; it holds each file name once, with its checksum.
        checksums: file name -> SHA-256 in hex.

    Raises:
        ValueError: a file name isn't in the catalog exactly once.
    """
    text = catalog.read_text("utf-8")
    for name, checksum in checksums.items():
        text, count = re.subn(rf'("{re.escape(name)}": )"[0-9a-f]{{64}}"', rf'\g<1>"{checksum}"', text)
        if count != 1:
            raise ValueError(f"expected {name} with a checksum once in {catalog}, found it {count} times")
    _replace(catalog, text.encode("utf-8"))


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)
