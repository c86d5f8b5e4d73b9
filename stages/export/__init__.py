"""A dataset in the formats that trainers and viewers read.

To add a format, write one file with a `base.Exporter` and enter it in `EXPORTERS`. Choosing, splitting, numbering of
categories, the target folder and the report are shared: `export.export`.
"""

from __future__ import annotations

from typing import Final

from stages.export.base import Exporter
from stages.export.clipself import Clipself
from stages.export.coco import Coco
from stages.export.fiftyone import Fiftyone
from stages.export.grit import Grit
from stages.export.hf import Hf
from stages.export.mdetr import Mdetr
from stages.export.odvg import Odvg
from stages.export.webdataset import Webdataset
from stages.export.yolo import Yolo

__all__ = ["EXPORTERS", "Exporter"]

EXPORTERS: Final[dict[str, type[Exporter]]] = {
    "coco": Coco,
    "odvg": Odvg,
    "mdetr": Mdetr,
    "hf": Hf,
    "webdataset": Webdataset,
    "yolo": Yolo,
    "grit": Grit,
    "clipself": Clipself,
    "fiftyone": Fiftyone,
}
"""Format -> exporter, made from the format's config."""
