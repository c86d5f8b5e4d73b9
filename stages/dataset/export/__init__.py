"""A dataset in the formats that trainers and viewers read.

    from pathlib import Path

    from stages.dataset import open_dataset
    from stages.dataset.export import EXPORTERS, ExportRequest, export_dataset

    request = ExportRequest(exporter=EXPORTERS["coco"], out=Path("coco/"), split="train=0.9,val=0.1", min_score=0.5)
    print(export_dataset(open_dataset("out/"), request).counts())

To add a format, write one file with a `base.Exporter` and enter its class in `EXPORTERS`. All formats share the choice
of regions, the splits, the numbers of the categories, the folder and the report: see `export_dataset`.
"""

from __future__ import annotations

from pkgutil import resolve_name
from typing import Final

from stages.dataset.export.base import Exporter
from stages.dataset.export.export import ExportRequest, export_dataset

__all__ = ["EXPORTERS", "ExportRequest", "Exporter", "export_dataset"]

EXPORTERS: Final[dict[str, type[Exporter]]] = {
    name: resolve_name(place)
    for name, place in {
        "coco": "stages.dataset.export.coco:Coco",
        "odvg": "stages.dataset.export.odvg:Odvg",
        "mdetr": "stages.dataset.export.mdetr:Mdetr",
        "hf": "stages.dataset.export.hf:Hf",
        "webdataset": "stages.dataset.export.webdataset:Webdataset",
        "yolo": "stages.dataset.export.yolo:Yolo",
        "grit": "stages.dataset.export.grit:Grit",
        "clipself": "stages.dataset.export.clipself:Clipself",
        "fiftyone": "stages.dataset.export.coco:Fiftyone",
        "saco": "stages.dataset.export.saco:Saco",
    }.items()
}
"""Format -> exporter."""
