"""Tensors of a checkpoint, in safetensors or in the formats of torch, in one file or several. Nothing in them runs."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import Any, Final

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from phrasebox.stages.contract.errors import WeightsError, one_line, with_type
from phrasebox.stages.contract.values import Json
from phrasebox.stages.model.checkpoints.files import INDEX_SUFFIX

_WRAPPERS: Final = ("module.", "_orig_mod.", "model.")
"""The prefixes that `DistributedDataParallel`, `torch.compile` and Lightning give the names of
a model's tensors."""

State = dict[str, Tensor]  # Name -> tensor of a checkpoint


def weight_files(path: Path) -> tuple[Path, ...]:
    """Return all files that hold a checkpoint: the file itself, or an index and the files of its folder that it names.

    Raise WeightsError if a file is missing or the index makes no sense.
    """
    if not path.name.endswith(INDEX_SUFFIX):
        return (path,)
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise WeightsError(f"{path} is not an index of weight files")
    files = sorted({path.parent / PurePath(str(name)).name for name in weight_map.values()})
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise WeightsError(
            f"{path} names {len(files)} files, of which {len(missing)} are missing, such as {missing[0]}"
        )
    return (path, *files)


def read_state(path: Path) -> State:
    """Read the state dict of a checkpoint, a file or an index of several; nothing in it is executed.

    Raise WeightsError if a file is missing or damaged, or holds more than tensors or something
    else.
    """
    return _read_files(path, _read_tensors)


def read_shapes(path: Path) -> State:
    """Read a state dict as `read_state` does, as tensors on the meta device: of safetensors only the heads are read."""
    return {name: value.to("meta") for name, value in _read_files(path, _read_heads).items()}


def _read_files(path: Path, read: Callable[[Path], Any]) -> State:
    state: State = {}
    for file in weight_files(path):
        if file.name.endswith(INDEX_SUFFIX):
            continue
        try:
            content = read(file)
        except Exception as error:
            raise WeightsError(
                f"cannot read {file} as safetensors or with torch.load(weights_only=True), is it damaged? Or does it "
                f"hold more than tensors? Then save its state dict alone ({with_type(error)})"
            ) from error
        if isinstance(content, dict):
            entries = (content.get(name) for name in ("state_dict", "model_state_dict", "model"))
            content = next((entry for entry in entries if isinstance(entry, dict)), content)
        if not isinstance(content, dict):
            raise WeightsError(f"{file} holds a {type(content).__name__}, not a state dict")
        state |= {
            _plain_name(str(name)): value for name, value in content.items() if isinstance(value, Tensor)
        }
    return state


def _read_tensors(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def _read_heads(path: Path) -> Any:
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


def read_json(file: Path) -> Json:
    """Return the keys of a checkpoint's JSON file; empty if it is not there. Raise WeightsError for another file."""
    try:
        parsed = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise WeightsError(f"cannot read {file}: {one_line(error)}") from error
    if not isinstance(parsed, dict):
        raise WeightsError(f"{file} holds a {type(parsed).__name__}, not keys")
    return parsed


def _plain_name(name: str) -> str:
    while name.startswith(_WRAPPERS):
        name = name.partition(".")[2]
    return name
