"""Makes a CPU-only torch take `cuda` for a device, by a small library that is compiled from torch's own headers."""

from __future__ import annotations

import ctypes
import importlib.util
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

NO_COMPILER = "no traces of a GPU: they need a C++ compiler, g++, and there is none"


def has_compiler() -> bool:
    """Return whether there is a compiler."""
    return shutil.which("g++") is not None


def load_guard() -> None:
    """Compile and load the library; it takes some 5 s. torch must not be imported yet: it asks once for its hooks."""
    assert "torch" not in sys.modules, "torch has asked for its hooks already"
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    root = Path(spec.submodule_search_locations[0])
    for name in ("libc10.so", "libtorch_cpu.so"):
        ctypes.CDLL(str(root / "lib" / name), mode=ctypes.RTLD_GLOBAL)
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "guard.so"
        command = ["g++", "-std=c++20", "-shared", "-fPIC", str(Path(__file__).with_name("guard.cpp"))]
        command += [
            "-o",
            str(library),
            f"-I{root / 'include'}",
            f"-L{root / 'lib'}",
            "-lc10",
            "-ltorch_cpu",
        ]
        subprocess.run(command, check=True)
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
