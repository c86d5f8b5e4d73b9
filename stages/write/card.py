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
    metadata = entry.metadata or {}
    doc, unit = (metadata.get(key, b"").decode() for key in (b"doc", b"unit"))
    return f"{doc} ({unit})" if unit else doc


def _features(fields: Any) -> list[dict[str, Any]]:
    return [
        {"name": entry.name, **({"dtype": "image"} if entry.name == "image" else _type(entry.type))} for entry in fields
    ]


def _type(kind: Any) -> dict[str, Any]:
    """A type in the words of `datasets`."""
    if pa.types.is_list(kind):
        inner = kind.value_type
        return {"list": _features(inner) if pa.types.is_struct(inner) else _type(inner)["dtype"]}
    if pa.types.is_struct(kind):
        return {"struct": _features(kind)}
    return {"dtype": {"float": "float32", "double": "float64"}.get(str(kind), str(kind))}
