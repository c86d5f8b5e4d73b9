"""Tensors of a checkpoint, in safetensors or in the format of torch, in one file or several. Nothing in them runs."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path, PurePath
from typing import Final

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from stages.contract.errors import WeightsError
from stages.shared.model.checkpoints.torchscript import NotDataError, is_torchscript, read_torchscript

INDEX_SUFFIX: Final = ".index.json"
"""End of the name of a file that says which of several files holds which tensor, as Hugging Face writes it."""

_WRAPPERS: Final = ("module.", "_orig_mod.")
"""What `DistributedDataParallel` and `torch.compile` put before the names of a model's tensors."""

Shapes = dict[str, tuple[int, ...]]
"""Name -> shape of a checkpoint's tensors."""


def weight_files(path: Path, key: str = "model.weights") -> tuple[Path, ...]:
    """All files that hold a checkpoint: the file itself, or an index and the files that it names, in order.

    Args:
        path: a file of weights, or an index of several.
        key: the key of the configuration that names it, for messages.

    Raises:
        WeightsError: a file is missing, or the index makes no sense.
    """
    if not path.name.endswith(INDEX_SUFFIX):
        return (path,)
    try:
        names = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise WeightsError(f"{key}: {path} is not an index of weight files: {type(error).__name__}: {error}") from error
    if not names or any(PurePath(name).name != name for name in names):
        raise WeightsError(f"{key}: {path} does not name weight files of its own folder")
    files = [path.parent / name for name in names]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise WeightsError(
            f"{key}: {path} names {len(files)} files, of which {len(missing)} are missing, such as {missing[0]}"
        )
    return (path, *files)


def read_state(path: Path, key: str = "model.weights") -> dict[str, Tensor]:
    """Read the state dict of a checkpoint; nothing in the file is executed.

    Args:
        path: a file, or an index of several.
        key: the key of the configuration that names it, for messages.

    Raises:
        WeightsError: a file is missing or damaged, is a TorchScript archive with more than tensors in it, or holds
            something else.
    """
    state: dict[str, Tensor] = {}
    for file in weight_files(path, key):
        if file != path or not path.name.endswith(INDEX_SUFFIX):
            state.update(_read_file(file, key))
    return state


def read_shapes(path: Path, key: str = "model.weights") -> Shapes:
    """Names and shapes of a checkpoint's tensors. Of safetensors only the heads of the files are read.

    Raises:
        WeightsError: as in `read_state`.
    """
    shapes: Shapes = {}
    for file in weight_files(path, key):
        if file.suffix == ".safetensors":
            try:
                with safe_open(file, framework="pt") as opened:
                    found = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
            except Exception as error:
                raise _unreadable(file, key, error) from error
            shapes.update({_plain_name(name): shape for name, shape in found.items()})
        elif not file.name.endswith(INDEX_SUFFIX):
            state = _read_file(file, key, mapped=True)
            shapes.update({name: tuple(value.shape) for name, value in state.items() if isinstance(value, Tensor)})
    return shapes


def _read_file(path: Path, key: str, *, mapped: bool = False) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return {_plain_name(name): value for name, value in load_file(path).items()}
        is_zip = zipfile.is_zipfile(path)
        if is_zip and is_torchscript(path):
            return read_torchscript(path)
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped and is_zip)
    except NotDataError as error:
        raise WeightsError(
            f"{key}: {path} is a TorchScript archive that holds more than tensors ({error}), and loading it could run "
            "code. Save its state dict with torch.save or as safetensors where you trust it"
        ) from error
    except Exception as error:
        raise _unreadable(path, key, error) from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict):
        raise WeightsError(f"{key}: {path} holds a {type(state).__name__}, not a state dict")
    return {_plain_name(str(name)): value for name, value in state.items()}


def _plain_name(name: str) -> str:
    """The name of a tensor without what training put before it."""
    while name.startswith(_WRAPPERS):
        name = name.partition(".")[2]
    return name


def _unreadable(path: Path, key: str, error: Exception) -> WeightsError:
    return WeightsError(
        f"{key}: cannot read {path} as safetensors or with torch.load(weights_only=True), is it damaged? "
        f"{type(error).__name__}: {first_line(error)}"
    )


def first_line(error: Exception) -> str:
    """The first line of a message: torch continues for paragraphs with ways to load the file nevertheless."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
