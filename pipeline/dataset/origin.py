"""The files that a dataset's configuration names: which of them are read, for every verb and loader, and its images.

A `dataset.json` that somebody downloaded names folders, files and models too, and must not decide what is read on this
machine. So a run signs what it stores with a key that only its user can read, and a verb that follows a stored
configuration asks `may_follow` or `check_named` first. The signature survives moving the dataset and is meaningless on
other machines.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import posixpath
import secrets
import shlex
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from pipeline.dataset.folder import Dataset
from pipeline.paths import LOCATIONS, MODEL_FILES
from stages.contract.errors import ConfigError, InputError, RowFault
from stages.contract.records import ImageRef
from stages.phrases.stage import PhrasesConfig
from stages.shared.images.decode import load_image_bytes
from stages.shared.images.faults import DecodeLimits
from stages.shared.model.config import OWN_MODELS
from stages.shared.storage import ObjectPath, absolute, is_local, join, parent, place_of

IMAGE_ROOT: Final = "input.image_root"

MODEL: Final = {
    "model.name": (None, *OWN_MODELS),
    "model.pretrained": (None,),
    **dict.fromkeys((*MODEL_FILES, "regions.sam.model"), (None,)),
}
"""Keys that name a model, which may be downloaded -> the values that name a bundled one."""

LOADED: Final = {**MODEL, "phrases.spacy_model": (None, PhrasesConfig().spacy_model)}
"""The same, with the package that reads captions, whose code is run."""

KEY_BYTES: Final = 32
SIGNED: Final = ("config", "model_fingerprint")  # What a signature vouches for
_WITH_ROOT: Final = ("jsonl", "csv", "coco_captions", "folder")  # Kinds of input whose images are files below a root


def signed(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a run with their `signature`; null where the user's folders cannot be written to."""
    return {**run, "signature": _signature(run)}


def is_own(run: Mapping[str, Any]) -> bool:
    """Return whether this user, on this machine, has made the run."""
    stored = run.get("signature")
    expected = _signature(run)
    return isinstance(stored, str) and expected is not None and hmac.compare_digest(stored.encode(), expected.encode())


def may_follow(dataset: Dataset, key: str, value: Any) -> bool:
    """Return whether the word of a dataset is enough to read what it names under a key of `LOCATIONS` or `LOADED`.

    It is if this user has made the dataset. Any other dataset may name files in its own folder, also after all links
    are followed, and what is bundled with phrasebox; but no model and no package in its folder, because their files can
    name others. The value is as stored, or a location that follows from it.
    """
    if is_own(dataset.run):
        return True
    if key in LOADED:
        return value in LOADED[key]
    values = value if isinstance(value, list | tuple) else [value]
    return value in LOCATIONS[key] or all(_is_inside(dataset, one) for one in values)


def unnamed(dataset: Dataset, keys: Iterable[str], settings: Iterable[str] = ()) -> dict[str, Any]:
    """Return what a dataset may not name alone and the `KEY=VALUE` settings do not name either: key -> value.

    keys: From `LOCATIONS` or `LOADED`.
    """
    given = {setting.partition("=")[0] for setting in settings}
    asked = {key: _value(dataset, key) for key in keys if not given & {key, key.partition(".")[0]}}
    return {key: value for key, value in asked.items() if not may_follow(dataset, key, value)}


def check_named(
    dataset: Dataset, keys: Iterable[str] = (*LOCATIONS, *LOADED), settings: Iterable[str] = (), *, then: str = "add"
) -> None:
    """Raise ConfigError if anything is `unnamed`. The message ends with `then` and the options that name it."""
    if found := unnamed(dataset, keys, settings):
        raise ConfigError(
            f"{dataset.path}: you did not make this dataset on this machine, so what it names is read only if you name "
            f"it, too; if it is right, {then} {' '.join(map(_option, found, found.values()))}"
        )


