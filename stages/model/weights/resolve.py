"""From a name in the catalog to files that are there and are the right ones."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from stages.contract.errors import WeightsError
from stages.model.weights.catalog import CATALOG

WEIGHTS_ROOT: Final = Path(__file__).parent
"""Folder that holds a folder per catalog entry."""

_REINSTALL: Final = "reinstall phrasebox, or restore the folder from the repository"


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsFiles:
    """Verified files of a model.

    Attributes:
        config: JSON with `model_cfg` and `preprocess_cfg`; relative paths in it start at its own folder.
        weights: safetensors state dict.
        calibrations: of region scores, see `stages/regions/calibration.py`, one for each of several settings. They
            have no checksum of their own: each names the model and the settings that it is for.
    """

    config: Path
    weights: Path
    calibrations: tuple[Path, ...]


def resolve(name: str) -> WeightsFiles:
    """Find a catalog entry's files and compare their SHA-256 with the catalog's.

    Files are read once per process and name, however often this is called.

    Args:
        name: a key of `CATALOG`.

    Returns:
        Paths of the configuration and the weights.

    Raises:
        WeightsError: unknown name, a missing file, or one with other contents; the message says what to do.
    """
    return _resolve(name, WEIGHTS_ROOT)


@cache
def _resolve(name: str, root: Path) -> WeightsFiles:
    entry = CATALOG.get(name)
    if entry is None:
        raise WeightsError(f"expected one of {', '.join(sorted(CATALOG))}, got {name!r}")
    folder = root / entry.folder
    for file_name, expected in entry.files.items():
        path = folder / file_name
        if not path.is_file():
            raise WeightsError(f"{path} is missing from the weights {name!r}: {_REINSTALL}")
        found = sha256_of(path)
        if found != expected:
            raise WeightsError(
                f"{path} is not the file of the weights {name!r}: expected SHA-256 {expected}, "
                f"got {found}: {_REINSTALL}"
            )
    return WeightsFiles(
        config=folder / "model.json",
        weights=folder / "model.safetensors",
        calibrations=tuple(sorted(folder.glob("calibration-*.json"))),
    )


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's contents, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
