"""Parquet for Hugging Face `datasets`: data/SPLIT-*.parquet with images, README.md and croissant.json.

Columns as the object-detection scripts of transformers expect them, after cppe-5: `image`,
`image_id`, `width`, `height`, `objects` {`id`, `area`, `bbox` [x, y, w, h] px, `category`} with
`category` a `ClassLabel` from 0, or the name itself if there are more than `MOST_LABELS`. Further
columns are `sample_id`, `file_name`, `captions` and `absent` (the absent phrases); `objects` has
all other fields of the dataset's regions. Parquet, unlike an imagefolder with metadata.jsonl,
keeps types and class names.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

import pyarrow as pa
from pydantic import Field

from phrasebox.pipeline.dataset.croissant import CROISSANT_FILE, croissant_text
from phrasebox.pipeline.dataset.rows import absent_phrases
from phrasebox.pipeline.export.base import CategoryField, ChosenSample, Exporter, ExportJob, FormatConfig
from phrasebox.pipeline.export.files import ParquetParts, number_name
from phrasebox.stages.contract.values import Json
from phrasebox.stages.write import dtype_of

_ROWS_PER_GROUP: Final = (
    100  # The Hugging Face hub recommends this for images: its viewer reads a group at a time
)
AS_TEXT: Final = "categories: as text, since the names of all ClassLabels would stand in every file"
MOST_LABELS: Final = 10_000
"""The most categories of a `ClassLabel`.

