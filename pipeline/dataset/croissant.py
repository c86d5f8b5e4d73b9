"""Croissant metadata of a dataset or an export: what is in the files, and how the regions came to be.

The vocabulary is that of MLCommons: Croissant 1.0 for files and columns, its responsible-AI
extension 1.0 for origin and limits. It repeats what `dataset.json` and the columns say, without
times and folders, so that equal rows have equal metadata.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, Final

import pyarrow as pa

from phrasebox.stages.contract.values import Json
from phrasebox.stages.sources.source import HEAT_MAPS, SOURCES
from phrasebox.stages.write import WEAKNESSES

CROISSANT_FILE: Final = "croissant.json"
CROISSANT_SHA256: Final = "croissant_sha256"
"""The key of `dataset.json` for the digest of that file: what differs, someone has edited."""

_CONTEXT: Final = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
"""The prefixes and types of the vocabulary, which every file of it repeats."""

_TYPES: Final = (
    (pa.types.is_boolean, "sc:Boolean"),
    (pa.types.is_integer, "sc:Integer"),
    (pa.types.is_floating, "sc:Float"),
)
_FILES: Final = "shards"
_ROWS: Final = "rows"
_BOXES: Final = "boxes"  # `source.kind` of boxes that came with the input


def croissant_text(manifest: Mapping[str, Any], schema: Any, name: str) -> str:
    """Return the text of `croissant.json`.

    Args:
        manifest: The content of `dataset.json`; of a dataset that someone else made, or whose run
            has not finished, any part of it may be missing.
        schema: The Arrow schema of the files `data/*.parquet`.
        name: The name of the data, as the title of a page.
    """
    values = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "name": name,
        "description": "Boxes, masks and scores for the noun phrases of image captions: training data for phrase "
        "grounding and open-vocabulary detection. Made by phrasebox with the model "
        f"{_text(manifest, 'model', 'name')}.",
        "conformsTo": ["http://mlcommons.org/croissant/1.0", "http://mlcommons.org/croissant/RAI/1.0"],
        "license": "The licence of the images and captions is that of their source. The licence of the model holds "
        "too.",
        "citeAs": "Zhao and others: Gradient-based Visual Explanation for Transformer-based CLIP. ICML 2024.",
        "version": "1.0.0",
        "keywords": ["phrase grounding", "open-vocabulary detection", "phrasebox"],
        **_responsible(manifest),
        "distribution": [
            {
                "@type": "cr:FileSet",
                "@id": _FILES,
                "encodingFormat": "application/x-parquet",
                "includes": "data/*.parquet",
            }
        ],
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": _ROWS,
                "description": "One row for each image.",
                "field": [_field(column) for column in schema],
            }
        ],
    }
    return json.dumps(values, indent=1, ensure_ascii=False) + "\n"


def _responsible(manifest: Mapping[str, Any]) -> Json:
    counts = manifest.get("counts")
    source = _text(manifest, "config", "source", "kind")
    adds_missing = _value(manifest, "config", "source", "add_missing") is True
    maps = (
        f"one heat map for each phrase by the explainer {_text(manifest, 'config', 'explain', 'kind')}, then boxes and "
        "masks from the heat maps"
    )
    if source not in SOURCES or source == HEAT_MAPS:
        regions = maps
    elif adds_missing:
        regions = f"boxes of the input for the phrases that they answer, unchanged; for the others {maps}"
    else:
        regions = SOURCES[source].regions_come_from
    drawn = (
        "phrasebox does not know who drew the boxes of the input."
        if source == _BOXES
        else "No person has drawn a region."
    )
    missing = (
        f"Of {counts.get('written')} images {counts.get('failed')} failed, which are rows with a reason, and "
        f"{counts.get('without_phrases')} have no phrases."
        if isinstance(counts, Mapping)
        else "The run that makes the dataset has not finished."
    )
    return {
        "rai:dataCollection": "Images and captions are those of the input "
        f"{PurePosixPath(_text(manifest, 'config', 'input', 'path')).name!r} (kind "
        f"{_text(manifest, 'config', 'input', 'kind')}), unchanged. phrasebox does not know who wrote the captions.",
        "rai:dataCollectionMissingData": missing,
        "rai:dataAnnotationProtocol": f"{drawn} Noun phrases of the captions come from the "
        f"parser, phrases.language {_text(manifest, 'config', 'phrases', 'language')}; {' '.join(regions.split())}.",
        "rai:machineAnnotationTools": [
            f"phrasebox {_text(manifest, 'phrasebox_version')}",
            f"{_text(manifest, 'model', 'name')} (fingerprint {_text(manifest, 'model_fingerprint')})",
        ],
        "rai:dataAnnotationAnalysis": _scores(manifest),
        "rai:dataLimitations": [*WEAKNESSES],
        "rai:dataBiases": "What a caption does not say has no region, and whatever the captions and the model prefer, "
        "the regions prefer too.",
        "rai:dataUseCases": "Training of models for phrase grounding and open-vocabulary detection. It is no ground "
        "truth for measuring them.",
        "rai:personalSensitiveInformation": "Images and captions are not checked for people or private matters.",
    }


def _scores(manifest: Mapping[str, Any]) -> str:
    """Return what scores mean."""
    scores = manifest.get("scores")
    meaning = scores if isinstance(scores, Mapping) else {}
    sentences = [
        f"Scores are estimated by {meaning['fitted_to']}; on models that the fit had not seen they were up to "
        f"{meaning['estimated_margin']} too high."
        if meaning.get("estimated_margin")
        else f"Scores are calibrated on {meaning['fitted_to']}; on other images they can be far too high or too low."
        if meaning.get("fitted_to")
        else "No calibration: a score only ranks, and is not the probability of being right."
    ]
    if meaning.get("doubt"):
        sentences.append(f"{meaning['doubt']}.")
    if meaning.get("presence"):
        sentences.append(f"Presence was fitted to {meaning['presence']}.")
    if manifest.get("caption_doubt") is not None:
        sentences.append("Most phrases of the captions do not seem to be in their images.")
    return " ".join(sentences)


def _text(values: Any, *keys: str) -> str:
    """Return the text at a path of keys, or that it is not known."""
    value = _value(values, *keys)
    return value if isinstance(value, str) else "(not recorded)"


def _value(values: Any, *keys: str) -> Any:
    """Return the value at a path of keys; None without one."""
    for key in keys:
        values = values.get(key) if isinstance(values, Mapping) else None
    return values


def _field(column: Any) -> Json:
    """Return a column; entries of a list are repeated, and fields of its entries are read by their names."""
    place = f"{_ROWS}/{column.name}"
    source: Json = {"fileSet": {"@id": _FILES}, "extract": {"column": column.name}}
    kind = column.type
    is_list = pa.types.is_list(kind)
    inner = kind.value_type if is_list else kind
    doc = (column.metadata or {}).get(b"doc", b"").decode()
    values: Json = {"@type": "cr:Field", "@id": place, **({"description": doc} if doc else {})}
    if is_list:
        values["repeated"] = True
    if column.name == "image" and pa.types.is_struct(inner):
        source["transform"] = {"jsonPath": "bytes"}
    elif pa.types.is_struct(inner):
        return {**values, "subField": _sub_fields(place, inner, source)}
    return {**values, "dataType": _type(column.name, inner), "source": source}


def _sub_fields(place: str, struct: Any, source: Json) -> list[Json]:
    return [
        {
            "@type": "cr:Field",
            "@id": f"{place}/{path}",
            "dataType": _type(part.name, part.type),
            "source": {**source, "transform": {"jsonPath": path}},
        }
        for path, part in _parts(struct)
    ]


def _parts(struct: Any, folder: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the paths and fields of a struct; of one in it, its fields."""
    for part in struct:
        if pa.types.is_struct(part.type):
            yield from _parts(part.type, f"{folder}{part.name}.")
        else:
            yield f"{folder}{part.name}", part


def _type(name: str, kind: Any) -> str:
    """Return the type of a column's values; bytes and names are text."""
    if name == "image":
        return "sc:ImageObject"
    while pa.types.is_list(kind):
        kind = kind.value_type
    return next((type_name for is_type, type_name in _TYPES if is_type(kind)), "sc:Text")
