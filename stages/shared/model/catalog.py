"""The weights that phrasebox brings and knows by name, and their files, verified.

The bundled model is `demo`: `stages/shared/model/weights/demo/` with `model.json` (open_clip's `model_cfg` and
`preprocess_cfg`), `model.safetensors` (fp16 state dict of `open_clip.CLIP`), `bpe_vocab.txt.gz` (merges for
`open_clip.tokenizer.SimpleTokenizer`) and `MODEL_CARD.md`. Without phrasebox it loads like this, from that folder:

    settings = json.load(open("model.json"))["model_cfg"]
    model = open_clip.CLIP(**settings).eval()
    model.load_state_dict(safetensors.torch.load_file("model.safetensors"))
    tokenizer = SimpleTokenizer(bpe_path="bpe_vocab.txt.gz", context_length=settings["text_cfg"]["context_length"])
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from stages.contract.errors import WeightsError

WEIGHTS_ROOT: Final = Path(__file__).parent / "weights"
"""Folder that holds one folder for each catalog entry, and their checksums."""

CHECKSUMS_FILE: Final = "checksums.json"
_CHECKSUMS: Final[dict[str, dict[str, str]]] = json.loads((WEIGHTS_ROOT / CHECKSUMS_FILE).read_text(encoding="utf-8"))


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsEntry:
    """A named set of weights.

    Attributes:
        files: File name -> SHA-256 in hex; `model.json` and `model.safetensors` at least.
        licence: SPDX identifier of the weights' licence.
        source: Where the weights come from.
        about: What the model is for, for people: the rest of a sentence behind its name.
        in_wheel: Whether the package brings them. Others are in the repository alone.
    """

    files: dict[str, str]
    licence: str
    source: str
    about: str
    in_wheel: bool = True


CATALOG: Final[dict[str, WeightsEntry]] = {
    "demo": WeightsEntry(
        files=_CHECKSUMS["demo"],
        licence="Apache-2.0",
        source="trained from random weights on drawn scenes by pipeline.training; see demo/MODEL_CARD.md",
        about="was trained on drawn scenes and has never seen a photograph. It works on drawings only, which "
        "`phrasebox demo` shows; photographs need another model.",
    ),
    "photo": WeightsEntry(
        files=_CHECKSUMS["photo"],
        licence="LicenseRef-Flickr-noncommercial-research",
        source="trained from ImageNet weights on photographs by pipeline.training.photo; see photo/MODEL_CARD.md",
        about="is a small model for photographs, for research only. The repository contains it; the package does not.",
        in_wheel=False,
    ),
}
"""Name -> entry. To add one, put its files into a folder in `WEIGHTS_ROOT`, their checksums into `CHECKSUMS_FILE`, and
an entry here. The export of `pipeline.training` writes the checksums of `demo` and `photo`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsFiles:
    """Verified files of a model.

    Attributes:
        config: JSON with `model_cfg` and `preprocess_cfg`; relative paths in it start at its own folder.
        weights: Safetensors state dict.
        calibrations: Calibrations of region scores, see `stages/regions/score.py`, one for each of several settings.
            They have no checksum: each names the model and the settings that it is for.
    """

    config: Path
    weights: Path
    calibrations: tuple[Path, ...]


@cache
def resolve(name: str, root: Path = WEIGHTS_ROOT) -> WeightsFiles:
    """Find a catalog entry's files in `root` and compare their SHA-256 with the catalog's, once per process.

    Raises:
        WeightsError: The name is unknown, or a file is missing or has other contents. The message says what to do.
    """
    entry = CATALOG.get(name)
    if entry is None:
        raise WeightsError(f"expected one of {', '.join(sorted(CATALOG))}, got {name!r}")
    folder = root / name
    remedy = "reinstall phrasebox, or restore the folder from the repository"
    if not entry.in_wheel:
        remedy = f"{name} is in phrasebox's repository and not in its package, so run from a checkout of it"
    for file_name, expected in entry.files.items():
        path = folder / file_name
        if not path.is_file():
            raise WeightsError(f"{path} is missing from the weights {name!r}: {remedy}")
        if (found := sha256_of(path)) != expected:
            raise WeightsError(
                f"{path} is not the file of the weights {name!r}: expected SHA-256 {expected}, got {found}: {remedy}"
            )
    return WeightsFiles(
        config=folder / "model.json",
        weights=folder / "model.safetensors",
        calibrations=tuple(sorted(folder.glob("calibration-*.json"))),
    )


def is_here(name: str) -> bool:
    """Return whether the files of a catalog entry exist; they are not verified."""
    return (WEIGHTS_ROOT / name).is_dir()


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's contents, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
