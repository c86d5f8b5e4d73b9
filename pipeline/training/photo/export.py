"""Turns a checkpoint of the photograph model into what is kept: configuration, fp16 weights, vocabulary, model card."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from open_clip.model import CLIP
from safetensors.torch import save
from torch import Tensor

from pipeline.training.export import renew_checksums
from pipeline.training.photo.config import CONTEXT_LENGTH, PREPROCESS_CFG
from pipeline.training.photo.material import VOCABULARY_FILE, load_vocabulary
from pipeline.training.photo.model import model_cfg
from stages.shared.model.catalog import WEIGHTS_ROOT, sha256_of
from stages.shared.model.towers.photo_trunk import GRID, STRIDE_PX

CONFIG_FILE: Final = "model.json"
WEIGHTS_FILE: Final = "model.safetensors"
CARD_FILE: Final = "MODEL_CARD.md"
FIGURES_FILE: Final = "FIGURES.md"
"""What was measured of the exported weights and is written by hand; the card takes it in where it is there."""

SIDE_PX: Final = 352
"""Side of the images that the model looks at: 22 x 22 tokens. It was chosen on the photographs held out."""

_MOST_BYTES: Final = 20_000_000

_TEMPLATE: Final = """# The photograph model `photo`

A small CLIP for photographs: an instrument to measure and choose settings with, not a product. A convolution trunk
whose {grid} x {grid} tokens are pooled by one attention, and a text tower. It is in the repository and not in the
wheel.

## Terms

The weights were trained on photographs of Flickr8k and COCO. Those are under the terms of Flickr and of their
owners: **non-commercial research and education**. Take the weights to be under the same terms. The network that it
began with (EfficientNet-Lite2, ImageNet) and the text teacher (all-MiniLM-L6-v2) are Apache-2.0; the vocabulary is a
selection of the merges in CLIP's public byte-pair vocabulary (MIT, via open_clip).

## What it learned from

- {photographs:,} photographs: Flickr8k's training photographs, squashed to {trained_side_px} x {trained_side_px}
  pixels, less the last {held_out} of the list, and 2,590 photographs of people from COCO; five captions each, and the
  captions' noun phrases.
- **No box, mask or point**: where things are it learned from the local loss alone, which asks that some token of a
  photograph fits each of its phrases.
- The ImageNet weights of its trunk have seen photographs of 1,000 kinds of things; none of them is "person".
- The text teacher was trained on captions of Flickr30k and COCO, among them very likely dev's as text, so retrieval
  by text is flattered.
- The {held_out} photographs held out are for fitting settings and calibrations.

## What it does not know

Its words are those of {words:,} captions and phrases. Other words become pieces that mean little. Texts beyond
{context_length} tokens are cut. It was made once, with one seed ({seed}).
{figures}
## Files

| file | SHA-256 |
|---|---|
{files}

{parameters:,} parameters; `model.safetensors` is {size_bytes:,} bytes of fp16. Input {side_px} x {side_px} pixels,
RGB, the whole photograph squashed; a token each {stride_px} pixels. It was trained at {trained_side_px} pixels
({trained_grid} x {trained_grid} tokens) and is used at more, which it was not trained for and which places things
better all the same; the position embedding is interpolated.

## Training

`python -m pipeline.training photo OUT --photos FOLDER`, then
`python -m pipeline.training photo-export OUT`. {note}

| phase | steps | caption loss | phrase loss | local loss | distillation loss |
|---|---|---|---|---|---|
{phases}

Losses in nats, means over the last log interval of each phase; what is exported is a moving average over steps.

