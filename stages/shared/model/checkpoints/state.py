"""Tensors of a checkpoint, in safetensors or in the formats of torch, in one file or several. Nothing in them runs.

OpenAI published CLIP as TorchScript. `torch.jit.load` runs code of such an archive, which its tensors do not need:
`data.pkl` maps each attribute of a module to a part of a file in `data/`. `_ScriptReader` unpickles it and resolves
only the names that build tensors and attributes.
"""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any, Final

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from stages.contract.errors import WeightsError, one_line
from stages.shared.model.checkpoints.layouts import OPENAI_ONLY

INDEX_SUFFIX: Final = ".index.json"
"""End of the name of an index as Hugging Face writes it: tensor -> file."""

_WRAPPERS: Final = ("module.", "_orig_mod.", "model.")
"""The prefixes that `DistributedDataParallel`, `torch.compile` and Lightning give the names of a model's tensors."""

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
        raise WeightsError(
            f"{path} is not an index of weight files: {type(error).__name__}: {error}", key=key
        ) from error
    if not names or any(PurePath(name).name != name for name in names):
        raise WeightsError(f"{path} does not name weight files of its own folder", key=key)
    files = [path.parent / name for name in names]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise WeightsError(
            f"{path} names {len(files)} files, of which {len(missing)} are missing, such as {missing[0]}", key=key
        )
    return (path, *files)


def read_state(path: Path, key: str = "model.weights", *, numbers: bool = True) -> State:
    """Read the state dict of a checkpoint; nothing in the file is executed.

    The path is a file or an index of several, and `key` names it in messages. Without `numbers` the tensors are on the
    meta device and have only their shapes, and of safetensors only the heads are read. Raise WeightsError if a file is
    missing or damaged, is a TorchScript archive with more than tensors in it, or holds something else.
    """
    state: State = {}
    for file in weight_files(path, key):
        if file.name.endswith(INDEX_SUFFIX):
            continue
        try:
            content = _read_file(file, numbers=numbers)
        except Exception as error:
            is_pickle = isinstance(error, pickle.UnpicklingError)
            if is_pickle and _is_torchscript(file):
                raise WeightsError(
                    f"{file} is a TorchScript archive that holds more than tensors ({error}), and loading it "
                    "could run code. Save its state dict with torch.save or as safetensors where you trust it",
                    key=key,
                ) from error
            reason = f"{type(error).__name__}: {first_line(error)}"
            if is_pickle:
                reason = "Or does it hold more than tensors? Then save its state dict alone"
            raise WeightsError(
                f"cannot read {file} as safetensors or with torch.load(weights_only=True), is it damaged? {reason}",
                key=key,
            ) from error
        if isinstance(content, dict):
            entries = (content.get(name) for name in ("state_dict", "model_state_dict", "model"))
            content = next((entry for entry in entries if isinstance(entry, dict)), content)
        if not isinstance(content, dict):
            raise WeightsError(f"{file} holds a {type(content).__name__}, not a state dict", key=key)
        state |= {_plain_name(str(name)): value for name, value in content.items()}
    return state if numbers else {name: value.to("meta") for name, value in state.items() if isinstance(value, Tensor)}


def _read_file(path: Path, *, numbers: bool) -> Any:
    if path.suffix == ".safetensors":
        if numbers:
            return load_file(path)
        with safe_open(path, framework="pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    if _is_torchscript(path):
        return _read_torchscript(path)
    return torch.load(path, map_location="cpu", weights_only=True, mmap=not numbers and zipfile.is_zipfile(path))


def read_json(file: Path) -> dict[str, Any]:
    """Return the keys of a checkpoint's JSON file; empty if it is not there. Raise WeightsError for another file."""
    try:
        parsed = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise WeightsError(f"cannot read {file}: {one_line(error)}", key="model.checkpoint") from error
    if not isinstance(parsed, dict):
        raise WeightsError(f"{file} holds a {type(parsed).__name__}, not keys", key="model.checkpoint")
    return parsed


def _plain_name(name: str) -> str:
    while name.startswith(_WRAPPERS):
        name = name.partition(".")[2]
    return name


def first_line(error: Exception) -> str:
    """Return the first line of a message: torch continues for paragraphs with ways to load the file nevertheless."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


# --- TorchScript

_DTYPES: Final = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "BoolStorage": torch.bool,
}


class _Module:
    """A module of an archive, whatever its class: its attributes."""

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise pickle.UnpicklingError("a module in it is filled by code of its own (__setstate__)")
        self.__dict__.update(state)


class _ScriptReader(pickle.Unpickler):
    def __init__(self, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(io.BytesIO(archive.read(f"{folder}data.pkl")))
        self._archive = archive
        self._folder = folder
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        # Functions are new each time, because an archive can set attributes on them.
        def rebuild(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
            if not isinstance(storage, Tensor):
                raise pickle.UnpicklingError(f"it has a {type(storage).__name__} where a Tensor should be")
            return storage.as_strided(size, stride, offset)

        if module.partition(".")[0] == "__torch__":
            return _Module
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if module == "torch.jit._pickle" and name.startswith("build_") and name.endswith("list"):
            return lambda values: values  # torch's own only says which kind of numbers a list holds
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return rebuild
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        raise pickle.UnpicklingError(f"it uses {module} {name}")

    def persistent_load(self, pid: Any) -> Tensor:
        """Return all values of a file in `data/`. `pid` is ("storage", type, name, device, count)."""
        _, dtype, name, _, _ = pid
        if name not in self._storages:
            content = bytearray(self._archive.read(f"{self._folder}data/{name}"))
            self._storages[name] = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
        return self._storages[name]


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _read_torchscript(path: Path) -> State:
    with zipfile.ZipFile(path) as archive:
        (place,) = [name for name in archive.namelist() if name.endswith("/data.pkl") and name.count("/") == 1]
        root = _ScriptReader(archive, place.removesuffix("data.pkl")).load()
    if not isinstance(root, _Module):
        raise pickle.UnpicklingError(f"it holds a {type(root).__name__} and no module")
    return dict(_tensors(root, ""))


def _tensors(module: _Module, prefix: str) -> Iterator[tuple[str, Tensor]]:
    for name, value in vars(module).items():
        if isinstance(value, _Module):
            yield from _tensors(value, f"{prefix}{name}.")
        elif isinstance(value, Tensor) and name != "attn_mask":  # of constants, kept because a script refers to it
            yield f"{prefix}{name}", value
        elif not prefix and name in OPENAI_ONLY and isinstance(value, int):
            yield name, torch.tensor(value)
