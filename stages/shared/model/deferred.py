"""open_clip, imported without the libraries that only some of its models need.

`import open_clip` imports timm, transformers (where it is installed) and, through torchvision, torch's compiler. They
take more than half of its seconds and a third of its memory, in every process that holds a model, and a model of
open_clip's own transformers uses none of them. So what open_clip takes from them while it is imported are stand-ins.
They import the real thing when they are used: called, asked for an attribute, or asked whether something is an
instance. What is imported already is taken as it is, and `import timm` means timm before and after.

Who imports `open_clip` or `torchvision` from here first in a process spares it that; who does not gets them as they
are.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any, Final

import torch  # noqa: F401 - whole, before one of its modules has a stand-in

DEFERRED: Final = ("timm", "timm.layers", "transformers", "transformers.modeling_outputs", "torch._dynamo.utils")
"""Modules of which open_clip and torchvision take functions and classes when they are imported, to use them later."""


class _Later(type):
    """The type of stand-ins for what a module holds. They are classes, so that they can stand in annotations."""

    _module: str

    def _real(cls) -> Any:
        return getattr(import_module(cls._module), cls.__name__)

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return cls._real()(*args, **kwargs)

    def __getattr__(cls, name: str) -> Any:
        return getattr(cls._real(), name)

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, cls._real())


class _LaterModule(ModuleType):
    """A stand-in for a module: all that is taken from it are stand-ins."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what the import system asks of a module
            raise AttributeError(name)
        return _Later(name, (), {"_module": self.__name__})


@contextmanager
def _deferring() -> Iterator[None]:
    """Put the stand-ins where an import finds them, for what is installed and not imported yet."""
    absent = [name for name in DEFERRED if name not in sys.modules and find_spec(name.partition(".")[0]) is not None]
    sys.modules.update({name: _LaterModule(name) for name in absent})
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]


with _deferring():
    import open_clip
    import torchvision

__all__ = ["open_clip", "torchvision"]