def _value(dataset: Dataset, key: str) -> Any:
    found: Any = dataset.run.get("config")
    for part in key.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found


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
                with suppress(FileExistsError):  # another process was faster: a key that has signed is never replaced
                    os.link(file.name, path)
        key = path.read_bytes()
    except (OSError, RuntimeError):  # RuntimeError: the user has no home
        return None
    return key if len(key) == KEY_BYTES else None


class ImageSource:
    """The encoded images of rows: from the shards, or from the folder that the run read them from.

    `image_root` is the folder or URL that `file_name` is relative to, where the rows hold no images. By default it is
    the one that the run read from, if `may_follow` lets the dataset name it; for tars there is none, and then no image
    can be loaded. Raises InputError if `image_root` is not a folder.
    """

    def __init__(self, dataset: Dataset, image_root: str | None = None, limits: DecodeLimits | None = None) -> None:
        self.limits = limits or DecodeLimits()
        self._dataset = dataset
        self._given = None if image_root is None else absolute(image_root)
        self._confined = image_root is None and not is_own(dataset.run)
        if self._given is not None and is_local(self._given) and not place_of(self._given).is_dir():
            raise InputError(f"no such folder: {self._given} (image root)")

    @cached_property
    def root(self) -> str | None:
        """The image root. Do not ask where the rows hold the images: the run's own may be gone, or far away."""
        return _root_of(self._dataset, look=not self._confined) if self._given is None else self._given

    @cached_property
    def refused_root(self) -> str | None:
        """The folder that the dataset names and that is not read, because it lies outside of the dataset."""
        is_unread = self._confined and self.root is not None and not may_follow(self._dataset, IMAGE_ROOT, self.root)
        return self.root if is_unread else None

    def check(self) -> None:
        """Raise ConfigError, with what to type, if the rows hold no images and their folder is not read."""
        if not self._dataset.has_images and self.refused_root is not None:
            raise ConfigError(
                f"{self._dataset.path} was not made by you on this machine, so the folder of images that it names is "
                f"read only if you give it, too, if it is right: {self.refused_root}",
                key="image_root",
            )

    def load(self, row: Mapping[str, Any]) -> bytes:
        """Return the encoded image of a row that has `file_name`, and `image` where the dataset has images.

        A name never leaves the root. Raise RowFault: missing_image, bad_location or image_too_large.
        """
        name = row["file_name"]
        url = None
        embedded = (row.get("image") or {}).get("bytes")
        if embedded is None:
            if self.root is None:
                reason = (
                    "the dataset holds no images and does not say in which folder they are: give the folder, or run "
                    "again with output.embed_images=true"
                )
                raise RowFault("missing_image", reason)
            url = join(self.root, _below_root(name))
            if self._confined and not may_follow(self._dataset, IMAGE_ROOT, url):
                reason = f"{name!r} is outside the dataset's folder, in a place that only the dataset itself names"
                raise RowFault("missing_image", reason)
        return load_image_bytes(ImageRef(file_name=name, content=embedded, url=url), self.limits)


def _root_of(dataset: Dataset, *, look: bool) -> str | None:
    """The folder that the run read its images from; None if they came from tars, Parquet or many folders.

    Only with `look`, files are looked at: a dataset of somebody else must not choose which.
    """
    config = dataset.run.get("config")
    source = config.get("input") if isinstance(config, dict) else None
    if not isinstance(source, dict) or source.get("kind") not in _WITH_ROOT:
        return None
    root = source.get("image_root")
    path = source.get("path")
    if root is None and isinstance(path, str):
        location = absolute(path)
        place = place_of(location)
        if place.is_dir() if look else source["kind"] == "folder":
            return location if "\0" not in location else None
        is_pattern = look and any(sign in location for sign in "*?[{") and not place.is_file()
        root = None if is_pattern else parent(location)
    return absolute(root) if isinstance(root, str) and "\0" not in root else None


def _below_root(name: str) -> str:
    """The name as a normalised path below the root. Raise RowFault: bad_location."""
    path = posixpath.normpath(name)
    if not name or "\0" in name or posixpath.isabs(path) or path == ".." or path.startswith("../"):
        raise RowFault("bad_location", f"{name!r} is not the name of a file below the image root")
    return path
