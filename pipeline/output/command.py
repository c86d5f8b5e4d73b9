"""What identifies the command of a run, so that the same one finds its finished dataset without loading a library."""

from __future__ import annotations

import json
from collections.abc import Iterator
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

from pipeline import __version__
from pipeline.config import RunConfig
from stages.contract.schema import SCHEMA_VERSION
from stages.shared.model.catalog import WEIGHTS_ROOT


def command_of(config: RunConfig) -> str:
    """Return a hash of all that decides the rows of a command, but for its input. No model is read.

    The files of models count by their sizes and times. So equal hashes mean equal rows, and
    others need a closer look.
    """
    model = config.model
    bundled = WEIGHTS_ROOT / str(model.name)
    named = (
        model.checkpoint,
        model.weights,
        model.config,
        config.regions.calibration,
        config.regions.sam.model,
    )
    places = [bundled, *(Path(name).expanduser() for name in named if name)]
    stamps = [
        (str(file), file.stat().st_size, file.stat().st_mtime_ns)
        for place in places
        if place.exists()  # "auto" and "none" are no files
        for file in sorted(place.rglob("*") if place.is_dir() else (place, *_describing(place)))
        if file.is_file()
    ]
    values = [__version__, SCHEMA_VERSION, version("open_clip_torch"), config.rows_depend_on(), stamps]
    return sha256(json.dumps(values).encode()).hexdigest()


def _describing(weights: Path) -> Iterator[Path]:
    """Yield the files beside a checkpoint that may describe it, see `stages.shared.model.checkpoints.folder`."""
    yield from (file for file in weights.parent.glob("*") if file.suffix in (".json", ".txt"))
    yield weights.parent.parent / "params.txt"
