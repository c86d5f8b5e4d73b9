"""The Croissant metadata of datasets and exports: columns, origin and limits."""

import json
from typing import Any

import pyarrow as pa

from phrasebox.pipeline.dataset.croissant import croissant_text
from phrasebox.stages.contract.schema import dataset_schema
from phrasebox.stages.write import WEAKNESSES
from tests.build.datasets import Json

MANIFEST: Json = {
    "phrasebox_version": "0.1.0",
    "model": {"name": "ViT-B-16/openai"},
    "model_fingerprint": "abc",
    "calibration": "def",
    "scores": {"fitted_to": "12 images with the boxes of truth.json", "doubt": None, "presence": None},
    "config": {
        "input": {"kind": "jsonl", "path": "/home/somebody/secret/captions.jsonl"},
        "phrases": {"language": "en"},
        "explain": {"kind": "grad_eclip"},
        "source": {"kind": "heat_maps"},
    },
    "counts": {"written": 9, "failed": 2, "without_phrases": 1},
    "caption_doubt": None,
    "wall_time_s": 3.2,
}


def metadata(manifest: Json, schema: Any = None) -> Json:
    return json.loads(croissant_text(manifest, schema or dataset_schema(()), "a name"))


def columns(values: Json) -> dict[str, Json]:
    return {column["@id"]: column for column in values["recordSet"][0]["field"]}


def test_it_says_where_regions_come_from_and_what_is_wrong_with_them() -> None:
    values = metadata(MANIFEST)
    assert "'captions.jsonl' (kind jsonl)" in values["rai:dataCollection"]
    assert "Of 9 images 2 failed" in values["rai:dataCollectionMissingData"]
    assert "phrases.language en" in values["rai:dataAnnotationProtocol"]
    assert "explainer grad_eclip" in values["rai:dataAnnotationProtocol"]
    assert values["rai:machineAnnotationTools"] == ["phrasebox 0.1.0", "ViT-B-16/openai (fingerprint abc)"]
    assert "calibrated on 12 images with the boxes of truth.json" in values["rai:dataAnnotationAnalysis"]
    assert values["rai:dataLimitations"] == list(WEAKNESSES)
    assert "that of their source" in values["license"]


def test_it_names_no_folder_and_no_time() -> None:
    assert metadata(MANIFEST) == metadata({**MANIFEST, "wall_time_s": 4.4})
    text = croissant_text(MANIFEST, dataset_schema(()), "a name")
    assert "somebody" not in text
    assert "secret" not in text


def test_scores_without_a_calibration_only_rank_and_doubt_is_told() -> None:
    doubtful = {**MANIFEST, "scores": {"fitted_to": None}, "caption_doubt": {"share": 0.7}}
    told = metadata(doubtful)["rai:dataAnnotationAnalysis"]
    assert "only ranks" in told
    assert "do not seem to be in their images" in told


def test_it_bears_a_manifest_of_someone_else() -> None:
    """A dataset of someone else may hold anything, and an unfinished one has no manifest."""
    for manifest in ({}, {"model": "a name", "scores": [], "counts": 3, "config": {"input": None}}):
        values = metadata(manifest)
        assert "(not recorded)" in values["description"]
        assert "has not finished" in values["rai:dataCollectionMissingData"]
        assert "only ranks" in values["rai:dataAnnotationAnalysis"]


def test_every_column_has_a_type_and_a_place() -> None:
    schema = dataset_schema(("image", "heat_maps"))
    described = columns(metadata(MANIFEST, schema))
    assert [name.removeprefix("rows/") for name in described] == schema.names
    assert described["rows/image"]["dataType"] == "sc:ImageObject"
    assert described["rows/captions"]["repeated"] is True
    assert described["rows/width"]["dataType"] == "sc:Integer"
    parts = {part["@id"]: part for part in described["rows/annotations"]["subField"]}
    assert parts["rows/annotations/score"]["dataType"] == "sc:Float"
    assert parts["rows/annotations/segmentation.counts"]["source"]["transform"] == {
        "jsonPath": "segmentation.counts"
    }
    assert "rows/annotations/segmentation" not in parts


def test_an_image_of_hugging_face_is_read_from_its_bytes() -> None:
    schema = pa.schema([("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))])
    [image] = columns(metadata(MANIFEST, schema)).values()
    assert image["dataType"] == "sc:ImageObject"
    assert image["source"]["transform"] == {"jsonPath": "bytes"}
