"""How right a dataset is: its regions and heat maps against ground truth.

ground_truth.py  what a ground truth is; coco.py, flickr30k.py and refcoco.py read one
grouping.py  are phrases linked as the truth links them
matching.py  which regions of the dataset answer which target of the truth
metrics.py   METRICS: one number per target
absent.py    phrases that are not there: which to ask for, and whether they are found out
scores.py    risk, coverage and calibration of scores, COCO's average precision, and the fit of a calibration
report.py    means with bootstrap intervals, overall and by group

To add a kind of truth, write one file with a reader and enter it in `TRUTHS` and `kind_of`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from stages.contract.errors import InputError
from stages.shared.truth.coco import read_coco
from stages.shared.truth.flickr30k import ANNOTATIONS, SENTENCES, read_flickr30k
from stages.shared.truth.ground_truth import ARCHIVES, GroundTruth, unpacked
from stages.shared.truth.refcoco import INSTANCES, read_refcoco

TRUTHS: Final[dict[str, Callable[[Path], GroundTruth]]] = {
    "coco": read_coco,
    "flickr30k": read_flickr30k,
    "refcoco": read_refcoco,
}
"""Kind of ground truth -> reader."""

_EXPECTED: Final = (
    f"expected a COCO instances file (NAME.json), a folder of Flickr30k Entities ({SENTENCES}/ and {ANNOTATIONS}/), "
    f"a folder of RefCOCO ({INSTANCES} and refs*.json), or one of these in a .zip or .tar.gz"
)


def read_truth(path: Path) -> GroundTruth:
    """The ground truth at a path, also in an archive. Raises InputError if there is none, or if it is damaged."""
    if path.is_file() and path.name.lower().endswith(ARCHIVES):
        path = unpacked(path)
    return TRUTHS[kind_of(path)](path)


def kind_of(path: Path) -> str:
    """The key of `TRUTHS` for a path, by its name and the folder's content. Raises InputError if nothing fits."""
    if path.is_dir():
        if (path / SENTENCES).is_dir() and (path / ANNOTATIONS).is_dir():
            return "flickr30k"
        if (path / INSTANCES).is_file():
            return "refcoco"
    elif not path.exists():
        raise InputError(f"{path} does not exist: {_EXPECTED}")
    elif path.suffix.lower() == ".json":
        return "coco"
    raise InputError(f"{path} is not a ground truth that phrasebox reads: {_EXPECTED}")
