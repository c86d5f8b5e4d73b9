"""Turns a checkpoint into what is shipped: configuration, fp16 weights, vocabulary, model card, checksums."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from open_clip.model import CLIP
from safetensors.torch import save
from torch import Tensor

from pipeline.scenes.captions import COLOUR_NAMES, HELDOUT_PAIRS, KINDS
from pipeline.training.config import MODEL_CFG, PREPROCESS_CFG
from pipeline.training.loop import CARD_FILE, VOCABULARY_FILE, WEIGHTS_FILE, class_top1, load_tokenizer
from pipeline.training.model import model_cfg, positions_at
from stages.shared.model.catalog import WEIGHTS_ROOT, sha256_of

CONFIG_FILE: Final = "model.json"
_POSITIONS: Final = "visual.positional_embedding"

_TEMPLATE: Final = """# The embedded model `demo`

A small CLIP (class-token vision transformer and text tower, loaded by stock open_clip), trained from random
weights on scenes drawn by `pipeline.scenes`. It exists so that the whole pipeline can be tried and tested
without a download and without any data.

## What it knows, and what it does not

- {kind_count} kinds of drawn things: {kinds}.
- {colour_count} colours: {colours}.
- Nothing is claimed for photographs: it has never seen one. Words that are not listed here still become
tokens but
  mean nothing to it.
- {pair_count} of the {all_pairs} colour-kind pairs were never shown in training (`HELDOUT_PAIRS`).
- Relations ("left of"), sizes and numbers were in its captions but are hardly tested. Texts beyond
  {context_length} tokens are cut.

## Files

| file | SHA-256 |
|---|---|
{files}

{parameters:,} parameters; `model.safetensors` is {size_bytes:,} bytes of fp16. Input {side_px} x {side_px}
pixels, RGB, the whole image squashed; patches of 10 pixels. Licence: Apache-2.0. No third-party weights; the
vocabulary is a selection of the merges in CLIP's public byte-pair vocabulary (MIT, via open_clip).

## Training

`python -m pipeline.training run OUT --config CONFIG.json{start}`, then
`python -m pipeline.training export OUT/latest.pt`. No boxes,
masks or locations were used: captions with images, and a bank of phrases that are true or false of an
image. The exported weights are a moving average over steps. Seed {seed}, batch {batch}, {steps:,} steps{began} on
{images:,} scenes, none seen twice; {cpu_minutes} minutes of processor time over all threads, on {machine},
torch {torch_version}, {precision}. {note}

| phase | last step | image side px | patches left out | caption loss | phrase loss | top-1, held-out |
|---|---|---|---|---|---|---|
{phases}

Losses in nats, means over the last log interval of each phase. Top-1: nearest of all {all_pairs} colour-kind
phrases, on {log_scenes} held-out scenes with one thing, drawn at the phase's size.

Measured on the exported fp16 file, {scenes} held-out scenes with one thing drawn larger and resized: top-1 of
{all_pairs} phrases {top1:.3f} (about every seventh scene shows a pair that training never showed).

Configuration:

