"""One image for which the model gives no finite numbers, as 16 bits may overflow: its row says so."""

from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

from phrasebox.pipeline.calibrate import presence as presence_fit
from phrasebox.pipeline.calibrate import truth_fit
from phrasebox.pipeline.calibrate.truth_fit import write_calibration
from phrasebox.pipeline.demo.scenes import write_scenes
from phrasebox.pipeline.evaluate.evaluation import evaluate_dataset
from phrasebox.pipeline.evaluate.evaluation_set import open_evaluation_set
from phrasebox.stages.contract.errors import InputError
from phrasebox.stages.explain.grad_eclip import GradEclip
from phrasebox.stages.explain.maps import Maps
from phrasebox.stages.scores.score import read_calibration
from tests.build.datasets import manifest_of
from tests.messages import expect_error
from tests.pipeline.commands.evaluated import config_of, run_aloud
from tests.pipeline.light import rows_of

SCENES = 12


@pytest.fixture(scope="module", autouse=True)
def overflowing() -> Iterator[None]:
    """The embedding of an image of one colour is not finite."""
    maps_of = GradEclip.maps

    def maps(explainer: GradEclip, rgb: Tensor) -> Maps:
        maps = maps_of(explainer, rgb)
        with torch.no_grad():
            maps.embedding[rgb.float().std(dim=(1, 2, 3)) < 2] = torch.nan
        return maps

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GradEclip, "maps", maps)
        yield


def paint_over(path: Path) -> None:
    """Make an image of one colour of it."""
    with Image.open(path) as image:
        size = image.size
    Image.new("RGB", size, (90, 90, 90)).save(path)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    write_scenes(folder, SCENES, 43)
    paint_over(folder / "images" / "000003.jpg")
    return folder


@pytest.fixture(scope="module")
def made(scenes: Path) -> tuple[Path, str]:
    """A dataset, and what its run printed."""
    return run_aloud(config_of(scenes, scenes / "out"))


def test_the_row_says_so_and_the_image_decides_nothing(made: tuple[Path, str]) -> None:
    dataset, text = made
    assert f"by {SCENES - 1} captions of the" in text
    assert manifest_of(dataset)["run"]["outside_domain"] is None
    (row,) = [row for row in rows_of(dataset) if row["file_name"] == "000003.jpg"]
    assert row["phrase_count"] == len(row["warnings"]) > 0
    assert all(warning.endswith("its heat map is not finite") for warning in row["warnings"])
    assert row["absent"] == [], "nothing is known of its phrases"


def test_it_ends_neither_a_fit_nor_an_evaluation(
    made: tuple[Path, str], scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(truth_fit, "FEWEST_REGIONS", 1)
    monkeypatch.setattr(presence_fit, "FEWEST_PHRASES", 1)
    evaluation_set = open_evaluation_set(made[0], scenes / "truth.json")
    printed = StringIO()
    write_calibration(evaluation_set, tmp_path / "c.json", Console(file=printed, width=200))
    presence = read_calibration(tmp_path / "c.json").presence
    assert presence.images.count == SCENES - 1
    absent = evaluate_dataset(evaluation_set, Console(file=printed, width=200), ["absent"]).absent
    assert absent.by["presence"]["auc"].n > 0
    assert printed.getvalue().count("left out, because their embeddings are not finite: 1 image\n") == 2


def test_too_few_phrases_are_left_to_fit_presence_to(
    made: tuple[Path, str], scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in (scenes / "images").iterdir():
        paint_over(path)
    monkeypatch.setattr(presence_fit, "FEWEST_PHRASES", 1)
    evaluation_set = open_evaluation_set(made[0], scenes / "truth.json")
    with expect_error(InputError):
        write_calibration(evaluation_set, tmp_path / "c.json", Console(quiet=True))
    assert not (tmp_path / "c.json").exists()
