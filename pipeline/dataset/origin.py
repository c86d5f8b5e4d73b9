"""Decide which files of a dataset's configuration are read; and read the images of its rows.

A downloaded `dataset.json` also names folders, files and models, and must not decide what is read
on this machine. So a run signs its stored configuration (`signature`). A command that follows a
stored configuration calls `check_named` first, and images are read by `ImageSource`.
"""

from __future__ import annotations

import json
import posixpath
import shlex
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any, Final

from phrasebox.pipeline.config.paths import LOCATIONS, MODEL_FILES, locations_of_kinds
from phrasebox.pipeline.dataset.folder import Dataset
from phrasebox.pipeline.dataset.rows import Row
from phrasebox.pipeline.dataset.signature import is_own
from phrasebox.stages.contract.errors import ConfigError, InputError, RowFault
from phrasebox.stages.contract.records import ImageRef
from phrasebox.stages.contract.values import Json
from phrasebox.stages.files.storage import absolute, is_local, join, parent, place_of
from phrasebox.stages.images.decode import load_image_bytes
from phrasebox.stages.images.faults import DecodeLimits
from phrasebox.stages.model.config import OWN_MODELS
from phrasebox.stages.phrases.config import PhrasesConfig
from phrasebox.stages.read import READERS

IMAGE_ROOT: Final = "input.image_root"

MODEL_KEYS: Final = {
    "model.name": (None, *OWN_MODELS),
    "model.pretrained": (None,),
    **dict.fromkeys((*MODEL_FILES, "regions.sam.model"), (None,)),
}
"""Keys that name a model, which may be downloaded -> the values for bundled models."""

LOADED_KEYS: Final = {
    **MODEL_KEYS,
    "source.detector": (None,),
    "phrases.spacy_models": (None, PhrasesConfig().spacy_models),
}
"""`MODEL_KEYS`, and the keys of a detector and of the spaCy packages, which run code."""


def keys_of_maps(dataset: Dataset) -> dict[str, tuple[Any, ...]]:
    """Return `LOADED_KEYS`, and the keys of files that the dataset's explainer names: what its heat maps need."""
    return {**LOADED_KEYS, **locations_of_kinds(_stored_config(dataset), ("explain",))}


def find_unnamed(
    dataset: Dataset, harmless: Mapping[str, tuple[Any, ...]] | None = None, settings: Iterable[str] = ()
) -> Json:
    """Return the stored values, by key, that must not be followed: the user has not named them.

    A dataset of this user may name anything. Any other one may name only what phrasebox bundles.

    Args:
        dataset: The dataset.
        harmless: Key -> the values that name no file, and no model or package but the bundled
            ones; by default all keys.
        settings: `KEY=VALUE` settings, which replace stored values.
    """
    if is_own(dataset.run):
        return {}
    if harmless is None:
        harmless = {**LOCATIONS, **locations_of_kinds(_stored_config(dataset)), **LOADED_KEYS}
    set_keys = {setting.partition("=")[0] for setting in settings}
    values = {key: _value(dataset, key) for key in harmless if not set_keys & {key, key.partition(".")[0]}}
    return {key: value for key, value in values.items() if value not in harmless[key]}


def check_named(
    dataset: Dataset,
    harmless: Mapping[str, tuple[Any, ...]] | None = None,
    settings: Iterable[str] = (),
    *,
    advice: str = "add:",
) -> None:
    """Raise ConfigError for values that `find_unnamed` returns.

    Its message ends with `advice` and their options.
    """
    if values := find_unnamed(dataset, harmless, settings):
        options = " ".join(map(_option, values, values.values()))
        raise ConfigError(
            f"{dataset.path}: this dataset was made on another machine, so what it names is not "
            f"used. If you trust it, {advice} {options}"
        )


def _value(dataset: Dataset, key: str) -> Any:
    value: Any = _stored_config(dataset)
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _stored_config(dataset: Dataset) -> Json:
    config = dataset.run.get("config")
    return config if isinstance(config, dict) else {}