```json
{config}
```
"""


def export_photo(run: Path, folder: Path | None = None, *, side_px: int = SIDE_PX, note: str = "") -> dict[str, str]:
    """Write the averaged weights of a run's checkpoint into a folder that open_clip can load.

    Where the folder is the catalog's own, the checksums in `stages/shared/model/catalog.py` are renewed too.

    Args:
        run: Folder of the run, with its checkpoint and vocabulary.
        folder: Where to write; made if it is not there. None: the catalog's.
        side_px: Side of the images that the model is to look at, a multiple of `STRIDE_PX`. It may be larger than in
            training: the network sees smaller things then and has more tokens for them.
        note: A sentence on how the run went, for the model card.

    Returns:
        File name -> SHA-256 in hex.

    Raises:
        ValueError: The text tower has not learned to stand beside the images yet, or the file gets too large.
    """
    saved: dict[str, Any] = torch.load(run / "latest.pt", weights_only=True)
    own = WEIGHTS_ROOT / "photo"
    folder = folder or own
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(run / VOCABULARY_FILE, folder / VOCABULARY_FILE)
    architecture = model_cfg(load_vocabulary(folder))
    halves = exported_state(saved["average"])
    projection = halves["text_projection"]
    if projection.shape[1] != architecture["embed_dim"]:
        raise ValueError(f"expected texts of {architecture['embed_dim']} channels, got {projection.shape[1]}: train on")
    CLIP(**architecture).load_state_dict(halves)
    weights = save(halves, metadata={"format": "pt"})
    if len(weights) > _MOST_BYTES:
        raise ValueError(f"expected at most {_MOST_BYTES:,} bytes of weights, got {len(weights):,}")

    architecture["text_cfg"]["tokenizer_kwargs"] = {"bpe_path": VOCABULARY_FILE}
    architecture["vision_cfg"]["image_size"] = side_px
    settings = {"model_cfg": architecture, "preprocess_cfg": {"size": side_px, "mode": "RGB", **PREPROCESS_CFG}}
    _replace(folder / CONFIG_FILE, (json.dumps(settings, indent=2) + "\n").encode("utf-8"))
    _replace(folder / WEIGHTS_FILE, weights)
    checksums = {name: sha256_of(folder / name) for name in (CONFIG_FILE, WEIGHTS_FILE, VOCABULARY_FILE)}
    card = _card(
        saved,
        files="\n".join(f"| `{name}` | `{checksum}` |" for name, checksum in checksums.items()),
        parameters=sum(value.numel() for value in halves.values()),
        size_bytes=len(weights),
        side_px=side_px,
        grid=side_px // STRIDE_PX,
        note=note,
        figures=_figures(folder),
    )
    _replace(folder / CARD_FILE, card.encode("utf-8"))
    if folder.resolve() == own.resolve():
        renew_checksums(WEIGHTS_ROOT.parent / "catalog.py", checksums, entry="photo")
    return checksums


def exported_state(average: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The model's part of a run's moving average in fp16, with the captions' scale as open_clip's `logit_scale`."""
    state = {
        name.removeprefix("model."): value.to(torch.float16 if value.is_floating_point() else value.dtype).contiguous()
        for name, value in average.items()
        if name.startswith("model.")
    }
    state["logit_scale"] = average["scales.logs"][0].clone().to(torch.float16)
    return state


def _figures(folder: Path) -> str:
    path = folder / FIGURES_FILE
    return f"\n{path.read_text('utf-8').strip()}\n\n" if path.is_file() else "\n"


def _card(saved: Mapping[str, Any], **measured: Any) -> str:
    """The model card, in Markdown, from a checkpoint and from what is known of the export."""
    config, log = saved["config"], saved["log"]
    rows = []
    for phase in config["phases"]:
        lines = [line for line in log if line["phase"] == phase["name"]]
        losses = (f"{lines[-1][name]:.3f}" if name in lines[-1] else "" for name in _LOSSES)
        rows.append(f"| {phase['name']} | {lines[-1]['step']:,} | {' | '.join(losses)} |")
    return _TEMPLATE.format(
        trained_grid=GRID,
        trained_side_px=GRID * STRIDE_PX,
        stride_px=STRIDE_PX,
        photographs=saved["photographs"],
        words=saved["texts"],
        held_out=config["held_out"],
        seed=config["seed"],
        context_length=CONTEXT_LENGTH,
        phases="\n".join(rows),
        config=json.dumps(config, indent=1),
        **measured,
    )


_LOSSES: Final = ("caption_loss", "phrase_loss", "local_loss", "distillation_loss")


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)
