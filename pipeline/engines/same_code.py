"""Whether a worker runs the driver's code.

The packages are called `pipeline` and `stages`: a folder of that name can win over ours on a worker, and a cluster's
node may hold an older wheel. Rows would be wrong without a word, so nothing runs before both sides agree.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pipeline
import stages
from stages.contract.errors import WorkerCodeMismatch


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """version of phrasebox, folder of its packages, digest over their source files; `fault` if they do not import."""

    version: str
    folder: str
    digest: str
    fault: str = ""


def looker() -> Callable[[], dict[str, str]]:
    """A function that gives `Code`'s fields where it runs.

    It is defined inside a function, so that it is pickled with its own code: what it is to find out is whether a
    worker can import ours.
    """

    def look() -> dict[str, str]:
        import hashlib  # noqa: PLC0415
        import importlib  # noqa: PLC0415
        import pathlib  # noqa: PLC0415

        digest, folders, version = hashlib.sha256(), [], ""
        try:
            for name in ("pipeline", "stages"):
                package = importlib.import_module(name)
                (folder,) = map(pathlib.Path, package.__path__)
                folders.append(str(folder.parent))
                version = version or getattr(package, "__version__", "unknown")
                for path in sorted(folder.rglob("*.py")):
                    digest.update(f"{path.relative_to(folder.parent).as_posix()}\n".encode())
                    digest.update(path.read_bytes())
        except (ImportError, ValueError, OSError) as error:
            return {"version": version, "folder": "", "digest": "", "fault": f"{type(error).__name__}: {error}"}
        return {"version": version, "folder": " and ".join(dict.fromkeys(folders)), "digest": digest.hexdigest()}

    return look


def code_here() -> Code:
    """The code of this process."""
    return Code(**looker()())


def refuse_other_code(driver: Code, worker: Code | None = None, *, where: str = "this worker") -> None:
    """Raise WorkerCodeMismatch unless a worker (by default this process) has the driver's code."""
    found = worker or code_here()
    if found.digest == driver.digest:
        return
    mine = f"the driver has {driver.version} in {driver.folder}"
    if found.fault:
        what = f"cannot import phrasebox ({found.fault}); {mine}"
    else:
        what = f"has {found.version} in {found.folder}, {mine}, and the code differs"
    raise WorkerCodeMismatch(
        f"{where} {what}. Install the same wheel on every node, or set engine.ship_code=true; and start from a folder "
        "without a `pipeline` or `stages`"
    )


def neutral_folder() -> Path:
    """A folder to start Ray in, since Ray puts the driver's folder in front of what workers import.

    That of our packages where they run from a checkout; where they are installed, one that holds no package at all.
    """
    root = Path(pipeline.__path__[0]).parent
    installed = {Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")}
    return Path(sysconfig.get_path("data")) if root in installed else root


def packages() -> list[Any]:
    """Our packages, to be shipped."""
    return [pipeline, stages]
