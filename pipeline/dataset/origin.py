"""The one place that decides, for every verb and loader, whether what a dataset's configuration names is read.

A `dataset.json` that somebody downloaded names folders, files and models too, and must not decide what is read on this
machine. So a run signs what it stores with a key that only its user can read, and whoever follows a stored
configuration asks `may_follow` or `check_named` first. The signature stays valid where the dataset is moved, and says
nothing to others: a dataset that the same person made on another machine is a stranger's here.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import shlex
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from stages.contract.errors import ConfigError
from stages.phrases.stage import PhrasesConfig
from stages.shared.model.config import OWN_MODELS
from stages.shared.storage import ObjectPath, absolute, is_local

if TYPE_CHECKING:
    from pipeline.dataset.folder import Dataset

IMAGE_ROOT: Final = "input.image_root"

LOCATIONS: Final = {
    "input.path": (),
    IMAGE_ROOT: (None,),
    "regions.calibration": (None, "auto", "none"),
    "source.pool": (None, "captions"),
    "source.truth": (None,),
    "source.detections": (None,),
}
"""Keys that name files and folders to read -> the values that name none."""

MODEL: Final = {
    "model.name": (None, *OWN_MODELS),
    "model.pretrained": (None,),
    "model.checkpoint": (None,),
    "model.weights": (None,),
    "model.config": (None,),
}
"""Keys that name a model, which may be downloaded -> the values that name one that comes with phrasebox."""

LOADED: Final = {**MODEL, "phrases.spacy_model": (None, PhrasesConfig().spacy_model)}
"""The same, with the package that reads captions, whose code is run."""

KEY_BYTES: Final = 32

SIGNED: Final = ("config", "model_fingerprint")
"""What a signature vouches for."""


def signed(run: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a run with their `signature`; null where the user's folders cannot be written to."""
    return {**run, "signature": _signature(run)}


def is_own(run: Mapping[str, Any]) -> bool:
    """Whether this user, on this machine, has made the run."""
    stored, expected = run.get("signature"), _signature(run)
    return isinstance(stored, str) and expected is not None and hmac.compare_digest(stored.encode(), expected.encode())


def may_follow(dataset: Dataset, key: str, value: Any) -> bool:
    """Return whether the word of a dataset is enough to read what it names under a key of its configuration.

    It is if this user has made the dataset. Any other dataset may name what lies in its own folder, also after all
    links are followed, and what comes with phrasebox; but no model and no package in its folder, because their files
    can name others.

    Args:
        dataset: The dataset that names it.
        key: From `LOCATIONS` or `LOADED`.
        value: As stored, or a location that follows from it.
    """
    if is_own(dataset.run):
        return True
    if key in LOADED:
        return value in LOADED[key]
    return value in LOCATIONS[key] or all(
        _is_inside(dataset, one) for one in (value if isinstance(value, list | tuple) else [value])
    )


def unnamed(dataset: Dataset, keys: Iterable[str], settings: Iterable[str] = ()) -> dict[str, Any]:
    """Return what a dataset may not name alone and the user has not named too: key -> value.

    Args:
        dataset: Its configuration is about to be followed.
        keys: From `LOCATIONS` or `LOADED`, those that will be.
        settings: `KEY=VALUE` of the command line, for keys or whole sections.
    """
    given = {setting.partition("=")[0] for setting in settings}
    asked = {key: _value(dataset, key) for key in keys if not given & {key, key.partition(".")[0]}}
    return {key: value for key, value in asked.items() if not may_follow(dataset, key, value)}


def check_named(
    dataset: Dataset,
    keys: Iterable[str] = (*LOCATIONS, *LOADED),
    settings: Iterable[str] = (),
    *,
    then: str = "add",
) -> None:
    """Raise ConfigError if anything is `unnamed`. The message ends with `then` and the options that name it."""
    found = unnamed(dataset, keys, settings)
    if found:
        raise ConfigError(
            f"{dataset.path}: you did not make this dataset on this machine, so what it names is read only if you name "
            f"it, too; if it is right, {then} {' '.join(map(_option, found, found.values()))}"
        )


def _value(dataset: Dataset, key: str) -> Any:
    section, _, name = key.partition(".")
    values = dataset.run.get("config", {})
    values = values.get(section) if isinstance(values, dict) else None
    return values.get(name) if isinstance(values, dict) else None


def _option(key: str, value: Any) -> str:
    if key == IMAGE_ROOT:
        return f"--images {shlex.quote(str(value))}"
    return f"--set {shlex.quote(f'{key}={value if isinstance(value, str) else json.dumps(value)}')}"


def _is_inside(dataset: Dataset, location: Any) -> bool:
    """Whether a location is in the dataset's folder, also after all links are followed."""
    if not isinstance(location, str) or "\0" in location:
        return False
    if isinstance(dataset.path, ObjectPath):
        return location.startswith(f"{dataset.path}/") and "/../" not in location
    folder = os.path.realpath(dataset.path)
    return is_local(location) and f"{os.path.realpath(absolute(location))}{os.sep}".startswith(f"{folder}{os.sep}")


def _signature(run: Mapping[str, Any]) -> str | None:
    key = _key()
    if key is None:
        return None
    text = json.dumps([run.get(name) for name in SIGNED], sort_keys=True)
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def _key() -> bytes | None:
    """The user's key, made when it is first needed; None where that is not possible."""
    try:
        folder = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "phrasebox"
        path = folder / "key"
        if not path.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=folder) as file:  # which only the user can read
                file.write(secrets.token_bytes(KEY_BYTES))
                file.flush()
                _link(file.name, path)
        key = path.read_bytes()
    except (OSError, RuntimeError):  # RuntimeError: the user has no home
        return None
    return key if len(key) == KEY_BYTES else None


def _link(made: str, path: Path) -> None:
    """Put the key in its place, unless another process has been faster: a key that has signed is never replaced."""
    try:
        os.link(made, path)
    except FileExistsError:
        return
