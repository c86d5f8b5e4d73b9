"""The code of a run's processes: workers compute only with the driver's code."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from phrasebox.stages.contract.errors import WorkerCodeMismatch


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeVersion:
    """The code of a process.

    A node may hold an older wheel, or lack the package of an explainer. A mismatch would silently
    produce wrong rows, so workers verify the driver's digest first.

    Attributes:
        packages: The names of the packages, `phrasebox` first.
        version: The version of phrasebox.
        digest: The SHA-256 of their source files.
        fault: The reason why they cannot be imported, else empty.
    """

    packages: tuple[str, ...]
    version: str
    digest: str
    fault: str = ""


def make_code_probe(packages: tuple[str, ...]) -> Callable[[], dict[str, str]]:
    """Return a function that returns the other fields of `CodeVersion` where it runs.

    It is defined inside a function, so that it is pickled with its own code: it has to find out
    whether a worker can import ours.
    """

    def probe_code() -> dict[str, str]:
        import hashlib  # noqa: PLC0415
        import importlib  # noqa: PLC0415
        import os  # noqa: PLC0415
        import pathlib  # noqa: PLC0415

        digest = hashlib.sha256()
        version = ""
        fault = ""
        try:
            for name in packages:
                package = importlib.import_module(name)
                (place,) = map(pathlib.Path, getattr(package, "__path__", [package.__file__]))
                version = version or getattr(package, "__version__", "unknown")
                # In a checkout, parts of phrasebox are links to folders.
                files = [
                    pathlib.Path(folder, file)
                    for folder, _, names in os.walk(place, followlinks=True)
                    for file in names
                    if file.endswith(".py")
                ]
                for path in sorted(files) or [place]:
                    digest.update(f"{path.relative_to(place.parent).as_posix()}\n".encode())
                    digest.update(path.read_bytes())
        except (ImportError, ValueError, OSError) as error:
            fault = f"{type(error).__name__}: {error}"
        return {"version": version, "digest": digest.hexdigest(), "fault": fault}

    return probe_code


def code_here(packages: tuple[str, ...]) -> CodeVersion:
    """Return the code of some packages in this process."""
    return CodeVersion(packages=packages, **make_code_probe(packages)())


def reject_other_code(
    driver: CodeVersion, worker: CodeVersion | None = None, *, where: str = "this worker"
) -> None:
    """Raise WorkerCodeMismatch unless a worker (by default this process) has the driver's code."""
    worker = worker or code_here(driver.packages)
    if worker.digest == driver.digest and not worker.fault:
        return
    if (error := lack_of_package(where, worker.fault)) is not None:
        raise error
    if worker.fault:
        fault = f"cannot import the run's code ({worker.fault}); the driver has {driver.version}"
    else:
        fault = f"has {worker.version}, the driver has {driver.version}, and the code differs"
    raise WorkerCodeMismatch(
        f"{where} {fault}. Install the same wheels on every node, or set engine.ship_code=true"
    )


def lack_of_package(where: str, message: str) -> WorkerCodeMismatch | None:
    """Return the error for a message that another package's module is missing on a worker; None for other messages.

    >>> print(lack_of_package("a worker", "No module named 'somebodys_explainer'"))
    a worker lacks the package somebodys_explainer: install it on every node, or set engine.ship_code=true
    """
    match = re.search(r"No module named '([^'.]+)", message)
    if match is None or match[1] == "phrasebox":
        return None
    return WorkerCodeMismatch(
        f"{where} lacks the package {match[1]}: install it on every node, or set engine.ship_code=true"
    )
