"""Captioned images to region-text training data, from Python.

    import phrasebox

    run = phrasebox.RunConfig(input={"path": "captions.jsonl", "image_root": "photos/"}, model={"name": "photo"})
    dataset = phrasebox.open_dataset(phrasebox.run(run))
    best = dataset.regions(columns=["file_name", "phrase", "score", "bbox"]).sort_by([("score", "descending")])
    print(best.slice(0, 10).to_pylist())

    locate = phrasebox.Locator("photo")
    locate("photo.jpg", ["a red car"]).picture().save("regions.png")

The folders `pipeline` and `stages` beside this module are links to those at the top of the repository. A package has
them as folders.

RunConfig        the settings of a run; `phrasebox run INPUT --print-config --docs` lists them with their meaning
run              make a dataset; the same call resumes it
open_dataset     read a dataset back: samples, regions, images
Annotator        regions for tables of captioned images, in a pipeline of your own
Locator          regions and heat maps of phrases in one image
RegionStream     samples of a dataset for training, in shuffled order, for PyTorch's DataLoader
RegionDataset    the same by number
collate_regions  samples to a batch
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from phrasebox.pipeline import __version__

if TYPE_CHECKING:
    from phrasebox.pipeline.annotate.annotator import Annotator
    from phrasebox.pipeline.config.run_config import RunConfig
    from phrasebox.pipeline.dataset import open_dataset
    from phrasebox.pipeline.load import RegionDataset, RegionStream, collate_regions
    from phrasebox.pipeline.locator import Locator
    from phrasebox.pipeline.run.run import run

__all__ = [
    "Annotator",
    "Locator",
    "RegionDataset",
    "RegionStream",
    "RunConfig",
    "__version__",
    "collate_regions",
    "open_dataset",
    "run",
]

_PLACES = {
    "Annotator": "phrasebox.pipeline.annotate.annotator",
    "Locator": "phrasebox.pipeline.locator",
    "RegionDataset": "phrasebox.pipeline.load",
    "RegionStream": "phrasebox.pipeline.load",
    "RunConfig": "phrasebox.pipeline.config.run_config",
    "collate_regions": "phrasebox.pipeline.load",
    "open_dataset": "phrasebox.pipeline.dataset",
    "run": "phrasebox.pipeline.run.run",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is used: some of them import torch, which takes seconds."""
    if name not in _PLACES:
        raise AttributeError(f"module 'phrasebox' has no attribute {name!r}")
    found = getattr(import_module(_PLACES[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return __all__