def _option(key: str, value: Any) -> str:
    if key == IMAGE_ROOT:
        return f"--images {shlex.quote(str(value))}"
    return f"--set {shlex.quote(f'{key}={value if isinstance(value, str) else json.dumps(value)}')}"


class ImageSource:
    """The encoded images of rows: from the shards, or from the folder that the run read them from.

    If the rows hold no images, `file_name` is relative to the folder or URL `image_root`. By
    default it is the one that the run read from, if this user has made the dataset. Tars have
    none, and then no image can be loaded. Raise InputError if `image_root` is not a folder.
    """

    def __init__(
        self, dataset: Dataset, image_root: str | None = None, limits: DecodeLimits | None = None
    ) -> None:
        self.limits = limits or DecodeLimits()
        self._dataset = dataset
        self._image_root = None if image_root is None else absolute(image_root)
        self._may_follow = image_root is not None or is_own(dataset.run)
        if (
            self._image_root is not None
            and is_local(self._image_root)
            and not place_of(self._image_root).is_dir()
        ):
            raise InputError(f"no such folder: {self._image_root} (image root)")

    @cached_property
    def root(self) -> str | None:
        """The image root, for rows without images: looking for the run's folder may take long."""
        return self._find_root() if self._image_root is None else self._image_root

    def _find_root(self) -> str | None:
        """Return the folder of the run's images; None for many folders, and where the input itself holds the images.

        The file system is not accessed for a dataset of another user, which must not choose which
        files.
        """
        source = _stored_config(self._dataset).get("input")
        if not isinstance(source, dict):
            return None
        root = source.get("image_root")
        path = source.get("path")
        kind = source.get("kind")
        is_among_files = (
            isinstance(kind, str) and kind in READERS and READERS.config_type(kind).images_are_files
        )
        if root is None and is_among_files and isinstance(path, str):
            root = absolute(path)
            place = place_of(root)
            if not (place.is_dir() if self._may_follow else kind == "folder"):
                is_pattern = (
                    self._may_follow and any(sign in root for sign in "*?[{") and not place.is_file()
                )
                root = None if is_pattern else parent(root)
        return absolute(root) if isinstance(root, str) else None

    @property
    def refused_root(self) -> str | None:
        """The image root that another user's dataset names, and that is not read."""
        return None if self._may_follow else self.root

    def check(self) -> None:
        """Raise ConfigError, with what to type, if rows hold no images and a root is refused."""
        if not self._dataset.has_images and self.refused_root is not None:
            raise ConfigError(
                f"{self._dataset.path} was not made by you on this machine, so the folder of "
                "images that it names is read only if you give it, too, if it is right: "
                f"{self.refused_root}",
                key="image_root",
            )

    def load(self, row: Row) -> bytes:
        """Return the encoded image of a row with `file_name`, and `image` if the dataset has it.

        A name never leaves the root. Raise RowFault: missing_image, bad_location or
        image_too_large.
        """
        name = row["file_name"]
        url = None
        embedded = (row.get("image") or {}).get("bytes")
        if embedded is None:
            if self.refused_root is not None:
                raise RowFault(
                    "missing_image", f"{name!r} is in a folder that only the dataset itself names"
                )
            if self.root is None:
                reason = (
                    "the dataset holds no images and does not say in which folder they are: give "
                    "the folder, or run again with output.embed_images=true"
                )
                raise RowFault("missing_image", reason)
            url = join(self.root, _below_root(name))
        return load_image_bytes(ImageRef(file_name=name, content=embedded, url=url), self.limits)


def _below_root(name: str) -> str:
    """The name as a normalised path below the root. Raise RowFault: bad_location."""
    path = posixpath.normpath(name)
    if not name or "\0" in name or posixpath.isabs(path) or path == ".." or path.startswith("../"):
        raise RowFault("bad_location", f"{name!r} is not the name of a file below the image root")
    return path
