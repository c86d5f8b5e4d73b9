"""`phrasebox export`: what it prints, how it fails, and that each option arrives."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from phrasebox.pipeline.commands.cli import app
from phrasebox.pipeline.dataset.marks import append_marks
from phrasebox.pipeline.dataset.signature import sign
from phrasebox.pipeline.export import EXPORTERS
from phrasebox.pipeline.export.files import MARK
from phrasebox.stages.contract.errors import ConfigError, InputError
from tests.build.datasets import Json, change_manifest, manifest_of
from tests.build.files import read_json, write_json
from tests.messages import expect_error
from tests.pipeline.export.datasets import Maker, encoded, finished, records_below_root, write_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_dataset(tmp_path_factory.mktemp("cli") / "dataset")
    append_marks(folder, {"ring": "good", "plain": "bad"})
    return folder


def call(*arguments: object) -> Any:
    return CliRunner(env={"COLUMNS": "300"}).invoke(app, ["export", *map(str, arguments)])


def exported(dataset: Path, out: Path, *options: object, name: str = "coco") -> str:
    """What the verb prints."""
    answer = call(dataset, "--format", name, "--out", out, *options)
    assert answer.exit_code == 0, answer.exception
    return str(answer.stdout)


def rejected(error: type[BaseException], *arguments: object, key: str = "") -> None:
    with expect_error(error, key=key):
        raise call(*arguments).exception


def content_of(out: Path, split: str = "train") -> Json:
    return read_json(out / "annotations" / f"instances_{split}.json")


def test_the_report_says_what_is_in_and_what_is_not(dataset: Path, tmp_path: Path) -> None:
    text = exported(dataset, tmp_path / "out", "--split", "train=0.6,val=0.4")
    lines = (
        "14 categories",
        "masks: exact as RLE",
        "rows left out: 4 of 16",
        "2 with an error in the dataset",
    )
    for words in ("coco in", "train", "val", "12", "17", *lines, "2 without a chosen region"):
        assert words in text
    figures = json.loads(exported(dataset, tmp_path / "grit", "--json", name="grit"))
    assert (figures["format"], figures["out"], figures["rows"]) == ("grit", str(tmp_path / "grit"), 16)
    assert (figures["samples"], figures["regions"], figures["faults"]) == ({"train": 12}, {"train": 17}, [])


@pytest.mark.parametrize(
    ("calibration", "options", "told"),
    [
        ("0" * 64, (), "by their scores 45% of the regions are right; --precision 0.7 keeps 7 of 17"),
        (
            "0" * 64,
            ("--max-area", "0.05"),
            "by their scores 31% of the regions are right; --precision 0.5 keeps 1 of 4",
        ),
        ("0" * 64, ("--where", "score < 0.2"), ""),
        ("0" * 64, ("--min-score", "0.1"), ""),
        (None, (), ""),
    ],
)
def test_a_precision_is_advised_where_scores_are_probabilities(
    calibration, options, told, tmp_path
) -> None:
    dataset = write_dataset(tmp_path / "dataset")
    change_manifest(dataset, calibration=calibration)
    text = exported(dataset, tmp_path / "out", *options)
    assert told in text
    assert ("by their scores" in text) == bool(told)


@pytest.mark.parametrize(
    ("options", "line", "count"),
    [
        (("--precision", "0.6"), "0.6: score >= 0.350 keeps 11 of 17 regions", 11),
        (("--keep", "0.3"), "0.3: score >= 0.650 keeps 5 of 17 regions", 5),
        (("--max-area", "0.6"), "", 15),
        (("--precision", "0.7", "--max-area", "0.1"), "0.7: score >= 0.650 keeps 3 of 9 regions", 3),
    ],
    ids=str,
)
def test_regions_are_chosen_by_what_people_want(
    options: tuple[str, ...], line: str, count: int, tmp_path
) -> None:
    dataset = write_dataset(tmp_path / "dataset")
    change_manifest(dataset, calibration="0" * 64)
    out = tmp_path / "out"
    assert line in exported(dataset, out, *options, "--per", "phrase")
    assert len(content_of(out)["annotations"]) == count
    figures = json.loads(exported(dataset, tmp_path / "again", *options, "--json"))
    assert (figures["threshold"] or {}).get("regions") == (count if line else None)
    mark = read_json(out / MARK)
    assert mark["min_score"] == (figures["threshold"] or {"score": 0.0})["score"]


def test_a_precision_that_cannot_be_had(dataset: Path, tmp_path: Path) -> None:
    request = ("--format", "coco", "--out", tmp_path / "out", "--precision", "0.9")
    rejected(ConfigError, dataset, *request, key="--precision")
    calibrated = write_dataset(tmp_path / "dataset")
    change_manifest(calibrated, calibration="0" * 64)
    rejected(ConfigError, calibrated, *request, key="--precision")
    rejected(ConfigError, calibrated, *request, "--keep", "0.3", key="--keep")
    assert not (tmp_path / "out").exists()


def test_every_option_arrives(dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ("--min-score", "0.1", "--where", "caption_index = 0", "--keep-empty")
    text = exported(dataset, out, *options, "--set", "classes=head", "--set", "segmentation=polygons")
    content = content_of(out)
    assert len(content["images"]) == 14
    assert all(entry["score"] >= 0.1 and entry["caption_index"] == 0 for entry in content["annotations"])
    assert all(isinstance(entry["segmentation"], list) for entry in content["annotations"])
    assert {category["name"] for category in content["categories"]} >= {"ring", "chain"}
    assert "masks with holes: filled, since polygons cannot say them (1)" in text
    rejected(ConfigError, dataset, "--format", "coco", "--out", out, key="--out")
    exported(dataset, out, "--overwrite", "--where", "mark IS DISTINCT FROM 'bad'")
    names = {image["sample_id"] for image in content_of(out)["images"]}
    assert "plain" not in names
    assert len(names) == 11


@pytest.mark.parametrize("name", EXPORTERS)
def test_it_ends_with_the_place_of_the_images_and_the_next_step(name: str, tmp_path: Path) -> None:
    """At most four lines: classes, images, what trains on it or loads it."""
    root = tmp_path / "my images"
    out = tmp_path / "out"
    root.mkdir()
    for number in range(1, 18):
        (root / f"{number}.jpg").write_bytes(encoded())
    dataset = write_dataset(tmp_path / "dataset", embed_images=False, image_root=root)
    append_marks(dataset, {"ring": "good"})
    *_, images, last = exported(dataset, out, name=name).splitlines()
    assert last.startswith("next: ")
    assert str(out) in last
    exporter = EXPORTERS[name]
    if exporter.takes_images(exporter.config_type()):
        folder = f"{out}/{exporter.image_folder.format(split='train')}"
        assert images == f"images: in {folder if exporter.image_folder else 'the files of the export'}"
    else:
        copied = "; --set images=true copies them" if name != "grit" else ""
        assert images == f"images: not copied, file names are relative to {root}{copied}"
        assert name in ("saco", "grit") or str(root) in last
    paths = [Path(path) for path in re.findall(r'"([^"*]+)"', last) if path.startswith(str(tmp_path))]
    assert [path for path in paths if not path.exists() and path.name != "label_map.json"] == []
    shares = ("--split", "train=0.5,val=0.5", "--overwrite")
    if exporter.image_folder and name != "saco":
        settings = () if exporter.needs_images else ("--set", "images=true")
        text = exported(dataset, out, *shares, *settings, name=name)
        assert (
            f"images: in {folder_of(exporter, out, 'train')}, {folder_of(exporter, out, 'val')}\n" in text
        )


def folder_of(exporter: Any, out: Path, split: str) -> str:
    return f"{out}/{exporter.image_folder.format(split=split)}"


def test_where_the_images_are_is_told_if_it_is_known(dataset: Path, tmp_path: Path) -> None:
    unknown = finished(tmp_path / "dataset", records_below_root(), embed_images=False)
    change_manifest(
        unknown, lambda manifest: manifest["config"].update(input={"kind": "webdataset", "path": "x.tar"})
    )
    text = exported(unknown, tmp_path / "unknown")
    assert "images: not copied, file names are relative to IMAGES; " in text
    assert 'CocoDetection("IMAGES", ' in text


def test_rare_categories_are_counted_and_left_out(tmp_path: Path) -> None:
    """Twelve dogs, nine cats, a cow beside a dog, and an image of a cow alone."""
    make = Maker()
    dog = ("dog", (1, 1, 5, 5))
    cat = ("cat", (9, 9, 5, 5))
    cow = ("cow", (2, 2, 9, 9))
    captions = (
        [("a dog and a cat", dog, cat)] * 9
        + [("a dog", dog)] * 2
        + [("a dog, a cow", dog, cow), ("a cow", cow)]
    )
    rows = [make.record(f"s{number}", *caption) for number, caption in enumerate(captions)]
    dataset = finished(tmp_path / "dataset", rows)
    assert (
        "3 categories, 2 of them rare (fewer than 10 regions); --min-count N leaves out rare ones\n"
        in exported(dataset, tmp_path / "all")
    )
    text = exported(dataset, tmp_path / "out", "--min-count", 9)
    assert "2 categories, 1 of them rare" in text
    assert "categories with fewer regions than --min-count: left out (1)\n" in text
    assert "regions of categories with fewer regions than --min-count: left out (2)\n" in text
    assert "1 without a chosen region" in text
    content = content_of(tmp_path / "out")
    assert [category["name"] for category in content["categories"]] == ["cat", "dog"]
    assert (len(content["images"]), len(content["annotations"])) == (12, 21)
    rejected(
        ConfigError,
        dataset,
        "--format",
        "mdetr",
        "--out",
        tmp_path / "no",
        "--min-count",
        9,
        key="--min-count",
    )


def test_images_from_a_root(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset", embed_images=False, image_root=tmp_path / "gone")
    root = tmp_path / "moved"
    root.mkdir()
    (root / "1.jpg").write_bytes(encoded())
    text = exported(dataset, tmp_path / "out", "--images", root, name="webdataset")
    assert "image: missing_image" in text
    assert "does not exist below the image root" in text
    other = (dataset, "--format", "webdataset", "--out", tmp_path / "other")
    rejected(InputError, *other, "--images", tmp_path / "nowhere")
    manifest = manifest_of(dataset)
    manifest["config"]["input"] = {
        "kind": "webdataset",
        "path": "x.tar",
    }  # as if the images had come from tars
    write_json(dataset / "dataset.json", sign(manifest))
    rejected(ConfigError, *other, key="--images")
    assert not (tmp_path / "other").exists()


def test_a_strangers_dataset_decides_no_folder(tmp_path: Path) -> None:
    root = tmp_path / "my pictures"
    root.mkdir()
    (root / "1.jpg").write_bytes(encoded())
    dataset = finished(tmp_path / "dataset", records_below_root(), embed_images=False, image_root=root)
    change_manifest(
        dataset, lambda m: m["config"]["model"].update(name="hf-hub:evil/model", pretrained="x")
    )
    packed = (dataset, "--format", "webdataset", "--out", tmp_path / "packed")
    rejected(ConfigError, *packed, key="--images")
    assert not (tmp_path / "packed").exists()
    assert call(*packed, "--images", root).exit_code == 0


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cooc", []),
        ("coco", ["--where", "hed = 'dog'"]),
        ("coco", ["--split", "../x=1"]),
        ("coco", ["--set", "segmentation=masks"]),
        ("grit", ["--set", "segmentation=rle"]),
        ("odvg", ["--keep-empty"]),
    ],
)
def test_what_cannot_be_used(name: str, options: list[str], dataset: Path, tmp_path: Path) -> None:
    option = next(iter(options), "--format")
    key = "segmentation" if option == "--set" else option
    rejected(ConfigError, dataset, "--format", name, "--out", tmp_path / "out", *options, key=key)
    assert list(tmp_path.iterdir()) == []


def test_what_is_missing_is_named(dataset: Path, tmp_path: Path) -> None:
    assert call("--format", "coco").exit_code == call(dataset).exit_code == 2
    rejected(ConfigError, dataset, "--format", "coco", key="--out")
    rejected(InputError, tmp_path, "--format", "coco", "--out", tmp_path / "out")
    rejected(ConfigError, dataset, "--format", "coco", "--out", dataset, "--overwrite", key="--out")


def test_the_list_describes_every_format() -> None:
    answer = call("--list")
    assert answer.exit_code == 0
    for name, exporter in EXPORTERS.items():
        assert f"{name}: {exporter.summary}\n    masks: {exporter.masks}\n" in answer.stdout
