"""`phrasebox export`: what it prints, how it fails, and that each option arrives."""

from __future__ import annotations

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
from tests.pipeline.export.datasets import encoded, write_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("cli") / "dataset")


def call(*arguments: object) -> Any:
    return CliRunner(env={"COLUMNS": "300"}).invoke(app, ["export", *map(str, arguments)])


def refused(error: type[Exception], message: str, *arguments: object) -> None:
    answer = call(*arguments)
    assert isinstance(answer.exception, error), answer.exception
    assert re.search(message, str(answer.exception)), answer.exception


def content_of(out: Path, split: str = "train") -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((out / "annotations" / f"instances_{split}.json").read_text(encoding="utf-8"))
    return loaded


def test_the_report_says_what_is_in_and_what_is_not(dataset: Path, tmp_path: Path) -> None:
    answer = call(dataset, "--format", "coco", "--out", tmp_path / "out", "--split", "train=0.6,val=0.4")
    assert answer.exit_code == 0, answer.exception
    for words in (
        "coco in",
        "train",
        "val",
        "12",
        "17",
        "14 categories",
        "masks: exact as RLE",
        "rows left out: 4 of 16",
    ):
        assert words in answer.stdout
    assert "2 with an error in the dataset" in answer.stdout
    assert "2 without a chosen region" in answer.stdout


@pytest.mark.parametrize(
    ("calibration", "options", "told"),
    [
        ("0" * 64, (), "9 of 17 regions have a score below 0.5; --min-score 0.5 leaves them out"),
        ("0" * 64, ("--where", "score < 0.2"), "3 of 3 regions have a score below 0.5; "),
        ("0" * 64, ("--min-score", "0.1"), ""),
        (None, (), ""),
    ],
)
def test_doubtful_regions_are_counted_where_scores_are_probabilities(
    calibration: str | None, options: tuple[str, ...], told: str, tmp_path: Path
) -> None:
    dataset = write_dataset(tmp_path / "dataset")
    manifest = json.loads((dataset / "dataset.json").read_text())
    (dataset / "dataset.json").write_text(json.dumps({**manifest, "calibration": calibration}))
    answer = call(dataset, "--format", "coco", "--out", tmp_path / "out", *options)
    assert answer.exit_code == 0, answer.exception
    assert told in answer.stdout
    assert ("below 0.5" in answer.stdout) == bool(told)


