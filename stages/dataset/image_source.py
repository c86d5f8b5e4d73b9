"""The encoded images of a dataset's rows: from the shards, or from the folder that they were read from."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from stages.contract.errors import InputError, RowFault
from stages.contract.records import ImageRef
from stages.dataset.folder import Dataset
from stages.images.decode import DecodeLimits, load_image_bytes
from stages.storage import absolute, filesystem_of, is_local, join, parent, path_in


class ImageSource:
    """Loads images by row.

    dataset     whose rows they are
    image_root  folder or URL that `file_name` is relative to, where the rows hold no images; by default the one
                that the run read from. It is None where there is none, as for tars: then no image can be had.
    limits      what is loaded at most

    Raises InputError if a given root is not a folder.
    """

    def __init__(self, dataset: Dataset, image_root: str | None = None, limits: DecodeLimits | None = None) -> None:
        self.limits = limits or DecodeLimits()
        self._dataset = dataset
        self._given = None if image_root is None else absolute(image_root)
        if self._given is not None and is_local(self._given):
            filesystem = filesystem_of(self._given)
            if not filesystem.isdir(path_in(filesystem, self._given)):
                raise InputError(f"no such folder: {self._given} (image root)")

    @cached_property
    def root(self) -> str | None:
        """The image root. Not asked for where the rows hold the images: the run's own may be gone, or far away."""
        return root_of(self._dataset) if self._given is None else self._given

    def load(self, row: Mapping[str, Any]) -> bytes:
        """The encoded image of a row that has `file_name`, and `image` where the dataset has images.

        Raises RowFault: missing_image, bad_location or image_too_large. A name never leaves the root.
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
        return load_image_bytes(ImageRef(file_name=name, content=embedded, url=url), self.limits)


def root_of(dataset: Dataset) -> str | None:
    """The folder that the run read its images from; None if they came from tars, Parquet or many folders."""
    source = dataset.run.get("config", {}).get("input", {})
    if source.get("kind") not in ("jsonl", "csv", "coco_captions", "folder"):
        return None
    if source.get("image_root") is not None:
        return absolute(source["image_root"])
    path = source.get("path")
    if not isinstance(path, str):
        return None
    location = absolute(path)
    filesystem = filesystem_of(location)
    path = path_in(filesystem, location)
    if filesystem.isdir(path):
        return location
    is_pattern = any(sign in location for sign in "*?[{") and not filesystem.isfile(path)
    return None if is_pattern else parent(location)


def _below_root(name: str) -> str:
    """The name as a normalised path below the root. Raises RowFault: bad_location."""
    path = posixpath.normpath(name)
    if not name or "\0" in name or posixpath.isabs(path) or path == ".." or path.startswith("../"):
        raise RowFault("bad_location", f"{name!r} is not the name of a file below the image root")
    return path
