"""A run that keeps the boxes of the input and makes those that are missing, and what else meets its dataset."""

import json
import shutil
import sys
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from phrasebox.pipeline.config.run_config import RunConfig
from phrasebox.pipeline.dataset.folder import open_dataset
from phrasebox.pipeline.dataset.reviews import RegionKey, Review, append_review
from phrasebox.pipeline.dataset.validate import validate
from phrasebox.pipeline.evaluate.reviews import population_of, read_reviewed_regions
from phrasebox.pipeline.run.run import run
from phrasebox.pipeline.run.steps import build_steps
from phrasebox.stages.contract.errors import InputError, ResumeError
from tests.build.datasets import Json, copy_of, manifest_of, rows_of
from tests.build.files import read_json, write_json
from tests.messages import expect_error
from tests.pipeline import light
from tests.pipeline.commands.evaluated import called, printed
from tests.pipeline.export.datasets import exported
from tests.pipeline.light import assert_alike, ended
from tests.pipeline.viewer.conftest import serving


@pytest.fixture(scope="module")
def halves(scenes_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The ground truth of the scenes in two halves: every second annotation, and the others."""
    folder = tmp_path_factory.mktemp("halves")
    truth = read_json(scenes_folder / "truth.json")
    named = [one for one in truth["annotations"] if one.get("mentioned", True)]
    phrases = sorted({(one["image_id"], one["phrase"]) for one in named})
    answered = set(phrases[::2])
    parts = []
    for number in (0, 1):
        kept = [one for one in named if ((one["image_id"], one["phrase"]) in answered) == (number == 0)]
        parts.append(write_json(folder / f"{number}.json", {**truth, "annotations": kept}))
    return parts[0], parts[1]


def values_of(scenes_config: Json, truth: Path, out: Path, **more: Any) -> Json:
    source = {"kind": "boxes", "truth": str(truth), "add_missing": True}
    return {**scenes_config, "source": source, "output": {"path": str(out), "rows_per_file": 5}, **more}


@pytest.fixture(scope="module")
def mixed(scenes_config: Json, halves: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Only to be read."""
    out = tmp_path_factory.mktemp("mixed") / "dataset"
    return run(RunConfig.model_validate(values_of(scenes_config, halves[0], out)))


def key_of(region: Json) -> tuple[Any, ...]:
    return (region["phrase"], region["caption_index"], *region["span"])


def test_boxes_of_the_input_and_those_of_a_run_without_them(
    mixed: Path, inline_dataset: Path, halves: tuple[Path, Path]
) -> None:
    """A row for each image. A phrase has the one or the other, and a box is where the file has it."""
    assert [*validate(mixed)] == []
    truth = read_json(halves[0])
    boxes = {tuple(np.float32(one["bbox"]).tolist()) for one in truth["annotations"]}
    rows, plain_rows = rows_of(mixed), rows_of(inline_dataset)
    assert [row["sample_id"] for row in rows] == [row["sample_id"] for row in plain_rows]
    counts = {"given": 0, "made": 0}
    for row, plain in zip(rows, plain_rows, strict=True):
        own = [region for region in row["annotations"] if region["bbox_of"] == "given"]
        made = [region for region in row["annotations"] if region["bbox_of"] != "given"]
        assert {tuple(region["bbox"]) for region in own} <= boxes
        assert {region["score"] for region in own} <= {1.0}
        assert not {*map(key_of, own)} & {*map(key_of, made)}
        same = [region for region in plain["annotations"] if key_of(region) in {*map(key_of, made)}]
        ignored = {"id", "group"}
        assert [{k: v for k, v in region.items() if k not in ignored} for region in made] == [
            {k: v for k, v in region.items() if k not in ignored} for region in same
        ]
        assert [entry["phrase"] for entry in row["heat_maps"]] == [
            entry["phrase"] for entry in plain["heat_maps"]
        ]
        counts["given"] += len(own)
        counts["made"] += len(made)
    assert min(counts.values()) > 12


def test_the_dataset_says_where_its_boxes_are_from(mixed: Path) -> None:
    card = (mixed / "README.md").read_text("utf-8").replace("\n", " ")
    assert "a box of the input, unchanged" in card
    assert "heat map per phrase" in card
    croissant = read_json(mixed / "croissant.json")
    protocol = croissant["rai:dataAnnotationProtocol"]
    assert "boxes of the input for the phrases that they answer" in protocol
    assert "No person" not in protocol
    manifest = manifest_of(mixed)
    assert manifest["config"]["source"]["add_missing"] is True
    assert manifest["config"]["output"]["heat_maps"] is True
    assert manifest["model_fingerprint"]


def test_eval_stats_and_exports_take_both(mixed: Path, halves: tuple[Path, Path], tmp_path: Path) -> None:
    """What was given is right by the file that it is from. Exports hold it with the others."""
    figures = json.loads(printed("eval", mixed, "--truth", halves[0], "--json"))
    assert figures["metrics"]["box_recall"]["value"] == 1
    figures = json.loads(printed("eval", mixed, "--truth", halves[1], "--json"))
    assert 0.5 < figures["metrics"]["box_recall"]["value"] < 1
    regions = sum(len(row["annotations"]) for row in rows_of(mixed))
    stats = json.loads(printed("stats", mixed, "--json"))
    out, report = exported("coco", mixed, tmp_path / "coco", per="phrase")
    entries = read_json(out / "annotations" / "instances_train.json")["annotations"]
    assert report.regions.total() == regions == len(entries)
    own = [entry for entry in entries if entry.get("bbox_of") == "given"]
    assert 0 < len(own) == stats["given"] < stats["regions"] == regions
    assert f"with a box of the input │ {len(own):,}" in " ".join(printed("stats", mixed).split())
    out, _ = exported("coco", mixed, tmp_path / "own", per="phrase", where="bbox_of = 'given'")
    assert len(read_json(out / "annotations" / "instances_train.json")["annotations"]) == len(own)


def test_the_viewer_shows_both_and_the_maps(mixed: Path, tmp_path: Path) -> None:
    rows = rows_of(mixed)
    number = next(
        number
        for number, row in enumerate(rows)
        if {region["bbox_of"] == "given" for region in row["annotations"]} == {True, False}
    )
    with serving(copy_of(mixed, tmp_path)) as served:

        def content_of(path: str) -> bytes:
            with urllib.request.urlopen(served.url + path) as answer:
                content: bytes = answer.read()
                return content

        page = content_of(f"/sample/{rows[number]['id']}").decode()
        for region in rows[number]["annotations"]:
            assert f"{region['phrase']} {region['score']:.2f}" in page
        assert content_of(f"/rows/{number}/heat/0.png").startswith(b"\x89PNG")


def test_nobody_is_asked_about_boxes_of_the_input(mixed: Path, tmp_path: Path) -> None:
    """An answer about one counts for nothing."""
    copy = copy_of(mixed, tmp_path)
    annotations = [region for row in rows_of(copy) for region in row["annotations"]]
    own = [region for region in annotations if region["bbox_of"] == "given"]
    population = population_of(open_dataset(copy))
    assert not {region["id"] for region in own} & {*population.ids.tolist()}
    assert len(population.ids) > 5
    append_review(copy, Review(**RegionKey.of(own[0])._asdict(), reviewer="ann", answer="right"))
    with expect_error(InputError):
        read_reviewed_regions(open_dataset(copy))
    made = next(region for region in annotations if region["bbox_of"] != "given")
    append_review(copy, Review(**RegionKey.of(made)._asdict(), reviewer="ann", answer="right"))
    assert read_reviewed_regions(open_dataset(copy)).counts["elsewhere"] == 1


@pytest.mark.slow
def test_a_killed_run_goes_on(
    mixed: Path, scenes_config: Json, halves: tuple[Path, Path], tmp_path: Path
) -> None:
    """And with boxes of another file it is another dataset."""
    values = values_of(scenes_config, halves[0], tmp_path / "out")
    run(RunConfig.model_validate({**values, "input": {**values["input"], "limit": 4}}))
    assert len(rows_of(tmp_path / "out")) == 4
    run(RunConfig.model_validate(values))
    assert_alike(light.rows_of(tmp_path / "out"), light.rows_of(mixed))
    other = values_of(scenes_config, halves[1], tmp_path / "out")
    with expect_error(ResumeError, key="output.path"):
        run(RunConfig.model_validate(other))


@pytest.mark.ray
@pytest.mark.slow
def test_on_ray_the_rows_are_the_same(
    mixed: Path, scenes_config: Json, halves: tuple[Path, Path], tmp_path: Path
) -> None:
    engine = {"kind": "ray", "explain_workers": 1, "cpu_workers": 1}
    config = RunConfig.model_validate(values_of(scenes_config, halves[0], tmp_path / "out", engine=engine))
    (tmp_path / "run.yaml").write_text(config.to_yaml())
    done = ended([sys.executable, "-m", "phrasebox", "run", tmp_path / "run.yaml"])
    assert done.returncode == 0, done.stderr
    assert_alike(light.rows_of(tmp_path / "out"), light.rows_of(mixed))


def test_the_option_of_the_command_line(
    mixed: Path, scenes_config: Json, halves: tuple[Path, Path], tmp_path: Path
) -> None:
    source = scenes_config["input"]
    arguments = ("run", source["path"], "--images", source["image_root"], "--model", "demo")
    boxes = ("--add-missing", "--set", f"source.truth={halves[0]}")
    printed(*arguments, *boxes, "--engine", "inline", "--out", tmp_path / "out")
    assert rows_of(tmp_path / "out") == rows_of(mixed)
    code, _, err = called(*arguments, "--add-missing", "--out", tmp_path / "alone")
    assert code == 2
    assert "source.truth: missing" in err, "the option chooses the source, which needs the boxes"


def test_a_file_that_is_not_there_is_noticed_before_any_work(scenes_config: Json, tmp_path: Path) -> None:
    values = values_of(scenes_config, tmp_path / "none.json", tmp_path / "out")
    with expect_error(InputError):
        run(RunConfig.model_validate(values))
    assert not (tmp_path / "out").exists()


def test_what_reads_the_maps_again_needs_no_boxes(
    mixed: Path, scenes_config: Json, halves: tuple[Path, Path], tmp_path: Path
) -> None:
    """The steps of the dataset are built where the file of boxes has gone."""
    moved = Path(shutil.copy(halves[0], tmp_path / "moved.json"))
    steps = build_steps(RunConfig.model_validate(values_of(scenes_config, moved, tmp_path / "out")))
    moved.unlink()
    assert steps.overlay is not None
    assert [stage.name for stage in steps.last_stages] == ["regions", "box_overlay"]
    assert build_steps(RunConfig.model_validate(values_of(scenes_config, moved, tmp_path / "out")))
