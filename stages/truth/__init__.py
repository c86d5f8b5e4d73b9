"""Readers of human annotations: the places of objects in captioned images, for evaluation and `source.kind: boxes`.

`ground_truth.py` defines the form of every ground truth, and how it matches an image's phrases.

To add a kind, write one file with a reader and enter it in `TRUTHS` and `kind_of`.
"""

from __future__ import annotations

import atexit
import codecs
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

from phrasebox.stages.contract.errors import InputError, one_line
from phrasebox.stages.contract.values import Json
from phrasebox.stages.truth.coco import read_coco
from phrasebox.stages.truth.flickr30k import ANNOTATIONS, SENTENCES, read_flickr30k
from phrasebox.stages.truth.ground_truth import GroundTruth
from phrasebox.stages.truth.label_studio import read_label_studio

TRUTHS: Final[dict[str, Callable[[Path], GroundTruth]]] = {  # Kind of ground truth -> reader
    "coco": read_coco,
    "flickr30k": read_flickr30k,
    "label_studio": read_label_studio,
}

ARCHIVES: Final = (".zip", ".tar", ".tar.gz", ".tgz")

_EXPECTED: Final = (
    "expected a COCO instances file or Label Studio's tasks (NAME.json), "
    f"a folder of Flickr30k Entities ({SENTENCES}/ and {ANNOTATIONS}/), or one of these in a .zip or .tar.gz"
)


def read_truth(path: Path) -> GroundTruth:
    """Return the ground truth at a path, or in an archive there.

    Raise InputError if it is missing or damaged.
    """
    if path.is_file() and path.name.lower().endswith(ARCHIVES):
        path = _unpack(path)
    return TRUTHS[kind_of(path)](path)


def kind_of(path: Path) -> str:
    """Return the key of `TRUTHS` for a path, by its name and content.

    Raise InputError if none fits.
    """
    if path.is_dir():
        if (path / SENTENCES).is_dir() and (path / ANNOTATIONS).is_dir():
            return "flickr30k"
    elif not path.exists():
        raise InputError(f"{path} does not exist: {_EXPECTED}")
    elif path.suffix.lower() == ".json":
        return "label_studio" if _holds_list(path) else "coco"
    raise InputError(f"{path} is not a ground truth that phrasebox reads: {_EXPECTED}")


def _holds_list(path: Path) -> bool:
    """Return whether a JSON file begins as a list, as Label Studio's do."""
    try:
        with path.open("rb") as file:
            return file.read(64).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error


def _unpack(archive: Path) -> Path:
    """Unpack an archive into a temporary folder, which is deleted when the process ends.

    Return the folder, or its only file or folder. Raise InputError for an archive that is
    damaged, or that holds anything but files and folders.
    """
    folder = Path(tempfile.mkdtemp(prefix="phrasebox-truth-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    try:
        # The filter rejects members outside the folder, links and devices; it is about tar files, zip has it anyway.
        options: Json = {} if archive.name.lower().endswith(".zip") else {"filter": "data"}
        shutil.unpack_archive(archive, folder, **options)
    except (
        OSError,
        EOFError,
        ValueError,
        zlib.error,
        tarfile.TarError,
        zipfile.BadZipFile,
        shutil.ReadError,
    ) as error:
        raise InputError(f"{archive} cannot be unpacked: {one_line(error)}") from error
    members = [path for path in folder.iterdir() if path.name != "__MACOSX"]
    return members[0] if len(members) == 1 else folder
