"""Tensors of a checkpoint, in safetensors or in the formats of torch, in one file or several. Nothing in them runs."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path, PurePath
from typing import Any, Final

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from stages.contract.errors import WeightsError, one_line

INDEX_SUFFIX: Final = ".index.json"
"""End of the name of a file that says which of several files holds which tensor, as Hugging Face writes it."""

_WRAPPERS: Final = ("module.", "_orig_mod.")
"""The prefixes that `DistributedDataParallel` and `torch.compile` give the names of a model's tensors."""

State = dict[str, Tensor]  # Name -> tensor of a checkpoint


def weight_files(path: Path, key: str = "model.weights") -> tuple[Path, ...]:
    """Return all files that hold a checkpoint: the file itself, or an index and the files that it names, in order.

    Raise WeightsError, which begins with `key`, if a file is missing or the index makes no sense.
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


def read_state(path: Path, key: str = "model.weights", *, numbers: bool = True) -> State:
    """Read the state dict of a checkpoint; nothing in the file is executed.

    Args:
        path: A file, or an index of several.
        key: The key of the configuration that names it, for messages.
        numbers: Whether the numbers are read. Otherwise the tensors are on the meta device and have only their shapes,
            for which only the heads of safetensors are read.

    Raises:
        WeightsError: A file is missing or damaged, is a TorchScript archive, or holds something else.
    """
    state: State = {}
    for file in weight_files(path, key):
        if file.name.endswith(INDEX_SUFFIX):
            continue
        if file.suffix != ".safetensors" and _is_torchscript(file):
            raise WeightsError(
                f"{key}: {file} is a TorchScript archive, as OpenAI published its models, and loading it could run "
                "code. Take the model by its name and tag, as in ViT-B-16/openai, or where you trust the file save "
                "torch.jit.load(FILE).state_dict() with torch.save and give --model NAME --weights FILE"
            )
        try:
            found = _read_file(file, numbers=numbers)
        except Exception as error:
            raise WeightsError(
                f"{key}: cannot read {file} as safetensors or with torch.load(weights_only=True), is it damaged? "
                f"{type(error).__name__}: {first_line(error)}"
            ) from error
        if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
            found = found["state_dict"]
        if not isinstance(found, dict):
            raise WeightsError(f"{key}: {file} holds a {type(found).__name__}, not a state dict")
        state |= {_plain_name(str(name)): value for name, value in found.items()}
    return state if numbers else {name: value.to("meta") for name, value in state.items() if isinstance(value, Tensor)}


def _read_file(path: Path, *, numbers: bool) -> Any:
    if path.suffix == ".safetensors":
        if numbers:
            return load_file(path)
        with safe_open(path, framework="pt") as opened:
            shapes = {name: opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118
        return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    mapped = not numbers and zipfile.is_zipfile(path)
    return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)


def read_json(file: Path) -> dict[str, Any]:
    """Return the keys of a checkpoint's JSON file; empty if it is not there. Raise WeightsError for another file."""
    try:
        parsed = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise WeightsError(f"model.checkpoint: cannot read {file}: {one_line(error)}") from error
    if not isinstance(parsed, dict):
        raise WeightsError(f"model.checkpoint: {file} holds a {type(parsed).__name__}, not keys")
    return parsed


def _plain_name(name: str) -> str:
    while name.startswith(_WRAPPERS):
        name = name.partition(".")[2]
    return name


def first_line(error: Exception) -> str:
    """Return the first line of a message: torch continues for paragraphs with ways to load the file nevertheless."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())
