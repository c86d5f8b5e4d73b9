"""The interface of a module as text: its names, and the fields, methods and signatures of their classes.

`python -m tests.architecture.interface` writes that of `phrasebox.extend` into `extend.txt`.
"""

import dataclasses
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

import phrasebox.extend

FROZEN = Path(__file__).with_name("extend.txt")
"""What `phrasebox.extend` promises."""

SHOWN_SPECIALS = {"__init__", "__call__"}


def interface_of(module: ModuleType) -> str:
    """Return the interface of what `__all__` of a module names."""
    members = {name: getattr(module, name) for name in sorted(module.__all__)}
    listed = {member for member in members.values() if inspect.isclass(member)}
    parts = [
        "\n".join(lines_of_class(name, member, listed))
        if inspect.isclass(member)
        else function(name, member)
        for name, member in members.items()
    ]
    return "\n\n".join(parts) + "\n"


def lines_of_class(name: str, shown: type[Any], listed: set[type[Any]]) -> Iterator[str]:
    """Yield the head of a class and its members; members of a listed base stand there, others of ours here."""
    parents = [parent for parent in shown.__mro__[1:] if parent in listed]
    yield f"class {name}({', '.join(parent.__name__ for parent in parents)})"
    lines: dict[str, str] = {}
    for owner in reversed(shown.__mro__):
        is_ours = owner.__module__.partition(".")[0] not in {"builtins", "abc", "typing", "pydantic"}
        if is_ours and owner not in parents and not any(issubclass(parent, owner) for parent in parents):
            lines |= dict(members_of(owner))
    yield from (f"    {lines[key]}" for key in sorted(lines))


def members_of(owner: type[Any]) -> Iterator[tuple[str, str]]:
    """Yield name and line of each public member that a class itself defines."""
    fields = owner.model_fields if issubclass(owner, BaseModel) else {}
    slots = (
        {field.name: field for field in dataclasses.fields(owner)}
        if dataclasses.is_dataclass(owner)
        else {}
    )
    for name, annotation in inspect.get_annotations(owner).items():
        if name in fields:  # what the default is, is no part of the interface
            default = "" if fields[name].default is PydanticUndefined else " = ..."
        elif name in slots:
            continue  # the signature of `__init__` has it
        else:
            value = vars(owner).get(name, "")
            default = f" = {getattr(value, '__name__', repr(value))}" if name in vars(owner) else ""
        if not name.startswith("_") and name != "model_config":
            yield name, f"{name}: {annotation}{default}"
    for name, member in vars(owner).items():
        if name.startswith("_") and not (name in SHOWN_SPECIALS and not fields):
            continue
        inner = getattr(member, "__func__", getattr(member, "fget", member))
        if isinstance(inner, FunctionType):
            mark = "abstract " if getattr(inner, "__isabstractmethod__", False) else ""
            kind = "" if inner is member else f"{type(member).__name__} "
            yield name, mark + kind + function(name, inner)


class Bare(str):
    """A text that a signature shows without quotes."""

    __repr__ = str.__str__


def function(name: str, member: Any) -> str:
    """Return the line of a function; annotations as the source has them."""
    signature = inspect.signature(member)
    parameters = [
        parameter.replace(annotation=bare(parameter.annotation))
        for parameter in signature.parameters.values()
    ]
    return f"{name}{signature.replace(parameters=parameters, return_annotation=bare(signature.return_annotation))}"


def bare(annotation: Any) -> Any:
    return Bare(annotation) if isinstance(annotation, str) else annotation


if __name__ == "__main__":
    FROZEN.write_text(interface_of(phrasebox.extend), encoding="utf-8")