def test_every_option_arrives(dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = (dataset, "--format", "coco", "--out", out)
    options = ("--min-score", "0.1", "--where", "caption_index = 0", "--segmentation", "polygons", "--keep-empty")
    answer = call(*arguments, *options, "--set", "classes=head")
    assert answer.exit_code == 0, answer.exception
    content = content_of(out)
    assert len(content["images"]) == 14
    assert all(entry["score"] >= 0.1 and entry["caption_index"] == 0 for entry in content["annotations"])
    assert all(isinstance(entry["segmentation"], list) for entry in content["annotations"])
    assert {category["name"] for category in content["categories"]} >= {"ring", "chain"}
    assert "1 masks with holes: filled" in answer.stdout
    refused(ConfigError, "^--out: .* holds an export; .*--overwrite", *arguments)
    assert call(*arguments, "--overwrite").exit_code == 0
    assert len(content_of(out)["images"]) == 12


def test_images_from_a_root(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset", embed_images=False, image_root=tmp_path / "gone")
    root = tmp_path / "moved"
    root.mkdir()
    (root / "1.jpg").write_bytes(encoded())
    answer = call(dataset, "--format", "webdataset", "--out", tmp_path / "out", "--images", root)
    assert answer.exit_code == 0, answer.exception
    assert "image: missing_image" in answer.stdout
    assert "does not exist below the image root" in answer.stdout
    other = (dataset, "--format", "webdataset", "--out", tmp_path / "other")
    refused(InputError, "no such folder", *other, "--images", tmp_path / "nowhere")
    forget_root(dataset)
    refused(ConfigError, "^--images: webdataset takes images, but the dataset holds none", *other)
    assert not (tmp_path / "other").exists()


def test_a_strangers_dataset_decides_neither_folder_nor_model(tmp_path: Path) -> None:
    root = tmp_path / "my pictures"
    root.mkdir()
    (root / "1.jpg").write_bytes(encoded())
    dataset = write_dataset(tmp_path / "dataset", embed_images=False, image_root=root, demo=True)
    manifest = json.loads((dataset / "dataset.json").read_text())
    manifest["config"]["model"] |= {"name": "hf-hub:evil/model", "pretrained": "x"}
    (dataset / "dataset.json").write_text(json.dumps(manifest))
    packed = (dataset, "--format", "webdataset", "--out", tmp_path / "packed")
    refused(ConfigError, f"^--images: .*if it is right, give --images '{root}'$", *packed)
    assert not (tmp_path / "packed").exists()
    assert call(*packed, "--images", root).exit_code == 0
    embedded = (dataset, "--format", "clipself", "--out", tmp_path / "embedded")
    refused(ConfigError, "--set model.name=hf-hub:evil/model --set model.pretrained=x$", *embedded)
    assert call(*embedded, "--set", "model.name=demo").exit_code == 0


def forget_root(dataset: Path) -> None:
    """As if the images had come from tars."""
    manifest = json.loads((dataset / "dataset.json").read_text())
    manifest["config"]["input"] = {"kind": "webdataset", "path": "x.tar"}
    (dataset / "dataset.json").write_text(json.dumps(signed(manifest)))


def test_marks_of_people_can_choose(dataset: Path, tmp_path: Path) -> None:
    write_marks(dataset, {"ring": "good", "plain": "bad"})
    try:
        for out, where in (("out", "mark IS DISTINCT FROM 'bad'"), ("good", "mark = 'good'")):
            assert call(dataset, "--format", "coco", "--out", tmp_path / out, "--where", where).exit_code == 0
    finally:
        (dataset / "marks.json").unlink()
    assert {image["sample_id"] for image in content_of(tmp_path / "good")["images"]} == {"ring"}
    names = {image["sample_id"] for image in content_of(tmp_path / "out")["images"]}
    assert "plain" not in names
    assert len(names) == 11


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "cooc",
            [],
            "^--format: there is no 'cooc'; one of clipself, coco, fiftyone, grit, hf, mdetr, odvg",
        ),
        ("coco", ["--where", "hed = 'dog'"], "^--where: not an SQL condition.*columns: phrase, head"),
        ("coco", ["--split", "../x=1"], "^--split: .*cannot be the name of a split"),
        ("coco", ["--set", "segmentation=masks"], "segmentation"),
        ("grit", ["--set", "segmentation=rle"], "segmentation"),
        ("grit", ["--segmentation", "rle"], "^--segmentation: not with grit"),
        ("odvg", ["--keep-empty"], "^--keep-empty: odvg cannot hold"),
    ],
)
def test_what_cannot_be_used(name: str, options: list[str], message: str, dataset: Path, tmp_path: Path) -> None:
    refused(ConfigError, message, dataset, "--format", name, "--out", tmp_path / "out", *options)
    assert list(tmp_path.iterdir()) == []


def test_what_is_missing_is_named() -> None:
    refused(ConfigError, "^export needs DATASET, --out; --list describes the formats$", "--format", "coco")


def test_an_unfinished_dataset_is_refused(dataset: Path, tmp_path: Path) -> None:
    refused(InputError, "not a finished dataset", tmp_path, "--format", "coco", "--out", tmp_path / "out")
    refused(ConfigError, "no export wrote it", dataset, "--format", "coco", "--out", dataset, "--overwrite")


def test_the_list_describes_every_format() -> None:
    answer = call("--list")
    assert answer.exit_code == 0
    for name, exporter in EXPORTERS.items():
        assert f"{name}: {exporter.summary}\n    masks: {exporter.masks}\n" in answer.stdout


def test_figures_as_json(dataset: Path, tmp_path: Path) -> None:
    answer = call(dataset, "--format", "grit", "--out", tmp_path / "out", "--json")
    figures = json.loads(answer.stdout)
    assert (figures["format"], figures["out"], figures["rows"]) == ("grit", str(tmp_path / "out"), 16)
    assert (figures["samples"], figures["regions"], figures["faults"]) == ({"train": 12}, {"train": 17}, [])
