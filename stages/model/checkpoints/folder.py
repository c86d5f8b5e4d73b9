"""A checkpoint on disk, read once: the shapes of its tensors, and the files beside them that describe the model.

    file                          written by                          describes
    open_clip_config.json         open_clip's push_to_hf_hub          architecture, images, tokenizer
    params.txt                    open_clip's trainer                 name of the architecture, activation, images
    config.json                   transformers' save_pretrained       architecture
    preprocessor_config.json,     transformers' save_pretrained       images
        processor_config.json
    tokenizer.json, ...           transformers' save_pretrained       tokenizer of any but a CLIP

All of them are data and no code.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phrasebox.stages.contract.errors import WeightsError
from phrasebox.stages.contract.values import Json
from phrasebox.stages.model.checkpoints.dual_encoders import REFUSED, kind_of
from phrasebox.stages.model.checkpoints.files import (
    OPEN_CLIP_CONFIG,
    TRANSFORMERS_CONFIG,
    params_of,
    place_of,
    weights_in,
)
from phrasebox.stages.model.checkpoints.layouts import layout_of
from phrasebox.stages.model.checkpoints.state import State, read_json, read_shapes


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The files of a checkpoint; a section is empty where its file does not exist.

    Attributes:
        name: Name for people.
        folder: The folder of the files that describe it.
        weights: A file, or the index of several.
        shapes: The tensors, on the meta device.
        layout: Their layout, see `layouts`.
        open_clip_config: `open_clip_config.json`.
        params: `params.txt`, its values parsed.
        transformers_config: `config.json`.
    """

    name: str
    folder: Path
    weights: Path
    shapes: State
    layout: str
    open_clip_config: Json
    params: Json
    transformers_config: Json


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint, a file or a folder, without the numbers of its tensors.

    The folder may be that of a fine-tuning. Raise WeightsError if there are no weights, or
    several, if a file is damaged, or if `config.json` is that of a model that is refused.
    """
    name = path.resolve().name if path.is_dir() else path.stem
    path = place_of(path)
    folder = path if path.is_dir() else path.parent
    open_clip_config = read_json(folder / OPEN_CLIP_CONFIG)
    weights = weights_in(path, is_of_open_clip=bool(open_clip_config)) if path.is_dir() else path
    transformers_config = read_json(folder / TRANSFORMERS_CONFIG)
    params = _params_of(folder)
    layout = None
    if not open_clip_config and not params:
        layout = _layout_by_config(transformers_config)
    shapes = read_shapes(weights)
    return Checkpoint(
        name=name,
        folder=folder,
        weights=weights,
        shapes=shapes,
        layout=layout or layout_of(shapes, weights),
        open_clip_config=open_clip_config,
        params=params,
        transformers_config=transformers_config,
    )


def _layout_by_config(settings: Json) -> str | None:
    """Return the layout of a dual encoder, whose tensors transformers knows; None if tensors have to show it."""
    model_type = str(settings.get("model_type"))
    if model_type in REFUSED:
        raise WeightsError(f"a model of the type {model_type} cannot be explained: {REFUSED[model_type]}")
    kind = kind_of(settings)
    return None if kind is None else kind.layout


def _params_of(folder: Path) -> Json:
    """Read the trainer's `params.txt` beside a checkpoint or above its folder `checkpoints`, if there is one."""
    for file in params_of(folder):
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
        params = {
            key: _parsed(value) for key, colon, value in (line.partition(": ") for line in lines) if colon
        }
        if "model" in params:
            return params
    return {}


def _parsed(text: str) -> Any:
    """Return a number, list, flag or None as the trainer printed it, or else the text."""
    try:
        return ast.literal_eval(text)
    except (
        ValueError,
        TypeError,
        SyntaxError,
        MemoryError,
        RecursionError,
    ):  # as its documentation lists them
        return text
