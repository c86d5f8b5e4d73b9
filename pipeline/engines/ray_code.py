"""The code of a run's processes: workers compute only with the driver's code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from stages.contract.errors import WorkerCodeMismatch


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeVersion:
    """The code of a process.

    Our packages are called `pipeline` and `stages`. A folder with such a name can win over ours on a worker, and a
    node may hold an older wheel. A mismatch would silently produce wrong rows, so workers verify the driver's digest
    first.

    Attributes:
        version: The version of phrasebox.
        folder: The folder of its packages.
        digest: The SHA-256 of their source files.
        fault: The reason why they cannot be imported, else empty.
    """

    version: str
    folder: str
    digest: str
    fault: str = ""


def make_code_probe() -> Callable[[], dict[str, str]]:
    """Return a function that returns `CodeVersion`'s fields where it runs.

    It is defined inside a function, so that it is pickled with its own code: it has to find out whether a worker can
    import ours.
    """

    def probe_code() -> dict[str, str]:
        import hashlib  # noqa: PLC0415
        import importlib  # noqa: PLC0415
        import pathlib  # noqa: PLC0415

        digest = hashlib.sha256()
        folders = []
        version = ""
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

    return probe_code


def code_here() -> CodeVersion:
    """Return the code of this process."""
    return CodeVersion(**make_code_probe()())


def reject_other_code(driver: CodeVersion, worker: CodeVersion | None = None, *, where: str = "this worker") -> None:
    """Raise WorkerCodeMismatch unless a worker (by default this process) has the driver's code."""
    worker = worker or code_here()
    if worker.digest == driver.digest:
        return
    expected = f"the driver has {driver.version} in {driver.folder}"
    if worker.fault:
        fault = f"cannot import phrasebox ({worker.fault}); {expected}"
    else:
        fault = f"has {worker.version} in {worker.folder}, {expected}, and the code differs"
    raise WorkerCodeMismatch(
        f"{where} {fault}. Install the same wheel on every node, or set engine.ship_code=true; and start from a folder "
        "without a `pipeline` or `stages`"
    )
