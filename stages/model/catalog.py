"""The weights that phrasebox brings and knows by name, and their files, verified.

A bundled model is a folder: `stages/model/weights/demo/` has `model.json` (open_clip's
`model_cfg` and `preprocess_cfg`), `model.safetensors` (fp16 state dict of `open_clip.CLIP`),
`bpe_vocab.txt.gz` (merges for `open_clip.tokenizer.SimpleTokenizer`) and `MODEL_CARD.md`.
open_clip alone loads `demo`, as `tests/stages/model/test_catalog.py` shows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Final

from phrasebox.stages.contract.errors import WeightsError
from phrasebox.stages.contract.values import Json

WEIGHTS_ROOT: Final = (
    Path(__file__).parent / "weights"
)  # one folder for each catalog entry, and their checksums
CHECKSUMS_FILE: Final = "checksums.json"
_CHECKSUMS: Final[dict[str, dict[str, str]]] = json.loads(
    (WEIGHTS_ROOT / CHECKSUMS_FILE).read_text(encoding="utf-8")
)


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsEntry:
    """A named set of weights.

    Attributes:
        files: Name -> SHA-256 in hex; `model.json` and `model.safetensors` at least.
        about: The purpose of the model, for people: the rest of a sentence behind its name.
        in_wheel: Whether the package contains it; others are in the repository alone.
        settings: Section of a run's configuration -> plain values for keys that the user does
            not set.
    """

    files: dict[str, str]
    about: str
    in_wheel: bool = True
    settings: Mapping[str, Json] = field(default_factory=dict)


CATALOG: Final[dict[str, WeightsEntry]] = {
    "demo": WeightsEntry(
        files=_CHECKSUMS["demo"],
        about="was trained on synthetic scenes and has never seen a photograph. It works on those "
        "only, which `phrasebox demo` shows; photographs need another model.",
        # Drawn objects are few, with clear edges and plain colours: docs/benchmarks/settings.md.
        settings={
            "explain": {"contrast": 0.25, "affinity": "none", "blocks": 4},
            "regions": {"upsample": "guided", "rule": "fixed", "threshold": 0.45, "smooth_patches": 0.5},
        },
    ),
    "photo": WeightsEntry(
        files=_CHECKSUMS["photo"],
        about="is a small model for photographs, for research only. The repository contains it; the package does not.",
        in_wheel=False,
    ),
}
"""Name -> entry. To add one, put its files into a folder in `WEIGHTS_ROOT`, their checksums
into `CHECKSUMS_FILE`, and an entry here."""


@cache
def find_weights(name: str, root: Path = WEIGHTS_ROOT) -> Path:
    """Find a catalog entry's folder in `root` and compare its files with the catalog's SHA-256, once per process.

    It holds `model.json`, with `model_cfg` and `preprocess_cfg`, `model.safetensors`, and
    calibrations of scores, `calibration-*.json`, without checksums: each names its model and
    settings.

    Raise WeightsError, with the remedy, if a file is missing or has other contents.
    """
    entry = CATALOG[name]
    folder = root / name
    remedy = "reinstall phrasebox, or restore the folder from the repository"
    if not entry.in_wheel:
        remedy = f"{name} is in phrasebox's repository and not in its package, so run from a checkout of it"
    for file_name, expected in entry.files.items():
        path = folder / file_name
        digest = sha256_of(path) if path.is_file() else "no file"
        if digest != expected:
            raise WeightsError(f"{path}: expected the SHA-256 {expected}, got {digest}: {remedy}")
    return folder


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's contents, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
