"""The encoded images of a dataset's rows: from the shards, or from the folder that they were read from."""

from __future__ import annotations

import posixpath
import shlex
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Final

from pipeline.dataset.folder import Dataset
from pipeline.dataset.origin import IMAGE_ROOT, is_own, may_follow
from stages.contract.errors import ConfigError, InputError, RowFault
from stages.contract.records import ImageRef
from stages.shared.images.decode import load_image_bytes
from stages.shared.images.faults import DecodeLimits
from stages.shared.storage import absolute, is_local, join, parent, place_of

_WITH_ROOT: Final = ("jsonl", "csv", "coco_captions", "folder")
"""Kinds of input whose images are files below a root."""


class ImageSource:
    """Loads the images of rows.

    Args:
        dataset: The rows' dataset.
        image_root: Folder or URL that `file_name` is relative to, where the rows hold no images. By default the one
            that the run read from, if `origin.may_follow` lets the dataset name it; for tars there is none, and then
            no image can be loaded.
        limits: The largest image that is loaded.

    Raises:
        InputError: `image_root` is not a folder.
    """

    def __init__(
        self,
        dataset: Dataset,
        image_root: str | None = None,
        limits: DecodeLimits | None = None,
    ) -> None:
        self.limits = limits or DecodeLimits()
        self._dataset = dataset
        self._given = None if image_root is None else absolute(image_root)
        self._confined = image_root is None and not is_own(dataset.run)
        if self._given is not None and is_local(self._given) and not place_of(self._given).is_dir():
            raise InputError(f"no such folder: {self._given} (image root)")

    @cached_property
    def root(self) -> str | None:
        """The image root. Do not ask where the rows hold the images: the run's own may be gone, or far away."""
        if self._given is not None:
            return self._given
        return named_root(self._dataset) if self._confined else root_of(self._dataset)

    @cached_property
    def refused_root(self) -> str | None:
        """The folder that the dataset names and that is not read, because it lies outside of the dataset."""
        if not self._confined or self.root is None or may_follow(self._dataset, IMAGE_ROOT, self.root):
            return None
        return self.root

    def check(self) -> None:
        """Raise ConfigError, with what to type, if the rows hold no images and their folder is not read."""
        if not self._dataset.has_images and self.refused_root is not None:
            named = f"image_root={shlex.quote(self.refused_root)}"
            raise ConfigError(
                f"image_root: {self._dataset.path} was not made by you on this machine, so the folder of images that "
                f"it names is read only if you name it, too; if it is right, give {named}"
            )

    def load(self, row: Mapping[str, Any]) -> bytes:
        """The encoded image of a row that has `file_name`, and `image` where the dataset has images.

        A name never leaves the root.

        Raises:
            RowFault: missing_image, bad_location or image_too_large.
        """
        name = row["file_name"]
        embedded = (row.get("image") or {}).get("bytes")
        url = None
        if embedded is None:
            if self.root is None:
                raise RowFault(
                    "missing_image",
                    "the dataset holds no images and does not say in which folder they are: give the folder, or run "
                    "again with output.embed_images=true",
                )
            url = join(self.root, _below_root(name))
            if self._confined and not may_follow(self._dataset, IMAGE_ROOT, url):
                raise RowFault(
                    "missing_image",
                    f"{name!r} is outside the dataset's folder, in a place that only the dataset itself names",
                )
        return load_image_bytes(ImageRef(file_name=name, content=embedded, url=url), self.limits)


def named_root(dataset: Dataset) -> str | None:
    """The folder that the dataset says its images are in. No file is looked at."""
    source = _input_of(dataset)
    root, path = source.get("image_root"), source.get("path")
    if root is None and isinstance(path, str):
        root = path if source["kind"] == "folder" else parent(absolute(path))
    return absolute(root) if isinstance(root, str) and "\0" not in root else None


def root_of(dataset: Dataset) -> str | None:
    """The folder that the run read its images from; None if they came from tars, Parquet or many folders."""
    source = _input_of(dataset)
    if source.get("image_root") is not None:
        return absolute(source["image_root"])
    path = source.get("path")
    if not isinstance(path, str):
        return None
    location = absolute(path)
    place = place_of(location)
    if place.is_dir():
        return location
    is_pattern = any(sign in location for sign in "*?[{") and not place.is_file()
    return None if is_pattern else parent(location)


def _input_of(dataset: Dataset) -> dict[str, Any]:
    """The `input` section of the run; empty if its kind has no image root."""
    config = dataset.run.get("config")
    source = config.get("input") if isinstance(config, dict) else None
    return source if isinstance(source, dict) and source.get("kind") in _WITH_ROOT else {}


def _below_root(name: str) -> str:
    """The name as a normalised path below the root. Raises RowFault: bad_location."""
    path = posixpath.normpath(name)
    if not name or "\0" in name or posixpath.isabs(path) or path == ".." or path.startswith("../"):
        raise RowFault("bad_location", f"{name!r} is not the name of a file below the image root")
    return path
