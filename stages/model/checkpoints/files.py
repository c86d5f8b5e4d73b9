"""The files of a checkpoint, and those beside its weights that describe the model; none is opened by a library."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from phrasebox.stages.contract.errors import WeightsError

OPEN_CLIP_CONFIG: Final = "open_clip_config.json"
TRANSFORMERS_CONFIG: Final = "config.json"
PARAMS: Final = "params.txt"
TUNED_MODEL: Final = "model"  # the folder, inside that of a fine-tuning, that holds the tuned model

INDEX_SUFFIX: Final = ".index.json"
"""End of the name of an index as Hugging Face writes it: tensor -> file."""

_OPEN_CLIP_WEIGHTS: Final = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)
_TRANSFORMERS_WEIGHTS: Final = (
    "model.safetensors",
    f"model.safetensors{INDEX_SUFFIX}",
    "pytorch_model.bin",
    f"pytorch_model.bin{INDEX_SUFFIX}",
)
_SUFFIXES: Final = (".safetensors", ".bin", ".pt", ".pth")


def place_of(path: Path) -> Path:
    """Return the path of a checkpoint, a file or a folder; in the folder of a fine-tuning that of its model."""
    return path / TUNED_MODEL if (path / TUNED_MODEL / OPEN_CLIP_CONFIG).is_file() else path


def weights_in(folder: Path, *, is_of_open_clip: bool) -> Path:
    """Return the weights in a folder: the first of the usual files, or else the only one.

    Raise WeightsError. is_of_open_clip: Whether open_clip's names come first.
    """
    usual_names = (*_TRANSFORMERS_WEIGHTS, *_OPEN_CLIP_WEIGHTS)
    if is_of_open_clip:
        usual_names = (*_OPEN_CLIP_WEIGHTS, *_TRANSFORMERS_WEIGHTS)
    for name in usual_names:
        if (folder / name).is_file():
            return folder / name
    files = sorted(file for file in folder.iterdir() if file.suffix in _SUFFIXES)
    if len(files) != 1:
        raise WeightsError(
            f"{folder} holds {len(files)} files of weights: expected {_TRANSFORMERS_WEIGHTS[0]}, "
            f"{_TRANSFORMERS_WEIGHTS[2]}, {_OPEN_CLIP_WEIGHTS[0]} or one {'/'.join(_SUFFIXES)} file"
        )
    return files[0]


def params_of(folder: Path) -> Iterator[Path]:
    """Yield the `params.txt` beside a checkpoint, and above its folder `checkpoints`, where they exist."""
    for file in (folder / PARAMS, folder.parent / PARAMS):
        if file.is_file():
            yield file


def check_described(path: Path) -> None:
    """Raise WeightsError if no file says what model a checkpoint is. Files that may be damaged are left to others."""
    place = place_of(path.expanduser().absolute())
    folder = place if place.is_dir() else place.parent
    names = (OPEN_CLIP_CONFIG, TRANSFORMERS_CONFIG)
    if any((folder / name).exists() for name in names) or any(params_of(folder)):
        return
    weights = weights_in(place, is_of_open_clip=False) if place.is_dir() else place
    if zipfile.is_zipfile(weights):  # as torch writes it
        raise undescribed(weights)


def undescribed(weights: Path) -> WeightsError:
    """Return the error about weights without a file that describes them."""
    return WeightsError(
        f"nothing says what model {weights} is (no {TRANSFORMERS_CONFIG}, {OPEN_CLIP_CONFIG} or {PARAMS} beside "
        "it), and tensors do not show the activation: give its name in open_clip with the file, --model NAME "
        "--weights FILE (model.name, model.weights), or describe it, --set model.config=FILE.json"
    )
