"""What a user asks of a run, compared with what a folder holds: answers that need no library of the model.

A resolved run has settings that the model decides, and a fingerprint of its weights. So to compare
it with a run in a folder torch is loaded, which takes seconds. Most answers are known before.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Final

from phrasebox.pipeline import __version__
from phrasebox.pipeline.config.run_config import RunConfig
from phrasebox.stages.model.catalog import CATALOG, WEIGHTS_ROOT
from phrasebox.stages.model.checkpoints.files import PARAMS
from phrasebox.stages.model.config import ModelConfig
from phrasebox.stages.sources.source import HEAT_MAPS

REQUEST: Final = "request"
"""The key of run.json, and of `run` in dataset.json, for `request_fingerprint` of a run's
configuration. A run without the same one is resolved, and then compared."""


def request_fingerprint(config: RunConfig) -> str | None:
    """Return a text that is equal for the same settings and files of the model, which is not loaded.

    Files are known by their names, sizes and times. None where rows also depend on files that are
    not looked at: those of another source of regions, and of a segmenter.
    """
    if config.source.kind != HEAT_MAPS or config.regions.refine == "sam":
        return None
    stamps = []
    paths = list(_files_of(config.model))
    if isinstance(config.regions.calibration, Path):
        paths.append(config.regions.calibration)
    for path in sorted({path.expanduser().absolute() for path in paths}):
        if path.is_file():
            status = path.stat()
            stamps.append((str(path), status.st_size, status.st_mtime_ns))
    text = json.dumps([__version__, config.rows_depend_on(), stamps], sort_keys=True)
    return sha256(text.encode()).hexdigest()


def _files_of(model: ModelConfig) -> Iterator[Path]:
    """Yield the files of a model, and those beside them, which may describe it."""
    if model.name in CATALOG:
        yield from (WEIGHTS_ROOT / str(model.name)).iterdir()
    for path in filter(None, (model.checkpoint, model.config, model.weights)):
        place = path.expanduser()
        folder = place if place.is_dir() else place.parent
        yield folder.parent / PARAMS
        for file in folder.iterdir():
            yield from file.iterdir() if file.is_dir() and place.is_dir() else (file,)
