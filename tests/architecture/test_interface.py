"""`phrasebox.extend` and `phrasebox.testing`: what packages with kinds of their own stand on."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from types import ModuleType
from typing import ClassVar

import pytest
from pydantic import BaseModel

from phrasebox import extend
from tests.architecture.interface import FROZEN, interface_of
from tests.architecture.source import ROOT


def test_names_and_signatures_stay() -> None:
    """Those of a release go away or change after one release of warning, which the changelog announces."""
    assert interface_of(extend) == FROZEN.read_text("utf-8"), "python -m tests.architecture.interface"


def test_every_name_is_there_and_documented() -> None:
    assert extend.__all__ == sorted(extend._PLACES)
    assert set(re.findall(r"^(\w+)  +\S", extend.__doc__ or "", re.MULTILINE)) == set(extend.__all__)
    for name, place in extend._PLACES.items():
        assert getattr(extend, name).__module__ == place, name
        assert inspect.getdoc(getattr(extend, name)), name
    assert set(extend.__all__) <= set(dir(extend))
    with pytest.raises(AttributeError, match="no attribute 'Explaner'"):
        extend.Explaner  # noqa: B018


SETTINGS = (
    "ExplainerConfig",
    "FormatConfig",
    "LinesConfig",
    "ReaderConfig",
    "RecipeConfig",
    "RegionSourceConfig",
)


def test_settings_readers_sources_and_exporters_load_no_torch() -> None:
    """The driver of a run, `export` and `--help` would wait for it."""
    names = ", ".join([*SETTINGS, "Reader", "LinesReader", "RegionSource", "Exporter", "RowFault", "Piece"])
    code = (
        "import sys, phrasebox.extend\n"
        "print({'torch', 'pydantic', 'pyarrow', 'cv2'} & set(sys.modules))\n"
        f"from phrasebox.extend import {names}\n"
        "print({'torch', 'ray', 'spacy', 'open_clip'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\nset()\n"


def read(path: str, *, limit: int | None = None) -> list[str]:
    return [path][:limit]


class Settings(BaseModel):
    kind: str
    size: int = 3


class Kind:
    """Of another name in each test."""

    cost: ClassVar[str] = "low"

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    @property
    def side(self) -> int:
        return self._settings.size

    @classmethod
    def make(cls) -> Kind:
        return cls(Settings(kind="kind"))

    def _hide(self) -> None: ...


class Derived(Kind):
    def add(self, number: int = 1) -> None: ...


def test_what_belongs_to_an_interface() -> None:
    module = ModuleType("module")
    vars(module).update(
        __all__=["Kind", "Settings", "read", "Derived"], Kind=Kind, Settings=Settings, read=read
    )
    vars(module).update(Derived=Derived)
    assert interface_of(module).split("\n\n") == [
        "class Derived(Kind)\n    add(self, number: int = 1) -> None",
        "class Kind()\n    __init__(self, settings: Settings) -> None\n"
        "    cost: ClassVar[str] = 'low'\n"
        "    classmethod make(cls) -> Kind\n"
        "    property side(self) -> int",
        "class Settings()\n    kind: str\n    size: int = ...",
        "read(path: str, *, limit: int | None = None) -> list[str]\n",
    ]
    module.__all__.remove("Derived")
    vars(module)["Kind"] = Derived
    assert "    add(self, number: int = 1) -> None" in interface_of(module)
    assert "    property side(self) -> int" in interface_of(module), "members of bases that are not listed"
