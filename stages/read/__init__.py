"""The source: captioned images of any kind as `Sample`s, in shards.

To add a kind, write one file with a `Config` (`kind: Literal["x"]`) and a `base.Reader`, and
enter it in `READERS` and `InputConfig`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Final

from pydantic import Field

from stages.read import coco_captions, csv, jsonl, parquet, webdataset
from stages.read.base import Reader, Shard, Skipped

__all__ = ["READERS", "InputConfig", "Reader", "Shard", "Skipped", "make_reader"]

READERS: Final[dict[str, Callable[[Any], Reader]]] = {
    "jsonl": jsonl.JsonlReader,
    "csv": csv.CsvReader,
    "webdataset": webdataset.WebdatasetReader,
    "parquet": parquet.ParquetReader,
    "coco_captions": coco_captions.CocoCaptionsReader,
}
"""Kind -> reader, made from the kind's config."""

InputConfig = Annotated[
    jsonl.Config | csv.Config | webdataset.Config | parquet.Config | coco_captions.Config,
    Field(discriminator="kind"),
]
"""The `input` section of a run."""


def make_reader(config: InputConfig) -> Reader:
    """The reader of an input. Make it where the run was started: relative paths are resolved here."""
    return READERS[config.kind](config)
