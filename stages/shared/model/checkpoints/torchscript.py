"""The tensors of a TorchScript archive, as OpenAI published CLIP, without running anything that is in it.

`torch.jit.load` runs code of the archive. Its tensors need none of it: `data.pkl` says by a few instructions of pickle
which attribute of which module is which part of which file in `data/`. The instructions are read here one by one, and
all but those that build tensors, tuples and attributes are refused. Nothing is imported or called by name.
"""

from __future__ import annotations

import pickletools
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

_DTYPES: Final = {
    "torch FloatStorage": torch.float32,
    "torch HalfStorage": torch.float16,
    "torch BFloat16Storage": torch.bfloat16,
    "torch DoubleStorage": torch.float64,
    "torch LongStorage": torch.int64,
    "torch IntStorage": torch.int32,
    "torch BoolStorage": torch.bool,
}

_TENSOR: Final = "torch._utils _rebuild_tensor_v2"
_EMPTY: Final = "collections OrderedDict"
_LISTS: Final = {f"torch.jit._pickle build_{kind}list" for kind in ("int", "double", "bool", "tensor")}
"""Functions that give the list that they are given, and only say of what it is one."""

_VALUES: Final = {
    "BINUNICODE", "SHORT_BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT",
}  # fmt: skip
_CONSTANTS: Final = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_SHORT_TUPLES: Final = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}

_NUMBERS: Final = ("input_resolution", "context_length", "vocab_size")
"""Attributes of OpenAI's models that are numbers, by which they are recognised."""


class NotDataError(ValueError):
    """An archive holds an instruction that does more than build tensors and attributes."""


@dataclass(frozen=True, slots=True)
class _Named:
    """Something that the archive names, which is never looked up."""

    name: str


@dataclass(slots=True)
class _Module:
    attributes: dict[str, Any] = field(default_factory=dict)


_MARK: Final = object()


def is_torchscript(path: Path) -> bool:
    """Whether a zip file is a TorchScript archive."""
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """The tensors of a TorchScript archive by the names that they have in a state dict.

    Raises:
        NotDataError: the archive holds more than tensors and attributes.
        Exception: of a damaged file, what `zipfile` and torch raise.
    """
    with zipfile.ZipFile(path) as archive:
        (place,) = [name for name in archive.namelist() if name.endswith("/data.pkl") and name.count("/") == 1]
        root = _Reader(archive, place.removesuffix("data.pkl")).read(archive.read(place))
    if not isinstance(root, _Module):
        raise NotDataError(f"it holds a {type(root).__name__} and no module")
    return dict(_tensors(root, ""))


def _tensors(module: _Module, prefix: str) -> Iterator[tuple[str, Tensor]]:
    for name, value in module.attributes.items():
        if isinstance(value, _Module):
            yield from _tensors(value, f"{prefix}{name}.")
        elif isinstance(value, Tensor) and name != "attn_mask":  # of constants, kept because a script refers to it
            yield f"{prefix}{name}", value
        elif not prefix and name in _NUMBERS and isinstance(value, int):
            yield name, torch.tensor(value)


class _Reader:
    """Follows the instructions of one `data.pkl`."""

    def __init__(self, archive: zipfile.ZipFile, folder: str) -> None:
        self._archive = archive
        self._folder = folder
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._storages: dict[str, Tensor] = {}

    def read(self, instructions: bytes) -> Any:
        """What the last instruction leaves."""
        for instruction, argument, _ in pickletools.genops(instructions):
            if instruction.name == "STOP":
                return self._stack.pop()
            try:
                self._follow(instruction.name, argument)
            except (IndexError, KeyError, TypeError) as error:
                raise NotDataError(f"its instruction {instruction.name} makes no sense") from error
        raise NotDataError("its instructions do not end")

    def _follow(self, name: str, argument: Any) -> None:
        known = self._puts(name, argument) or self._gathers(name) or self._makes(name)
        if not known and name not in ("PROTO", "FRAME"):
            raise NotDataError(f"its instruction {name} is none that builds tensors")

    def _puts(self, name: str, argument: Any) -> bool:
        """Follow an instruction that puts down one value, or notes or repeats one."""
        if name in _VALUES:
            self._stack.append(argument)
        elif name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name])
        elif name == "GLOBAL":
            self._stack.append(_Named(argument))
        elif name in ("EMPTY_DICT", "EMPTY_LIST"):
            self._stack.append({} if name == "EMPTY_DICT" else [])
        elif name == "MARK":
            self._stack.append(_MARK)
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = self._stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            self._stack.append(self._memo[argument])
        else:
            return False
        return True

    def _gathers(self, name: str) -> bool:
        """Follow an instruction that makes one tuple, list or dict of several values."""
        stack = self._stack
        if name == "TUPLE":
            stack.append(tuple(self._since_mark()))
        elif name in _SHORT_TUPLES:
            count = _SHORT_TUPLES[name]
            stack[-count:] = [tuple(stack[-count:])]
        elif name in ("APPEND", "APPENDS"):
            items = [stack.pop()] if name == "APPEND" else self._since_mark()
            _expected(stack[-1], list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = [stack.pop(-2), stack.pop()] if name == "SETITEM" else self._since_mark()
            _expected(stack[-1], dict).update(zip(items[::2], items[1::2], strict=True))
        else:
            return False
        return True

    def _makes(self, name: str) -> bool:
        """Follow an instruction that makes a module or a tensor."""
        stack = self._stack
        if name == "NEWOBJ":
            self._begin_module()
        elif name == "BUILD":
            attributes = stack.pop()
            if not isinstance(attributes, dict):
                raise NotDataError("a module in it is filled by code of its own (__setstate__)")
            _expected(stack[-1], _Module).attributes.update(attributes)
        elif name == "BINPERSID":
            stack.append(self._storage(stack.pop()))
        elif name == "REDUCE":
            arguments = stack.pop()
            stack.append(self._built(stack.pop(), arguments))
        else:
            return False
        return True

    def _since_mark(self) -> list[Any]:
        """Take what was put down since the last mark, and the mark."""
        place = max(index for index, value in enumerate(self._stack) if value is _MARK)
        items = self._stack[place + 1 :]
        del self._stack[place:]
        return items

    def _begin_module(self) -> None:
        arguments, kind = self._stack.pop(), self._stack.pop()
        if arguments != () or not _expected(kind, _Named).name.startswith("__torch__."):
            raise NotDataError(f"it makes a {getattr(kind, 'name', kind)}")
        self._stack.append(_Module())

    def _storage(self, described: Any) -> Tensor:
        """All values of a file in `data/`: ("storage", kind, name, device, how many)."""
        _, kind, name, _, _ = described
        if name not in self._storages:
            content = bytearray(self._archive.read(f"{self._folder}data/{name}"))
            dtype = _DTYPES[_expected(kind, _Named).name]
            self._storages[name] = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
        return self._storages[name]

    def _built(self, function: Any, arguments: Any) -> Any:
        """What the one function that is known gives; it is not called by its name."""
        named = _expected(function, _Named).name
        if named == _EMPTY and arguments == ():
            return {}
        if named in _LISTS:
            return arguments[0]
        if named != _TENSOR:
            raise NotDataError(f"it calls {named}")
        storage, offset, size, stride = arguments[:4]
        return _expected(storage, Tensor).as_strided(size, stride, offset)


def _expected(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind):
        raise NotDataError(f"it has a {type(value).__name__} where a {kind.__name__.strip('_')} should be")
    return value
