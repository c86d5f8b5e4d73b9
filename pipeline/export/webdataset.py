"""Tars for WebDataset: SPLIT-000000.tar with KEY.jpg, KEY.json and KEY.txt, as img2dataset names them.

`KEY` is the sample's id in 16 digits: names of samples may hold dots and slashes, which have a
meaning in a tar. The text is the first caption; the JSON holds all, the regions as in COCO, and
as `absent` the phrases that were judged not to be in the image. Members carry neither time nor
owner.
"""

from __future__ import annotations

import tarfile
from io import BytesIO
from typing import Any

from pydantic import Field

from phrasebox.pipeline.dataset.rows import absent_phrases
from phrasebox.pipeline.export.base import ChosenSample, Exporter, FormatConfig
from phrasebox.pipeline.export.coco import phrase_entry
from phrasebox.pipeline.export.files import ExportFolder, compact_json, number_name
from phrasebox.stages.contract.values import Json


class WebdatasetConfig(FormatConfig):
    """Settings of `webdataset`."""

    rows_per_file: int = Field(1000, ge=1, le=1_000_000, description="Samples in one tar.")


class Webdataset(Exporter):
    """Tars of samples."""

    summary = "SPLIT-000000.tar with KEY.jpg, KEY.json and KEY.txt, for webdataset and open_clip"
    masks = "exact as RLE in the JSON"
    next_step = 'webdataset.WebDataset(sorted(glob.glob("{out}/{split}-*.tar"))).decode("pil")'
    needs_images = True
    config_type = WebdatasetConfig

    def open_split(self, split: str) -> _Tars:
        """Return the tars of a split."""
        return _Tars(self.job.folder, split, self.config.rows_per_file)

    def add(self, sample: ChosenSample) -> None:
        """Write one sample."""
        row = sample.row
        image = sample.loaded_image
        description: Json = {
            **{name: row[name] for name in ("id", "sample_id", "file_name", "width", "height", "captions")},
            "absent": absent_phrases(row),
            "annotations": [
                {
                    **{key: region[key] for key in ("id", "bbox", "area", "segmentation")},
                    **phrase_entry(region),
                }
                for region in sample.regions
            ],
        }
        caption = row["captions"][0] if row["captions"] else ""
        members = (
            (image.extension, image.content),
            ("json", compact_json(description).encode()),
            ("txt", caption.encode()),
        )
        self.files[sample.split].add(row["id"], members)


class _Tars:
    """The tars of one split, one open at a time. A split without samples has one empty tar."""

    def __init__(self, folder: ExportFolder, split: str, samples_per_file: int) -> None:
        self._folder = folder
        self._split = split
        self._samples_per_file = samples_per_file
        self._samples = 0
        self._tar: Any = None

    def add(self, number: int, members: tuple[tuple[str, bytes], ...]) -> None:
        if self._samples % self._samples_per_file == 0:
            self._next()
        for extension, content in members:
            entry = tarfile.TarInfo(number_name(number, extension))
            entry.size = len(content)
            self._tar.addfile(entry, BytesIO(content))
        self._tar.members = []  # tarfile would keep an entry of each
        self._samples += 1

    def close(self) -> None:
        if self._samples == 0:
            self._next()

    def _next(self) -> None:
        if self._tar is not None:
            self._tar.close()
        path = self._folder.file(f"{self._split}-{self._samples // self._samples_per_file:06d}.tar")
        self._tar = self._folder.open_files.enter_context(
            tarfile.TarFile(path, "w", format=tarfile.USTAR_FORMAT)
        )
