"""`phrasebox export`: what it prints, how it fails, and that each option arrives."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.dataset.folder import write_marks
from pipeline.dataset.origin import signed
from pipeline.export import EXPORTERS
from stages.contract.errors import ConfigError, InputError
from tests.pipeline.changed import change_manifest
from tests.pipeline.export.datasets import encoded, write_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_dataset(tmp_path_factory.mktemp("cli") / "dataset")
    write_marks(folder, {"ring": "good", "plain": "bad"})
    return folder


def call(*arguments: object) -> Any:
    return CliRunner(env={"COLUMNS": "300"}).invoke(app, ["export", *map(str, arguments)])


def exported(dataset: Path, out: Path, *options: object, name: str = "coco") -> str:
    """What the verb prints."""
    answer = call(dataset, "--format", name, "--out", out, *options)
    assert answer.exit_code == 0, answer.exception
    return str(answer.stdout)


def rejected(error: type[Exception], message: str, *arguments: object) -> None:
    answer = call(*arguments)
    assert isinstance(answer.exception, error), answer.exception
    assert re.search(message, str(answer.exception)), answer.exception


def content_of(out: Path, split: str = "train") -> dict[str, Any]:
    return json.loads((out / "annotations" / f"instances_{split}.json").read_text(encoding="utf-8"))


def test_the_report_says_what_is_in_and_what_is_not(dataset: Path, tmp_path: Path) -> None:
    text = exported(dataset, tmp_path / "out", "--split", "train=0.6,val=0.4")
    known = ("14 categories", "masks: exact as RLE", "rows left out: 4 of 16", "2 with an error in the dataset")
    for words in ("coco in", "train", "val", "12", "17", *known, "2 without a chosen region"):
        assert words in text
    figures = json.loads(exported(dataset, tmp_path / "grit", "--json", name="grit"))
    assert (figures["format"], figures["out"], figures["rows"]) == ("grit", str(tmp_path / "grit"), 16)
    assert (figures["samples"], figures["regions"], figures["faults"]) == ({"train": 12}, {"train": 17}, [])


@pytest.mark.parametrize(
    ("calibration", "options", "told"),
    [
        ("0" * 64, (), "9 of 17 regions have a score below 0.5; --min-score 0.5 leaves them out"),
        ("0" * 64, ("--where", "score < 0.2"), "3 of 3 regions have a score below 0.5; "),
        ("0" * 64, ("--min-score", "0.1"), ""),
        (None, (), ""),
    ],
)
def test_doubtful_regions_are_counted_where_scores_are_probabilities(calibration, options, told, tmp_path) -> None:
    dataset = write_dataset(tmp_path / "dataset")
    change_manifest(dataset, calibration=calibration)
    text = exported(dataset, tmp_path / "out", *options)
    assert told in text
    assert ("below 0.5" in text) == bool(told)


def test_every_option_arrives(dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ("--min-score", "0.1", "--where", "caption_index = 0", "--keep-empty")
    text = exported(dataset, out, *options, "--set", "classes=head", "--set", "segmentation=polygons")
    content = content_of(out)
    assert len(content["images"]) == 14
    assert all(entry["score"] >= 0.1 and entry["caption_index"] == 0 for entry in content["annotations"])
    assert all(isinstance(entry["segmentation"], list) for entry in content["annotations"])
    assert {category["name"] for category in content["categories"]} >= {"ring", "chain"}
    assert "1 masks with holes: filled" in text
    rejected(ConfigError, "^--out: .* holds an export; .*--overwrite", dataset, "--format", "coco", "--out", out)
    exported(dataset, out, "--overwrite", "--where", "mark IS DISTINCT FROM 'bad'")
    names = {image["sample_id"] for image in content_of(out)["images"]}
    assert "plain" not in names
    assert len(names) == 11


def test_images_from_a_root(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset", embed_images=False, image_root=tmp_path / "gone")
    root = tmp_path / "moved"
    root.mkdir()
    (root / "1.jpg").write_bytes(encoded())
    text = exported(dataset, tmp_path / "out", "--images", root, name="webdataset")
    assert "image: missing_image" in text
    assert "does not exist below the image root" in text
    other = (dataset, "--format", "webdataset", "--out", tmp_path / "other")
    rejected(InputError, "no such folder", *other, "--images", tmp_path / "nowhere")
    manifest = json.loads((dataset / "dataset.json").read_text())
    manifest["config"]["input"] = {"kind": "webdataset", "path": "x.tar"}  # as if the images had come from tars
    (dataset / "dataset.json").write_text(json.dumps(signed(manifest)))
    rejected(ConfigError, "^--images: webdataset takes images, but the dataset holds none", *other)
    assert not (tmp_path / "other").exists()


def test_a_strangers_dataset_decides_neither_folder_nor_model(tmp_path: Path) -> None:
    root = tmp_path / "my pictures"
    root.mkdir()
    (root / "1.jpg").write_bytes(encoded())
    dataset = write_dataset(tmp_path / "dataset", embed_images=False, image_root=root, demo=True)
    change_manifest(dataset, lambda m: m["config"]["model"].update(name="hf-hub:evil/model", pretrained="x"))
    packed = (dataset, "--format", "webdataset", "--out", tmp_path / "packed")
    rejected(ConfigError, f"^--images: .*if it is right: {root}$", *packed)
    assert not (tmp_path / "packed").exists()
    assert call(*packed, "--images", root).exit_code == 0
    embedded = (dataset, "--format", "clipself", "--out", tmp_path / "embedded")
    rejected(ConfigError, "--set model.name=hf-hub:evil/model --set model.pretrained=x$", *embedded)
    assert call(*embedded, "--set", "model.name=demo").exit_code == 0


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cooc", [], f"^--format: there is no 'cooc'; one of {', '.join(sorted(EXPORTERS))}"),
        ("coco", ["--where", "hed = 'dog'"], "^--where: not an SQL condition.*columns: phrase, head"),
        ("coco", ["--split", "../x=1"], "^--split: .*cannot be the name of a split"),
        ("coco", ["--per", "thing"], "^--per: expected phrase or group, got 'thing'"),
        ("coco", ["--set", "segmentation=masks"], "segmentation"),
        ("grit", ["--set", "segmentation=rle"], "segmentation"),
        ("odvg", ["--keep-empty"], "^--keep-empty: odvg cannot hold"),
    ],
)
def test_what_cannot_be_used(name: str, options: list[str], message: str, dataset: Path, tmp_path: Path) -> None:
    rejected(ConfigError, message, dataset, "--format", name, "--out", tmp_path / "out", *options)
    assert list(tmp_path.iterdir()) == []


def test_what_is_missing_is_named(dataset: Path, tmp_path: Path) -> None:
    rejected(ConfigError, "^export needs DATASET, --out; --list describes the formats$", "--format", "coco")
    rejected(InputError, "not a finished dataset", tmp_path, "--format", "coco", "--out", tmp_path / "out")
    rejected(ConfigError, "no export wrote it", dataset, "--format", "coco", "--out", dataset, "--overwrite")


def test_the_list_describes_every_format() -> None:
    answer = call("--list")
    assert answer.exit_code == 0
    for name, exporter in EXPORTERS.items():
        assert f"{name}: {exporter.summary}\n    masks: {exporter.masks}\n" in answer.stdout
