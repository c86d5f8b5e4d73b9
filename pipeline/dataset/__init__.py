"""A dataset read back: its folder, its images, a choice of its regions, and the marks of people.

Exports, loaders, statistics and the viewer build on it, and so can a notebook:

    from phrasebox.pipeline.dataset import open_dataset

    dataset = open_dataset("out/")
    dogs = dataset.regions("head = 'dog'", ["sample_id", "phrase", "score", "x", "y", "w", "h"], precision=0.7)
    print(len(dataset), "images,", dogs.num_rows, "dogs")
    for dog in dogs.to_pylist():
        print(dog["phrase"], dog["score"], dataset.sample(dog["sample_id"])["captions"])

`regions` returns an Arrow table, which pandas, polars and DuckDB accept as it is.
"""

from phrasebox.pipeline.dataset.folder import Dataset, open_dataset
from phrasebox.pipeline.dataset.origin import ImageSource

__all__ = ["Dataset", "ImageSource", "open_dataset"]
