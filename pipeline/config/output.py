"""The settings of the dataset that a run writes."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, Field, field_serializer, field_validator

from phrasebox.pipeline.config.paths import as_written
from phrasebox.stages.contract.schema import ColumnOption


class OutputConfig(BaseModel, extra="forbid", frozen=True):
    """The dataset that a run writes."""

    path: Path = Field(
        default=Path("out"),
        description="The dataset's folder, or a URL of one in object storage (s3, gs, hdfs). A run that it holds is "
        "resumed if it is the same, else rejected. On a cluster all nodes need to see the folder.",
    )
    embed_images: bool = Field(
        default=False,
        description="Put the encoded images into the shards, so that the dataset stands alone.",
    )
    heat_maps: bool = Field(
        default=True,
        description="Put all phrases and their heat maps into the shards, in the 256 levels that regions are cut from. "
        "`eval` and `calibrate` then need neither the images nor the model. With the bundled model (20 x 20 cells) "
        "and Flickr30k's five captions the maps take 2 kB an image, which makes shards 1.6 times as large.",
    )
    caption_score: bool = Field(
        default=True,
        description="Compare whole captions with their image: the columns caption_score and caption_presence. Captions "
        "are most of the text that a model embeds, so with a large text tower a run without them is faster "
        "(docs/how-to/plan-a-run.md). The first images' captions are compared in any case where presence is known.",
    )
    rows_per_file: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000,
        description="Rows of one Parquet file, and the most that is done again after a kill (times the files being "
        "written at that moment). A row without images is 1 to 6 kB. Null: 1,000, and 10,000 on Ray where the input "
        "has more than a million samples, a tar counted as 1,000.",
    )
    max_error_share: float | None = Field(
        default=None,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="A run in which a larger share of the rows failed ends with exit code 1 and the numbers by reason; "
        "its dataset is complete all the same. Null: no limit. 0: no row may fail.",
    )
    strict: bool = Field(
        default=False,
        description="A run whose captions do not seem to belong to their images, or are in another language, ends with "
        "exit code 1; its dataset is complete all the same.",
    )

    @field_validator("path")
    @classmethod
    def _check_path(cls, path: Path) -> Path:
        if "\0" in str(path):
            raise ValueError("a path cannot hold the character NUL")
        try:
            path.expanduser()
        except RuntimeError as error:
            raise ValueError(f"no user is called {path.parts[0].removeprefix('~')!r}") from error
        return path

    @field_serializer("path", when_used="json")
    def _serialize_path(self, path: Path) -> str:
        return as_written(path)

    @property
    def columns(self) -> tuple[ColumnOption, ...]:
        """The optional columns of the dataset."""
        choice: dict[ColumnOption, bool] = {"heat_maps": self.heat_maps, "image": self.embed_images}
        return tuple(option for option, is_chosen in choice.items() if is_chosen)
