"""The folder of a dataset while a run writes it: refuse or go on, lock, checkpoint, manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_serializer, field_validator

from stages.shared.storage import ObjectPath, place_of


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

    heat_maps: bool = True
    """Put all phrases and their heat maps into the shards, in the 256 levels that regions are cut from. `eval` and
    `calibrate` then need neither the images nor the model. A map of 20 x 20 cells takes 180 bytes, one of 14 x 14 about
    half of that. With the embedded model (20 x 20) and Flickr30k's five captions these are 2 kB an image, and shards
    1.6 times as large (measured on 200 photographs)."""

    rows_per_file: Annotated[int, Field(ge=1, le=1_000_000)] = 1000
    """Rows of one Parquet file, and the most that is done again after a kill (times the files being
    written at that moment). A row without images is 1 to 6 kB."""

    max_error_share: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    """A run in which a larger share of the rows failed ends with exit code 1 and the numbers by reason. Its dataset is
    complete all the same, and the user decides what to do with it. Null: no limit. 0: no row may fail."""

    @property
    def columns(self) -> dict[str, bool]:
        """Which columns the rows have, as arguments of `dataset_schema` and `records_to_rows`."""
        return {"embed_images": self.embed_images, "heat_maps": self.heat_maps}
