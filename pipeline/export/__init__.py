"""A dataset in the formats that trainers and viewers read.

    from pathlib import Path

    from phrasebox.pipeline.dataset import open_dataset
    from phrasebox.pipeline.export import EXPORTERS, ExportRequest, export_dataset

    request = ExportRequest(exporter=EXPORTERS["coco"], out=Path("coco/"), split="train=0.9,val=0.1", precision=0.7)
    print(export_dataset(open_dataset("out/"), request).counts())

docs/how-to/extend.md says how to add a format.
"""

from __future__ import annotations

from phrasebox.pipeline.export.base import EXPORTERS, Exporter
from phrasebox.pipeline.export.export import ExportRequest, export_dataset

__all__ = ["EXPORTERS", "ExportRequest", "Exporter", "export_dataset"]
