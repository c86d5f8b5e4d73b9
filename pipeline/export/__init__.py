"""A dataset in the formats that trainers and viewers read.

    from pathlib import Path

    from pipeline.dataset import open_dataset
    from pipeline.export import EXPORTERS, ExportRequest, export_dataset

    request = ExportRequest(exporter=EXPORTERS["coco"], out=Path("coco/"), split="train=0.9,val=0.1", min_score=0.5)
    print(export_dataset(open_dataset("out/"), request).counts())

To add a format, write one file with a `base.Exporter` and enter its class in `EXPORTERS`.
"""

from __future__ import annotations

from typing import Final

from pipeline.export.base import Exporter
from pipeline.export.export import ExportRequest, export_dataset
from stages.contract.kinds import KindTable

__all__ = ["EXPORTERS", "ExportRequest", "Exporter", "export_dataset"]

EXPORTERS: Final[KindTable[Exporter]] = KindTable(
    {
        "coco": "pipeline.export.coco:Coco",
        "odvg": "pipeline.export.odvg:Odvg",
        "mdetr": "pipeline.export.mdetr:Mdetr",
        "hf": "pipeline.export.hf:Hf",
        "webdataset": "pipeline.export.webdataset:Webdataset",
        "yolo": "pipeline.export.yolo:Yolo",
        "grit": "pipeline.export.grit:Grit",
        "clipself": "pipeline.export.clipself:Clipself",
        "fiftyone": "pipeline.export.coco:Fiftyone",
        "saco": "pipeline.export.saco:Saco",
    }
)
"""The formats."""