Every file holds their names, twice: a million phrases would take 40 MB.
"""

_OBJECTS: Final = {
    "id": pa.int64(),
    "area": pa.int64(),
    "bbox": pa.list_(pa.float32()),
    "category": pa.int64(),
    "phrase": pa.string(),
    "head": pa.string(),
    "caption_index": pa.int32(),
    "span": pa.list_(pa.int32()),
    "score": pa.float32(),
    "similarity": pa.float32(),
    "segmentation": pa.string(),  # COCO's compressed counts for [height, width]
}
"""Fields of `objects`, each a list with an entry for every region."""

_FIELDS: Final = {
    "image": pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    "image_id": pa.int64(),
    "width": pa.int32(),
    "height": pa.int32(),
    "sample_id": pa.string(),
    "file_name": pa.string(),
    "captions": pa.list_(pa.string()),
    "absent": pa.list_(pa.string()),
}


class HfConfig(FormatConfig):
    """Settings of `hf`."""

    classes: CategoryField = "phrase"
    rows_per_file: int = Field(1000, ge=1, le=1_000_000, description="Images of one Parquet file.")


class Hf(Exporter):
    """Parquet for `datasets.load_dataset`."""

    summary = (
        "data/SPLIT-*.parquet with images and objects, for datasets.load_dataset and transformers' "
        "object detection"
    )
    masks = "exact as RLE counts in objects.segmentation, which detection scripts ignore"
    next_step = 'datasets.load_dataset("{out}")'
    needs_images = True
    config_type = HfConfig

    def __init__(self, config: HfConfig, job: ExportJob) -> None:
        names = job.categories.names
        self._labels = len(names) <= MOST_LABELS
        self._schema = _schema(names if self._labels else None)
        super().__init__(config, job)
        if not self._labels:
            self.notes[AS_TEXT] += len(names)

    def open_split(self, split: str) -> ParquetParts:
        """Return the Parquet files of a split."""
        rows = self.config.rows_per_file
        return ParquetParts(self.job.folder, split, self._schema, rows, _ROWS_PER_GROUP)

    def add(self, sample: ChosenSample) -> None:
        """Write one sample."""
        row = sample.row
        image = sample.loaded_image
        regions = sample.regions
        fields = _OBJECTS.keys() - {"category", "segmentation"}
        category = self.job.categories.index_of if self._labels else self.job.categories.name_of
        self.files[sample.split].add(
            {
                "image": {"bytes": image.content, "path": number_name(row["id"], image.extension)},
                "image_id": row["id"],
                **{name: row[name] for name in ("width", "height", "sample_id", "file_name", "captions")},
                "absent": absent_phrases(row),
                "objects": {
                    **{name: [region[name] for region in regions] for name in fields},
                    "category": [category(region) for region in regions],
                    "segmentation": [region["segmentation"]["counts"] for region in regions],
                },
            }
        )

    def close(self) -> None:
        """Write all remaining rows, the dataset card and its Croissant metadata."""
        super().close()
        with_rows = [split for split in self.job.splits if self.job.report.samples[split]]
        text = f"its name, since there are more than {MOST_LABELS:,}"
        card = _card(with_rows, "a number, whose name is a `ClassLabel`'s" if self._labels else text)
        self.job.folder.file("README.md").write_text(card, encoding="utf-8")
        metadata = croissant_text(
            self.job.dataset.manifest, self._schema, "Regions for the phrases of captions"
        )
        self.job.folder.file(CROISSANT_FILE).write_text(metadata, encoding="utf-8")


def _schema(labels: Sequence[str] | None) -> Any:
    """Return the Arrow schema, with the features of `datasets` in its metadata.

    Without labels, categories are text.
    """
    kinds = _OBJECTS if labels is not None else {**_OBJECTS, "category": pa.string()}
    objects = pa.struct([(name, pa.list_(kind)) for name, kind in kinds.items()])
    schema = pa.schema([*_FIELDS.items(), ("objects", objects)])

    def feature(name: str, kind: Any) -> Json:
        if name == "image":
            return {"_type": "Image"}
        if pa.types.is_struct(kind):
            return {entry.name: feature(entry.name, entry.type) for entry in kind}
        if pa.types.is_list(kind):
            return {"feature": feature(name, kind.value_type), "_type": "Sequence"}
        if name == "category" and labels is not None:
            return {"names": labels, "_type": "ClassLabel"}
        return {"dtype": dtype_of(kind), "_type": "Value"}

    features = {field.name: feature(field.name, field.type) for field in schema}
    return schema.with_metadata(
        {"huggingface": json.dumps({"info": {"features": features}}, ensure_ascii=False)}
    )


def _card(splits: Sequence[str], category: str) -> str:
    """Return a dataset card with the files of the splits, and with what stands in the column of categories.

    The names of splits need no quotes, see `parse_splits`.
    """
    files = "".join(f"\n  - split: {split}\n    path: data/{split}-*.parquet" for split in splits) or " []"
    return f"""---
task_categories:
- object-detection
tags:
- phrase-grounding
- phrasebox
configs:
- config_name: default
  data_files:{files}
---

# Regions for the phrases of captions

Boxes and masks for the noun phrases of image captions, made by phrasebox with a CLIP model: training data for phrase
grounding and open-vocabulary detection.

## Columns

Lists in `objects` have one entry per region. Coordinates are pixels of the upright image.

| column | meaning |
|---|---|
| `captions` | the captions, unchanged |
| `absent` | phrases of the captions that were judged not to be in the image |
| `objects.bbox` | [x, y, width, height] |
| `objects.category` | {category} |
| `objects.segmentation` | COCO's compressed run-length counts for the size [height, width] |
| `objects.span` | characters [start, end) of the phrase in `captions[caption_index]` |
| `objects.score` | probability that the box is right (IoU >= 0.5) with a calibration; otherwise it only ranks |

## Known weaknesses

Nobody has checked every region. Boxes are rough, plurals often get one region, and small objects are often missed. A
phrase may name what is not in the image.

## Load it

```python
import datasets

rows = datasets.load_dataset("OWNER/NAME")  # or the path of this folder
```

## Licence and citation

The licence of the images and captions is that of their source, and the licence of the model holds too. Cite the source,
and for the heat maps: Zhao and others, Grad-ECLIP, ICML 2024 (https://arxiv.org/abs/2502.18816).
"""
