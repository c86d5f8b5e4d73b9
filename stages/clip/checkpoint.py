"""Checkpoint file -> state dict, without running anything in the file."""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from stages.errors import WeightsError


def read_state(path: Path) -> dict[str, Tensor]:
    """State dict of a checkpoint; nothing in the file is executed. Raises WeightsError."""
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        if _is_torchscript(path):
            return _read_torchscript(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except WeightsError:
        raise
    except Exception as error:
        raise WeightsError(
            f"model.weights: cannot read {path} as safetensors or with torch.load(weights_only=True): {error}"
        ) from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict):
        raise WeightsError(f"model.weights: {path} holds a {type(state).__name__}, not a state dict")
    return {str(key).removeprefix("module."): value for key, value in state.items()}


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _read_torchscript(path: Path) -> dict[str, Tensor]:
    """State dict of OpenAI's own .pt files, which are TorchScript archives.

    The archive's code is compiled but not run: all that loading would run is a `__setstate__` method, and an
    archive with one is refused. Names in TorchScript source are ASCII, so that the bytes cannot hide it.
    """
    with zipfile.ZipFile(path) as archive:
        if any(b"__setstate__" in archive.read(name) for name in archive.namelist() if name.endswith(".py")):
            raise WeightsError(f"model.weights: {path} is a TorchScript archive that runs code when it is loaded")
    with warnings.catch_warnings():
        # torch.jit is deprecated as a way to write programs; OpenAI's files will stay what they are.
        warnings.simplefilter("ignore", DeprecationWarning)
        module = torch.jit.load(str(path), map_location="cpu")
    return {key: value.float() if value.is_floating_point() else value for key, value in module.state_dict().items()}
