"""Checkpoint file -> state dict, without running anything in the file."""

from __future__ import annotations

import zipfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from stages.contract.errors import WeightsError


def read_state(path: Path) -> dict[str, Tensor]:
    """State dict of a checkpoint; nothing in the file is executed. Raises WeightsError."""
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        if _is_torchscript(path):
            raise WeightsError(
                f"model.weights: {path} is a TorchScript archive, and loading one can run code that is in it. Save its "
                "state dict with torch.save or as safetensors where you trust it, or use open_clip's `openai` tags"
            )
        state = torch.load(path, map_location="cpu", weights_only=True)
    except WeightsError:
        raise
    except Exception as error:
        raise WeightsError(
            f"model.weights: cannot read {path} as safetensors or with torch.load(weights_only=True), is it damaged? "
            f"{type(error).__name__}: {_first_line(error)}"
        ) from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict):
        raise WeightsError(f"model.weights: {path} holds a {type(state).__name__}, not a state dict")
    return {str(key).removeprefix("module."): value for key, value in state.items()}


def _first_line(error: Exception) -> str:
    """torch's messages go on for paragraphs about how to load the file all the same."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())
