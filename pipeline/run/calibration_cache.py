"""The user's own calibrations, which runs with `regions.calibration: auto` find by the model's weights and settings.

    $XDG_CACHE_HOME/phrasebox/calibrations/FINGERPRINT-DIGEST.json

`phrasebox calibrate --photographs` writes them. FINGERPRINT is that of the weights, and DIGEST that of the settings, so
that a new fit replaces the one before it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any


def calibration_folder() -> Path | None:
    """Return the folder of the user's calibrations, which may be missing; None if the user has no home."""
    try:
        return (
            Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "phrasebox" / "calibrations"
        )
    except RuntimeError:  # the user has no home
        return None


def cached_calibrations(model_fingerprint: str) -> list[Path]:
    """Return the user's calibrations for the weights with a fingerprint."""
    folder = calibration_folder()
    return [] if folder is None else sorted(folder.glob(f"{_file_part(model_fingerprint)}-*.json"))


def cache_name(basis: Mapping[str, Any]) -> str:
    """Return the name of the file of a calibration that is made with a basis, see `calibration_basis`."""
    return f"{_file_part(basis['model'])}-{sha256(json.dumps(basis, sort_keys=True).encode()).hexdigest()[:16]}.json"


def _file_part(fingerprint: str) -> str:
    """Return a fingerprint as file systems take it."""
    return fingerprint.replace(":", "-")
