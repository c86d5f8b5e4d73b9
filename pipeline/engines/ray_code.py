"""Whether all processes of a run have the same code. Every worker imports this module, which imports little."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from stages.contract.errors import WorkerCodeMismatch


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """The code of a process.

    Our packages are called `pipeline` and `stages`. A folder with such a name can win over ours on a worker, and a
    node may hold an older wheel. Rows would then be wrong without a word, so nothing runs before both sides agree.

    Attributes:
        version: Version of phrasebox.
        folder: Folder of its packages.
        digest: SHA-256 of their source files.
        fault: Why they cannot be imported, else empty.
    """

    version: str
    folder: str
    digest: str
    fault: str = ""


def looker() -> Callable[[], dict[str, str]]:
    """A function that returns `Code`'s fields where it runs.

    It is defined inside a function, so that it is pickled with its own code: it has to find out whether a worker can
    import ours.
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
