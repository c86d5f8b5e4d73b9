"""A dataset in the formats that trainers and viewers read.

To add a format, write one file with a `base.Exporter` and enter it in `EXPORTERS`. Choosing, splitting, numbering of
categories, the target folder and the report are shared: `export.export`.
"""

from __future__ import annotations

from typing import Final

from stages.dataset.export.base import Exporter
from stages.dataset.export.clipself import Clipself
from stages.dataset.export.coco import Coco
from stages.dataset.export.fiftyone import Fiftyone
from stages.dataset.export.grit import Grit
from stages.dataset.export.hf import Hf
from stages.dataset.export.mdetr import Mdetr
from stages.dataset.export.odvg import Odvg
from stages.dataset.export.webdataset import Webdataset
from stages.dataset.export.yolo import Yolo

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
