"""The dataset card, in the form that the Hugging Face hub and `datasets.load_dataset` read."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import yaml

from stages.write.tally import Tally


def dataset_card(total: Tally, schema: Any, *, model: str, explainer: str, calibrated: bool) -> str:
    """The README.md of a dataset: a YAML header with splits and features, then the figures and the columns."""
    score = (
        "It is calibrated: where it was fitted, about 80 % of regions with a score of 0.8 had a box IoU of 0.5 or more."
        if calibrated
        else "It only ranks: it is not the probability of being right."
    )
    header = {
        "task_categories": ["object-detection", "image-segmentation"],
        "tags": ["phrase-grounding", "grad-eclip", "phrasebox"],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data/*.parquet"}]}],
        "dataset_info": {"features": _features(schema)},
    }
    columns = "\n".join(f"| `{entry.name}` | {_doc(entry)} |" for entry in schema)
    fields = "\n".join(f"| `{entry.name}` | {_doc(entry)} |" for entry in schema.field("annotations").type.value_type)
    return f"""---
{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---

# Regions for the phrases of captions

Made by phrasebox from captioned images: noun phrases of the captions, one {explainer} heat map per phrase
from the CLIP model `{model}`, boxes and masks from the heat maps. Nobody looked at the regions; filter them by
`score` before you trust them. {score}
The licence of the images and captions is that of their source.

| | |
|---|---|
| images | {total.rows:,} |
| with phrases | {total.annotated:,} |
| without phrases | {total.without_phrases:,} |
| failed | {total.failed:,} |
| phrases | {total.phrases:,} |
| regions | {total.regions:,} |
| different phrases | {len({phrase for phrase, _ in total.categories}):,} |

Coordinates are pixels of the EXIF-rotated image, origin top left. One row per image:

| column | |
|---|---|
{columns}

Fields of `annotations`:

| field | |
|---|---|
{fields}
"""


def _doc(entry: Any) -> str:
    metadata = {key.decode(): value.decode() for key, value in (entry.metadata or {}).items()}
    unit = f" ({metadata['unit']})" if metadata.get("unit") else ""
    doc: str = metadata.get("doc", "")
    return doc + unit


def _features(schema: Any) -> list[dict[str, Any]]:
    return [_feature(entry.name, entry.type) for entry in schema]


def _feature(name: str, kind: Any) -> dict[str, Any]:
    if name == "image":
        return {"name": name, "dtype": "image"}
    if pa.types.is_list(kind):
        inner = kind.value_type
        if pa.types.is_struct(inner):
            return {"name": name, "list": [_feature(entry.name, entry.type) for entry in inner]}
        return {"name": name, "list": _dtype(inner)}
    if pa.types.is_struct(kind):
        return {"name": name, "struct": [_feature(entry.name, entry.type) for entry in kind]}
    return {"name": name, "dtype": _dtype(kind)}


def _dtype(kind: Any) -> str:
    name: str = str(kind)
    short = {"float": "float32", "double": "float64"}
    return short.get(name, name)
