"""Files that released and earlier versions have stored are read: see `stored/README.md`."""

import re
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from phrasebox.pipeline import __version__
from phrasebox.pipeline.config.run_config import RunConfig
from phrasebox.pipeline.dataset.folder import open_dataset
from phrasebox.pipeline.dataset.marks import Mark, read_marks
from phrasebox.pipeline.dataset.reviews import Review, find_regions, read_reviews
from phrasebox.pipeline.dataset.signature import is_own
from phrasebox.pipeline.dataset.validate import validate
from phrasebox.pipeline.output.merge import merge
from phrasebox.pipeline.run.run import run
from phrasebox.stages.contract.errors import InputError
from phrasebox.stages.contract.schema_versions import MANIFEST
from phrasebox.stages.contract.versions import StoredFormat
from phrasebox.stages.scores.calibration_versions import CALIBRATION
from phrasebox.stages.scores.score import read_calibration
from tests.build.datasets import Json, change_manifest, copy_of, manifest_of
from tests.build.files import read_json, read_lines
from tests.build.readings import draw_images, read_everywhere

STORED = Path(__file__).with_name("stored")
RELEASES = sorted(path.name for path in STORED.iterdir() if path.is_dir())

BELL = (617213839248157, "white bell", (246.0, 27.0, 104.0, 99.0))
BALL = (1323573947109715, "blue ball", (276.0, 1.0, 71.0, 63.0))
CANDLE = (143445777875383, "red candle", (198.0, 191.0, 42.0, 57.0))


def versions_in(release: str) -> dict[str, set[int]]:
    """Name of a stored format -> its versions in the files of a release."""
    folder = STORED / release
    return {
        "dataset": {manifest_of(folder / "dataset")["schema_version"]},
        "calibration": {int(re.sub(r"\D", "", read_json(folder / "calibration.json")["format"]))},
        "reviews": {line["version"] for line in read_lines(folder / "dataset" / "reviews.jsonl")},
        "marks": {line["version"] for line in read_lines(folder / "dataset" / "marks.jsonl")},
    }


@pytest.mark.parametrize(
    ("name", "stored_format"),
    [
        ("dataset", MANIFEST),
        ("calibration", CALIBRATION),
        ("reviews", Review.form),
        ("marks", Mark.form),
    ],
)
def test_files_of_every_version_that_is_read_are_here(name: str, stored_format: StoredFormat[Any]) -> None:
    """Whoever raises a version adds a file of it, and whoever drops one sees that it was promised."""
    stored = set(chain.from_iterable(versions_in(release)[name] for release in RELEASES))
    assert stored == set(range(stored_format.oldest, stored_format.current + 1))


@pytest.mark.parametrize("release", RELEASES)
def test_a_dataset_is_read_by_all_that_reads_one(release: str, tmp_path: Path) -> None:
    folder = copy_of(STORED / release / "dataset", tmp_path)
    assert not is_own(open_dataset(folder).run), "it was made on another machine"
    reading = read_everywhere(folder, draw_images(tmp_path / "images", folder), tmp_path / "coco")
    assert reading["problems"] == []
    assert [(row["sample_id"], row["error"]) for row in reading["rows"]] == [
        ("scene-7-000000", None),
        ("scene-7-000001", None),
        ("scene-7-000002", None),
        ("scene-7-000003", None),
        ("gone", "missing_image"),
    ]
    regions = {region["phrase"]: region for region in reading["rows"][0]["annotations"]}
    assert [*regions] == ["star", "white bell", "blue bell", "blue ball"]
    assert regions["white bell"]["bbox"] == [246.0, 27.0, 104.0, 99.0]
    assert regions["white bell"]["score"] == pytest.approx(0.865345)
    assert [entry["phrase"] for entry in reading["rows"][2]["absent"]] == ["yellow bus", "brown bear"]
    assert reading["statistics"]["marks"] == {"good": 1, "bad": 1}
    assert len(reading["export"]["annotations"]) == 10, "one of eleven is deleted"
    assert max(chain.from_iterable(reading["heat maps"][0]["white bell"])) == 255.0


@pytest.mark.parametrize("release", RELEASES)
def test_answers_and_marks_of_people_are_read(release: str) -> None:
    folder = STORED / release / "dataset"
    reviews = read_reviews(folder)
    assert reviews.unreadable_lines == 0
    assert reviews.majority_answers() == {BELL: "right", BALL: "wrong"}
    assert {key: (one.action, one.box_xywh_px) for key, one in reviews.corrections.items()} == {
        BALL: ("box", (10.0, 20.0, 40.0, 30.0)),
        CANDLE: ("delete", None),
    }
    assert {*find_regions(open_dataset(folder), {*reviews.answers, *reviews.corrections}, ["score"])} == {
        BELL,
        BALL,
        CANDLE,
    }
    assert read_marks(folder) == {"scene-7-000000": "good", "scene-7-000002": "bad"}


@pytest.mark.parametrize("release", RELEASES)
def test_a_run_takes_a_calibration(release: str, scenes_config: Json, tmp_path: Path) -> None:
    """A version that changes the defaults, or the bundled model, gives those of the calibration here."""
    path = STORED / release / "calibration.json"
    calibration = read_calibration(path)
    assert calibration.bias == pytest.approx(2.44715)
    assert calibration.presence is not None
    config = {
        **scenes_config,
        "input": {**scenes_config["input"], "limit": 2},
        "regions": {"calibration": str(path)},
        "output": {"path": str(tmp_path / "out")},
    }
    dataset = run(RunConfig.model_validate(config), Console(quiet=True))
    assert manifest_of(dataset)["calibration"] == calibration.digest


@pytest.mark.parametrize("release", RELEASES)
def test_a_dataset_is_merged_with_one_of_today(release: str, scenes_config: Json, tmp_path: Path) -> None:
    """As two parts of an input, if they are of one minor version; otherwise their rows may differ."""
    stored = copy_of(STORED / release / "dataset", tmp_path / "stored")
    config = {
        **scenes_config,
        "input": {**scenes_config["input"], "limit": 4, "part": "2/2"},
        "output": {"path": str(tmp_path / "fresh"), "heat_maps": True},
    }
    fresh = run(RunConfig.model_validate(config), Console(quiet=True))
    change_manifest(stored, lambda manifest: manifest["config"]["input"].update(part="1/2"))
    versions = {key: manifest_of(fresh)["run"][key] for key in ("phrasebox_version", "schema_version")}
    # The input of both, and what else the rows of a part depend on.
    change_manifest(fresh, run={**manifest_of(stored)["run"], **versions})
    out = tmp_path / "out"
    if versions["schema_version"] != manifest_of(stored)["schema_version"]:
        with pytest.raises(InputError, match="schema_version: 1 there, 2 now"):
            merge([stored, fresh], out)
        return
    if release.partition("-")[0] != __version__.rpartition(".")[0]:
        with pytest.raises(InputError, match="make all parts with one version"):
            merge([stored, fresh], out)
        return
    merge([stored, fresh], out)
    assert [*validate(out)] == []
    rows, first, second = ([*open_dataset(folder).rows()] for folder in (out, stored, fresh))
    assert [*rows] == [*first, *second]
    assert len(second) == 2
    assert read_marks(out) == read_marks(stored)
    assert read_reviews(out) == read_reviews(stored)
