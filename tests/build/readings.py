"""A dataset as everything that reads one reads it."""

from contextlib import closing
from pathlib import Path
from typing import Any

from PIL import Image

from phrasebox.pipeline.dataset.folder import Dataset, NumberedRows, open_dataset
from phrasebox.pipeline.dataset.index import Index
from phrasebox.pipeline.dataset.marks import read_marks
from phrasebox.pipeline.dataset.selection import Search
from phrasebox.pipeline.dataset.statistics import statistics
from phrasebox.pipeline.dataset.validate import validate
from phrasebox.pipeline.export import EXPORTERS, ExportRequest, export_dataset
from phrasebox.pipeline.load import Contents, RegionDataset, RegionStream
from phrasebox.stages.contract.schema import mapped_record
from tests.build.datasets import Json
from tests.build.files import read_json


def draw_images(folder: Path, dataset: Path) -> Path:
    """Grey images of a dataset's rows, in a folder."""
    folder.mkdir(exist_ok=True)
    for row in open_dataset(dataset).rows(["file_name", "width", "height"]):
        if row["width"]:
            Image.new("RGB", (row["width"], row["height"]), "grey").save(folder / row["file_name"])
    return folder


def read_everywhere(folder: Path, images: Path, export: Path) -> Json:
    """Name of what reads a dataset -> what it reads, in plain values. The dataset has heat maps, and no images."""
    dataset = open_dataset(folder)
    rows = list(dataset.rows(dataset.columns))
    return {
        "rows": rows,
        "light rows": list(dataset.rows(["annotations.list.element.score", "captions"])),
        "one sample": dataset.sample(rows[0]["sample_id"]),
        "numbered rows": NumberedRows(dataset).rows_at([1, 0], ["sample_id", "annotations"]),
        "regions": dataset.regions("w > 0", ["id", "phrase", "score", "segmentation", "group"]).to_pylist(),
        "heat maps": [
            {heat_map.text: heat_map.values.tolist() for heat_map in mapped_record(row).heat_maps}
            for row in rows
        ],
        "statistics": _statistics(dataset),
        "problems": list(validate(folder)),
        "export": _coco(dataset, images, export),
        "stream": _samples(RegionStream(dataset, _contents(images), shuffle=False, min_score=0.3)),
        "samples": _samples(RegionDataset(dataset, _contents(images), min_score=0.3)),
    }


def _statistics(dataset: Dataset) -> Json:
    with closing(Index(dataset, read_marks(dataset.path))) as index:
        index.build()
        return statistics(index, Search(where="score > 0"))


def _coco(dataset: Dataset, images: Path, out: Path) -> Json:
    request = ExportRequest(exporter=EXPORTERS["coco"], out=out, image_root=str(images))
    report = export_dataset(dataset, request)
    assert report.samples.total()
    content: Json = read_json(out / "annotations" / "instances_train.json")
    return {name: content[name] for name in ("images", "annotations", "categories")}


def _contents(images: Path) -> Contents:
    return Contents(image_root=str(images), grid_hw=(4, 4))


def _samples(samples: Any) -> list[Json]:
    return [
        {name: value.tolist() if hasattr(value, "tolist") else value for name, value in sample.items()}
        for sample in samples
    ]