```json
{config}
```
{earlier}"""


def export(
    checkpoint: Path, folder: Path, *, side_px: int | None = None, note: str = "", evaluation_scenes: int = 500
) -> dict[str, str]:
    """Write the averaged weights of a checkpoint into a folder that stock open_clip can load.

    Where the folder is the catalog's own, the checksums in `stages/shared/model/catalog.py` are renewed too.

    Args:
        checkpoint: a file of `pipeline.training.loop.train`; the vocabulary is taken from beside it.
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
    average[_POSITIONS] = positions_at(average[_POSITIONS], grid)
    halves = {name: value.to(torch.float16).contiguous() for name, value in average.items()}
    model = CLIP(**architecture).eval()
    model.load_state_dict(halves)
    top1 = class_top1(model, tokenizer, scenes=evaluation_scenes, render_scale=1.8)

    architecture["text_cfg"]["tokenizer_kwargs"] = {"bpe_path": VOCABULARY_FILE}
    settings = {"model_cfg": architecture, "preprocess_cfg": {"size": side, "mode": "RGB", **PREPROCESS_CFG}}
    _replace(folder / CONFIG_FILE, (json.dumps(settings, indent=2) + "\n").encode("utf-8"))
    _replace(folder / WEIGHTS_FILE, save(halves, metadata={"format": "pt"}))
    checksums = {name: sha256_of(folder / name) for name in (CONFIG_FILE, WEIGHTS_FILE, VOCABULARY_FILE)}
    card = _card(
        saved,
        files="\n".join(f"| `{name}` | `{checksum}` |" for name, checksum in checksums.items()),
        parameters=sum(value.numel() for value in halves.values()),
        size_bytes=(folder / WEIGHTS_FILE).stat().st_size,
        side_px=side,
        note=note,
        scenes=evaluation_scenes,
        top1=top1,
    )
    _replace(folder / CARD_FILE, card.encode("utf-8"))
    if folder.resolve() == (WEIGHTS_ROOT / "demo").resolve():
        renew_checksums(WEIGHTS_ROOT.parent / "catalog.py", checksums, entry="demo")
    return checksums


def _card(saved: Mapping[str, Any], **measured: Any) -> str:
    """The model card, in Markdown, from a checkpoint and from what was measured of the export."""
    config, log = saved["config"], saved["log"]
    last = {line["phase"]: line for line in log}
    top = {line["phase"]: line["top1"] for line in log if "top1" in line}
    phases = {phase["name"]: phase for phase in config["phases"]}
    rows = [
        f"| {name} | {line['step']:,} | {phases[name]['side_px']} | {phases[name]['patch_dropout']:.0%} "
        f"| {line['caption_loss']:.3f} | {line['bank_loss']:.3f} | {top.get(name, float('nan')):.3f} |"
        for name, line in last.items()
    ]
    earlier = saved["earlier"]
    return _TEMPLATE.format(
        kind_count=len(KINDS),
        kinds=", ".join(KINDS),
        colour_count=len(COLOUR_NAMES),
        colours=", ".join(COLOUR_NAMES),
        pair_count=len(HELDOUT_PAIRS),
        all_pairs=len(KINDS) * len(COLOUR_NAMES),
        context_length=MODEL_CFG["text_cfg"]["context_length"],
        seed=config["seed"],
        batch=config["batch"],
        steps=log[-1]["step"],
        images=log[-1]["step"] * config["batch"],
        cpu_minutes=round(log[-1]["cpu_s"] / 60),
        machine=f"{os.cpu_count()} CPU cores ({platform.machine()}), no GPU",
        torch_version=torch.__version__,
        precision=" and ".join(sorted({line["precision"] for line in log})),
        phases="\n".join(rows),
        log_scenes=config["evaluation_scenes"],
        config=json.dumps(config, indent=1),
        start=" --from-weights FOLDER" if earlier else "",
        began=", counted from the weights it began with (see the end)," if earlier else "",
        earlier=f"\n{earlier}" if earlier else "",
        **measured,
    )


def renew_checksums(catalog: Path, checksums: dict[str, str], *, entry: str) -> None:
    """Put new checksums into the catalog's source.

    Args:
        catalog: the source file; each entry holds each file name once, with its checksum.
        checksums: file name -> SHA-256 in hex.
        entry: name of the entry in `CATALOG`.

    Raises:
        ValueError: a file name isn't in the entry exactly once.
    """
    before, start, rest = catalog.read_text("utf-8").partition(f'    "{entry}": WeightsEntry(')
    text, end, after = rest.partition("\n    ),\n")
    for name, checksum in checksums.items():
        text, count = re.subn(rf'("{re.escape(name)}": )"[0-9a-f]{{64}}"', rf'\g<1>"{checksum}"', text)
        if count != 1:
            raise ValueError(f"expected {name} with a checksum once in {entry!r} of {catalog}, found it {count} times")
    _replace(catalog, "".join((before, start, text, end, after)).encode("utf-8"))


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)
