"""TRUTHS: kind of ground truth -> reader, and which kind a path is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from stages.contract.errors import InputError
from stages.dataset.evaluate.coco import read_coco
from stages.dataset.evaluate.flickr30k import ANNOTATIONS, SENTENCES, read_flickr30k
from stages.dataset.evaluate.refcoco import INSTANCES, read_refcoco
from stages.dataset.evaluate.truth import Truth

TRUTHS: Final[dict[str, Callable[[Path], Truth]]] = {
    "coco": read_coco,
    "flickr30k": read_flickr30k,
    "refcoco": read_refcoco,
}
"""A new kind also needs its place in `kind_of`."""

_UNDERSTOOD: Final = (
    "a COCO instances file (NAME.json), "
    f"a folder of Flickr30k Entities ({SENTENCES}/ and {ANNOTATIONS}/), "
    f"or a folder of RefCOCO ({INSTANCES} and refs*.json)"
)


def read_truth(path: Path) -> Truth:
    """The ground truth at a path. Raises InputError if there is none, or if it is damaged."""
    return TRUTHS[kind_of(path)](path)


def kind_of(path: Path) -> str:
    """Key of `TRUTHS` for a path, by its name and what is in the folder. Raises InputError if nothing fits."""
    if path.is_dir():
        if (path / SENTENCES).is_dir() and (path / ANNOTATIONS).is_dir():
            return "flickr30k"
        if (path / INSTANCES).is_file():
            return "refcoco"
    elif not path.exists():
        raise InputError(f"{path} does not exist: expected {_UNDERSTOOD}")
    elif path.suffix.lower() == ".json":
        return "coco"
    raise InputError(f"{path} is no ground truth that phrasebox reads: expected {_UNDERSTOOD}")
