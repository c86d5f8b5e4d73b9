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

from typing import Final

from stages.dataset.export.base import Exporter
from stages.dataset.export.clipself import Clipself
from stages.dataset.export.coco import Coco
from stages.dataset.export.export import ExportRequest, export_dataset
from stages.dataset.export.fiftyone import Fiftyone
from stages.dataset.export.grit import Grit
from stages.dataset.export.hf import Hf
from stages.dataset.export.mdetr import Mdetr
from stages.dataset.export.odvg import Odvg
from stages.dataset.export.webdataset import Webdataset
from stages.dataset.export.yolo import Yolo

__all__ = ["EXPORTERS", "ExportRequest", "Exporter", "export_dataset"]

EXPORTERS: Final[dict[str, type[Exporter]]] = {
    exporter.name: exporter
    for exporter in (
        Coco,
        Odvg,
        Mdetr,
        Hf,
        Webdataset,
        Yolo,
        Grit,
        Clipself,
        Fiftyone,
    )
}
"""Format -> exporter."""
