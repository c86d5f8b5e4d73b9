"""The text of the model card, from what a checkpoint knows about itself."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from stages.model.scenes.vocabulary import COLOUR_NAMES, HELDOUT_PAIRS, KINDS

_TEMPLATE: Final = """# The embedded model `demo`

A small CLIP (class-token vision transformer and text tower, loaded by stock open_clip), trained from random
weights on scenes drawn by `stages.model.scenes`. It exists so that the whole pipeline can be tried and tested
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

`python -m stages.model.train run OUT --config CONFIG.json{start}`, then
`python -m stages.model.train export OUT/latest.pt`. No boxes,
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

_TRAINING: Final = "## Training\n"


def write_card(
    *,
    config: Mapping[str, Any],
    log: Sequence[Mapping[str, Any]],
    checksums: Mapping[str, str],
    side_px: int,
    parameters: int,
    size_bytes: int,
    top1: float,
    note: str,
    scenes: int,
    machine: str,
    torch_version: str,
    context_length: int,
    earlier: str = "",
) -> str:
    """Write the model card.

    Args:
        config: the run's configuration as JSON-like values.
        log: the run's log lines, at least one.
        checksums: file name -> SHA-256 in hex.
        side_px: image side of the exported model.
        parameters: number of weights.
        size_bytes: size of the weights file.
        top1: 0-1, measured on the exported weights.
        note: a sentence on how the run went, or "".
        scenes: how many scenes `top1` was measured on.
        machine: what the run ran on.
        torch_version: torch's version.
        context_length: tokens of a text.
        earlier: how the weights that the run began with were trained (`told_training`); "" for random ones.

    Returns:
        Markdown.
    """
    last: dict[str, Mapping[str, Any]] = {}
    top: dict[str, float] = {}
    for line in log:
        last[line["phase"]] = line
        if "top1" in line:
            top[line["phase"]] = line["top1"]
    phases = {phase["name"]: phase for phase in config["phases"]}
    rows = [
        f"| {name} | {line['step']:,} | {phases[name]['side_px']} | {phases[name]['patch_dropout']:.0%} "
        f"| {line['caption_loss']:.3f} | {line['bank_loss']:.3f} | {top.get(name, float('nan')):.3f} |"
        for name, line in last.items()
    ]
    steps = int(log[-1]["step"])
    return _TEMPLATE.format(
        kind_count=len(KINDS),
        kinds=", ".join(KINDS),
        colour_count=len(COLOUR_NAMES),
        colours=", ".join(COLOUR_NAMES),
        pair_count=len(HELDOUT_PAIRS),
        all_pairs=len(KINDS) * len(COLOUR_NAMES),
        context_length=context_length,
        files="\n".join(f"| `{name}` | `{checksum}` |" for name, checksum in checksums.items()),
        parameters=parameters,
        size_bytes=size_bytes,
        side_px=side_px,
        seed=config["seed"],
        batch=config["batch"],
        steps=steps,
        images=steps * int(config["batch"]),
        cpu_minutes=round(float(log[-1]["cpu_s"]) / 60),
        machine=machine,
        torch_version=torch_version,
        precision=" and ".join(sorted({line["precision"] for line in log})),
        phases="\n".join(rows),
        log_scenes=config["evaluation_scenes"],
        scenes=scenes,
        top1=top1,
        note=note,
        config=json.dumps(config, indent=1),
        start=" --from-weights FOLDER" if earlier else "",
        began=", counted from the weights it began with (see the end)," if earlier else "",
        earlier=f"\n{earlier}" if earlier else "",
    )


def told_training(card: str, weights_sha256: str) -> str:
    """What a model card says of the training, as a section for the card of a run that begins with its weights.

    Args:
        card: the text of a card by `write_card`.
        weights_sha256: checksum of the weights that it belongs to.

    Raises:
        ValueError: there is no such section in it.
    """
    _, found, told = card.partition(_TRAINING)
    if not found:
        raise ValueError(f"expected a model card with the section {_TRAINING.strip()!r}")
    return f"## Before that\n\nThe weights it began with: `{weights_sha256}`.\n{told}"
