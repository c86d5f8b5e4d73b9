"""Paths of users: the same file may be written in many ways, also from another folder."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from stages.contract.errors import ConfigError
from stages.shared.storage import absolute, write_text

LOCATIONS: Final[dict[str, tuple[str | None, ...]]] = {
    "input.path": (),
    "input.image_root": (None,),
    "input.phrases": (None,),
    "regions.calibration": (None, "auto", "none"),
    "source.pool": (None, "captions"),
    "source.truth": (None,),
    "source.detections": (None,),
}
"""Keys that name files and folders to read -> the values that name none."""

MODEL_FILES: Final = ("model.checkpoint", "model.weights", "model.config")
"""Keys that name the files of a model."""


def with_absolute_paths(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return values of `RunConfig.rows_depend_on` with the same path for the same file, however it was written."""
    values = dict(plain)
    for key, words in {**LOCATIONS, **dict.fromkeys(MODEL_FILES, ())}.items():
        section, _, name = key.partition(".")
        value = (plain.get(section) or {}).get(name)
        if value is not None and value not in words:
            path = absolute(value) if isinstance(value, str) else [absolute(item) for item in value]
            values[section] = {**values[section], name: path}
    return values


def check_writable(key: str, path: Path) -> None:
    """Raise ConfigError, which has the key, if a local file cannot be written; its folder need not exist yet."""
    message = f"cannot write {path}"
    try:
        if path.is_dir():
            raise ConfigError(f"{message}: it is a folder; give the name of a file in it", key=key)
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        if not folder.is_dir():
            raise ConfigError(f"{message}: {folder} is a file", key=key)
        tempfile.TemporaryFile(dir=folder).close()  # os.access says yes to root even where nobody can
    except OSError as error:
        raise ConfigError(f"{message}: {error.strerror}", key=key) from error


def write_file(key: str, path: Path, text: str) -> None:
    """Write a text file, and the folders that it needs. Raise ConfigError, which has the key, if that fails."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}", key=key) from error
