"""The settings of an annotator: those of a run, without what is about its files and its engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final

from pydantic import BaseModel, Field, field_validator

from phrasebox.pipeline.config.run_config import RunConfig
from phrasebox.stages.contract.kinds import with_absolute_files
from phrasebox.stages.contract.values import Json
from phrasebox.stages.files.storage import absolute
from phrasebox.stages.read.rows import FieldsConfig

SECTIONS: Final = ("model", "phrases", "images", "explain", "regions", "source")
"""Sections that an annotator takes from a run as they are."""


class TableInput(FieldsConfig):
    """The columns of a table: keys of `input` of a run, and `phrase`."""

    image: str | None = Field(
        None,
        description="Column with the image: its bytes, a struct of bytes and path, its path, or in Python values a "
        "Pillow image or an array. By default as for a Parquet input.",
    )
    phrase: str | None = Field(
        None,
        description="Column with a phrase, or a list of phrases, in the place of captions. Each is judged by itself. "
        "By default `phrase` or `phrases`, where a table has no captions.",
    )
    image_root: str | None = Field(
        None,
        description="Folder that image paths are relative to and may not leave; by default the current folder. `/` "
        "allows every file of this machine.",
    )
    phrases: str | None = Field(
        None, description="A file of captions and their phrases, as `phrasebox phrases` writes it."
    )


class TableOutput(BaseModel, extra="forbid", frozen=True):
    """The columns that are added beside those that always are: keys of `output` of a run."""

    embed_images: ClassVar[bool] = False

    caption_score: bool = Field(True, description="Compare whole captions with their image.")
    heat_maps: bool = Field(False, description="Add all phrases and their heat maps.")


class AnnotatorConfig(RunConfig):
    """Everything that the rows of an annotator depend on, but for what it estimates."""

    input: TableInput = TableInput()  # type: ignore[assignment]  # a table is no input of a run
    output: TableOutput = TableOutput()  # type: ignore[assignment]  # and nothing is written

    @field_validator("input", mode="before")
    @classmethod
    def _add_input_kind(cls, values: Any) -> Any:
        """Take the values as they are: a table has no path that tells its kind."""
        return values

    @classmethod
    def of(cls, run: RunConfig | None, sections: Mapping[str, Any]) -> AnnotatorConfig:
        """Return the settings of sections, over those of a run, with absolute paths. Raise ConfigError.

        Of `input` and `output` of the run the keys count that an annotator has, but for `output.heat_maps`.
        """
        values: Json = {} if run is None else _of_run(run)
        values |= {name: section for name, section in sections.items() if section is not None}
        config = cls.model_validate(values)
        table = config.input
        places = {"image_root": absolute(table.image_root or ".")}
        if table.phrases is not None:
            places["phrases"] = absolute(table.phrases)
        return config.model_copy(
            update={
                "input": table.model_copy(update=places),
                **{
                    name: with_absolute_files(getattr(config, name))
                    for name in ("model", "explain", "regions")
                },
                "engine": config.engine.model_copy(update={"kind": "inline"}),
            }
        )

    def settings(self) -> Json:
        """Return the settings that estimates depend on beside the model, as plain values.

        Where images and captions are makes no difference.
        """
        plain = self.rows_depend_on()
        for section in ("model", "output"):  # a fingerprint identifies the model
            del plain[section]
        file = plain.pop("input").get("phrases_sha256")
        return plain if file is None else {**plain, "phrases_sha256": file}


def _of_run(run: RunConfig) -> Json:
    keys = {name for name in TableInput.model_fields if hasattr(run.input, name)}
    return {
        **{name: getattr(run, name) for name in SECTIONS},
        "input": {name: getattr(run.input, name) for name in keys},
        "output": {"caption_score": run.output.caption_score},
    }
