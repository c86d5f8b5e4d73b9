"""The surroundings of a run, as `dataset.json` stores them: rows of other versions may differ in their last digits."""

from __future__ import annotations

import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from stages.contract.values import Json

LIBRARIES: Final = (
    "torch",
    "open_clip_torch",
    "spacy",
    "opencv-python-headless",
    "pillow",
    "pyarrow",
    "ray",
)
"""The distributions that rows and their files depend on, beside the parser's model. None of them is
imported."""


def environment_here(spacy_model: str) -> Json:
    """Return the processor of this process, and the versions of Python and of the libraries that are installed."""
    versions = {"python": platform.python_version()}
    for name in (*LIBRARIES, spacy_model):
        with suppress(
            PackageNotFoundError
        ):  # people may have built OpenCV, or give the path of a parser's model
            versions[name] = version(name)
    return {"processor": _processor(), "versions": versions}


def _processor() -> str:
    with suppress(OSError):  # there is none but on Linux
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
