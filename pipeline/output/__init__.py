"""The folder of a dataset while a run writes it: refuse or go on, lock, checkpoint, manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_serializer, field_validator

from stages.storage import ObjectPath, place_of


class OutputConfig(BaseModel):
    """The dataset that a run writes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: Path = Path("out")
    """The dataset's folder, or a URL of one in object storage (s3, gs, hdfs). It is continued if it holds the same run,
    and refused if it holds another. On a cluster all nodes need to see it."""

    @field_validator("path")
    @classmethod
    def _usable(cls, path: Path) -> Path:
        if "\0" in str(path):
            raise ValueError("a path cannot hold the character NUL")
        try:
            path.expanduser()
        except RuntimeError as error:
            raise ValueError(f"no user is called {path.parts[0].removeprefix('~')!r}") from error
        return path

    @field_serializer("path", when_used="json")
    def _as_written(self, path: Path) -> str:
        """The path as the user wrote it; of a URL's two slashes, pathlib keeps only one."""
        place = place_of(path)
        return str(place if isinstance(place, ObjectPath) else path)

    embed_images: bool = False
    """Put the encoded images into the shards, so that the dataset stands alone."""

    rows_per_file: Annotated[int, Field(ge=1, le=1_000_000)] = 1000
    """Rows of one Parquet file, and the most that is done again after a kill (times the files being
    written at that moment). A row is about 1 kB without images."""

    max_error_share: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    """A run in which a larger share of the rows failed ends with exit code 1 and the numbers by reason. Its dataset is
    complete all the same, and the user decides what to do with it. Null: no limit. 0: no row may fail."""
