"""`phrasebox calibrate` for a detector's dataset, with answers whose probabilities are known.

The files are those of a real architecture with random weights. Its answers are simulated: the
log odds of a phrase's box are normal, higher for a phrase that is in the image.
"""

import json
import math
import shutil
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final
from zlib import crc32

import numpy as np
import pytest
from PIL import Image

from phrasebox.pipeline.calibrate.truth_fit import write_calibration
from phrasebox.pipeline.config.run_config import RunConfig
from phrasebox.pipeline.dataset.validate import validate
from phrasebox.pipeline.evaluate.evaluation_set import open_evaluation_set
from phrasebox.pipeline.run.run import run
from phrasebox.stages.contract.errors import ConfigError
from phrasebox.stages.model import detector
from phrasebox.stages.model.detector import DetectedBox, Detector, PromptedImage
from phrasebox.stages.scores.detected import BoxEvidence, DetectorPresence
from phrasebox.stages.scores.score import read_calibration
from tests.build.datasets import Json, manifest_of
from tests.build.files import read_json, read_lines, write_json, write_lines
from tests.messages import assert_message, expect_error
from tests.pipeline.commands.evaluated import QUIET, called, printed, run_aloud
from tests.pipeline.light import rows_of
from tests.pipeline.reviewer import review
from tests.stages.model.detectors import save_detector

NOUNS: Final = (
    "apple", "ball", "bed", "boat", "book", "bottle", "bridge", "bus", "cake", "camel", "car", "chair", "clock", "cow",
    "door", "duck", "fence", "fork", "goat", "guitar", "hat", "house", "kite", "lamp", "pizza", "shoe", "table", "tree",
)  # fmt: skip
SIDE: Final = 64  # of an image, in pixels
QUARTERS: Final = ((0, 0), (0.5, 0), (0, 0.5), (0.5, 0.5))  # the places of things, as shares of the image

MEAN: Final = 1.0  # of the log odds of a box whose phrase is in the image; else its negative
SPREAD: Final = 1.5
RIGHT: Final = (-1.0, 0.7)  # constant and slope of the log odds that such a box is right
LEAST: Final = 0.05  # the lowest score that counts


def logistic(odds: float) -> float:
    return 1 / (1 + math.exp(-odds))


def normal_share(value: float) -> float:
    """The share of standard normal numbers below a value."""
    return (1 + math.erf(value / math.sqrt(2))) / 2


def nouns_of(number: int) -> list[str]:
    """The things in an image, in the order of their quarters."""
    return np.random.default_rng(number).permutation(NOUNS)[: len(QUARTERS)].tolist()


class SimulatedDetector(Detector):
    """Knows an image by the colour of its first pixel."""

    def detect(
        self, images: Sequence[PromptedImage], min_score: float
    ) -> list[dict[str, list[DetectedBox]]]:
        return [dict(self._answers(image, min_score)) for image in images]

    def _answers(self, image: PromptedImage, min_score: float) -> Iterator[tuple[str, list[DetectedBox]]]:
        number = int(image.rgb[0, 0, 0]) * 256 + int(image.rgb[0, 0, 1])
        nouns = nouns_of(number)
        for text in image.most:
            rng = np.random.default_rng([number, crc32(text.encode())])
            place = nouns.index(text) if text in nouns else None
            odds = rng.normal(-MEAN if place is None else MEAN, SPREAD)
            is_right = place is not None and rng.random() < logistic(RIGHT[0] + RIGHT[1] * odds)
            x, y = QUARTERS[(place or 0) if is_right else (place or 0) - 1]
            box = DetectedBox(box_xyxy=(x, y, x + 0.5, y + 0.5), score=round(logistic(odds), 6))
            yield text, [box] if box.score >= min_score else []


class Pictures:
    """Captioned images in a folder, the detector of their runs, and the ground truth."""

    def __init__(self, folder: Path, numbers: range, model: Path, lies: float = 0.0) -> None:
        self.folder = folder
        self.model = model
        self.truth = folder / "truth.json"
        images: list[Json] = []
        annotations: list[Json] = []
        lines: list[str] = []
        for number in numbers:
            name = f"{number}.png"
            Image.new("RGB", (SIDE, SIDE), (number // 256, number % 256, 0)).save(folder / name)
            images.append({"id": number, "file_name": name, "width": SIDE, "height": SIDE})
            nouns = nouns_of(number)
            for noun, (x, y) in zip(nouns, QUARTERS, strict=True):
                box = [x * SIDE, y * SIDE, SIDE / 2, SIDE / 2]
                object_ = {"image_id": number, "category_id": 1, "iscrowd": 0, "bbox": box, "phrase": noun}
                annotations.append({"id": len(annotations) + 1, **object_})
            said = nouns_of(number + 10_000) if number % 100 < 100 * lies else nouns
            captions = [f"a {said[0]} and a {said[1]}", f"a {said[2]} and a {said[3]}"]
            lines.append(json.dumps({"image": name, "captions": captions}) + "\n")
        (folder / "captions.jsonl").write_text("".join(lines))
        categories = [{"id": 1, "name": "thing"}]
        write_json(self.truth, {"images": images, "annotations": annotations, "categories": categories})

    def config(self, out: Path, **regions: Any) -> RunConfig:
        images = {"path": str(self.folder / "captions.jsonl"), "image_root": str(self.folder)}
        values = {
            "input": {"kind": "jsonl", **images},
            "engine": {"kind": "inline"},
            "source": {"kind": "detector", "detector": str(self.model), "min_score": LEAST},
            "regions": regions,
            "output": {"path": str(out)},
        }
        return RunConfig.model_validate(values)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("owlv2")
    save_detector("owlv2", folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def simulated() -> Iterator[None]:
    """Each detector is loaded, and then simulated."""
    load = detector.load_detector

    @lru_cache(maxsize=1)
    def load_simulated(*arguments: str) -> Detector:
        loaded = load(*arguments)
        return SimulatedDetector(loaded._model, loaded._processor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detector, "load_detector", load_simulated)
        yield


@pytest.fixture(scope="module")
def pictures(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Pictures:
    return Pictures(tmp_path_factory.mktemp("fit"), range(400), model)


@pytest.fixture(scope="module")
def plain(pictures: Pictures, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset with the detector's own scores."""
    return run(pictures.config(tmp_path_factory.mktemp("runs") / "plain"), QUIET)


@pytest.fixture(scope="module")
def fitted(pictures: Pictures, plain: Path) -> Path:
    """The calibration that is fitted to it."""
    write_calibration(open_evaluation_set(plain, pictures.truth), file := plain.parent / "c.json", QUIET)
    return file


ODDS: Final = (-1.0, 0.0, 1.0, 2.0, 3.0)


def evidence_of(odds: float) -> BoxEvidence:
    """A box of a quarter of the image."""
    return BoxEvidence(score=logistic(odds), area=0.25, rank=0, is_plural=False)


def prior_of(presence: DetectorPresence) -> float:
    """The log odds of a phrase of which nothing is known."""
    return math.log((1 - presence.absent_share) / presence.absent_share)


def assert_recovered(presence: DetectorPresence, within: float) -> None:
    """Presence is the probability that is simulated."""
    for odds in ODDS:
        likely = logistic(2 * MEAN * odds / SPREAD**2 + prior_of(presence))
        assert presence.probability([(None, evidence_of(odds))]) == pytest.approx(likely, abs=within)


def test_the_fit_recovers_the_probabilities_that_are_simulated(fitted: Path) -> None:
    calibration = read_calibration(fitted)
    presence = calibration.presence
    assert isinstance(presence, DetectorPresence)
    assert presence.absent_share == pytest.approx(0.5, abs=0.02)
    assert_recovered(presence, 0.06)
    for odds in ODDS:
        wanted = logistic(RIGHT[0] + RIGHT[1] * odds)
        assert calibration.probability(evidence_of(odds)) == pytest.approx(wanted, abs=0.06)
    prior = prior_of(presence)
    lowest = math.log(LEAST / (1 - LEAST))
    present, absent = (normal_share((lowest - mean) / SPREAD) for mean in (MEAN, -MEAN))
    expected = present / (present + absent * math.exp(-prior))
    assert presence.probability([]) == pytest.approx(expected, abs=0.06)


@pytest.fixture(scope="module")
def others(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Pictures:
    """Other images, half of which have captions of others."""
    return Pictures(tmp_path_factory.mktemp("others"), range(1000, 1200), model, lies=0.5)


def test_scores_of_other_images_are_probabilities_and_lies_are_absent(others, fitted, tmp_path) -> None:
    same = {"calibration": str(fitted), "absent_share": 0.5}
    ungated, text = run_aloud(others.config(tmp_path / "ungated", **same, min_presence=None))
    assert "Scores are calibrated" in text
    truth = read_json(others.truth)
    objects = {
        (object_["image_id"], object_["phrase"]): object_["bbox"] for object_ in truth["annotations"]
    }
    rows = [(int(Path(row["file_name"]).stem), row) for row in rows_of(ungated)]
    judged = [
        (region["score"], objects.get((image, region["phrase"])) == region["bbox"])
        for image, row in rows
        for region in row["annotations"]
    ]
    assert len(judged) > 400
    for low, high in ((0.0, 0.1), (0.1, 0.3), (0.3, 1.0)):
        scores, right = np.array([pair for pair in judged if low <= pair[0] < high]).T
        assert scores.mean() == pytest.approx(right.mean(), abs=0.08)
    gated = run(others.config(tmp_path / "gated", **same), QUIET)
    assert [*validate(gated)] == []
    shares = dict.fromkeys((True, False), 0.0)
    for row in rows_of(gated):
        is_foreign = int(Path(row["file_name"]).stem) % 100 < 50
        shares[is_foreign] += len({entry["phrase"] for entry in row["absent"]}) / 400
        assert all(entry["presence"] < 0.5 for entry in row["absent"])
        assert all(region["presence"] >= max(0.5, region["score"]) for region in row["annotations"])
    assert shares[True] == pytest.approx(normal_share(MEAN / SPREAD), abs=0.08)
    assert shares[False] == pytest.approx(normal_share(-MEAN / SPREAD), abs=0.08)
    assert manifest_of(gated)["calibration"] == read_calibration(fitted).digest
    assert "calibrated on 400 images" in (gated / "README.md").read_text().replace("\n", " ")


@pytest.mark.slow
def test_a_dataset_whose_captions_are_all_foreign_can_be_used_again(
    model: Path, fitted: Path, tmp_path: Path
) -> None:
    """Its estimated share of absent phrases is the most that a setting may say."""
    (tmp_path / "images").mkdir()
    others = Pictures(tmp_path / "images", range(2000, 2100), model)
    lines = read_lines(others.folder / "captions.jsonl")
    for line in lines:
        absent = [noun for noun in NOUNS if noun not in nouns_of(int(Path(line["image"]).stem))]
        said = (absent[start : start + 12] for start in range(0, 10, 2))
        line["captions"] = [", ".join(f"a {noun}" for noun in nouns) for nouns in said]
    write_lines(others.folder / "captions.jsonl", lines)
    dataset, text = run_aloud(others.config(tmp_path / "out", calibration=str(fitted)))
    assert "an estimated 99% of the phrases are not in their images, by 500 captions of the first" in text
    assert open_evaluation_set(dataset, others.truth).config().regions.absent_share == 0.99


@pytest.mark.slow
def test_a_calibrated_dataset_gives_the_same_fit(pictures: Pictures, fitted: Path, tmp_path: Path) -> None:
    """Its rows hold other scores than the detector's, and none for phrases that are absent."""
    dataset = run(pictures.config(tmp_path / "again", calibration=str(fitted), absent_share=0.5), QUIET)
    figures = write_calibration(open_evaluation_set(dataset, pictures.truth), tmp_path / "c.json", QUIET)
    assert (tmp_path / "c.json").read_text() == fitted.read_text()
    assert figures.replaces
    assert abs(figures.gain.value) < 0.01
    assert figures.presence["presence_auc"].value == pytest.approx(
        normal_share(2 * MEAN / SPREAD / 2**0.5), abs=0.05
    )


@pytest.mark.slow
def test_answers_of_people_correct_the_detectors_scores_and_then_the_calibration(
    pictures: Pictures, plain: Path, fitted: Path, tmp_path: Path
) -> None:
    """A phrase of the first dataset is always there, so that presence is not asked for."""
    dataset = Path(shutil.copytree(plain, tmp_path / "plain"))
    assert review(dataset, pictures.truth, 200) == 200
    out = printed("calibrate", dataset, "--reviews", "--out", tmp_path / "reviewed.json")
    assert "Verdict: use it: the mean squared error of the scores falls" in out
    calibration = read_calibration(tmp_path / "reviewed.json")
    assert calibration.made_with == read_calibration(fitted).made_with
    for odds in (0.0, 1.0, 2.0):
        wanted = logistic(RIGHT[0] + RIGHT[1] * odds)
        assert calibration.probability(evidence_of(odds)) == pytest.approx(wanted, abs=0.12)
    again, text = run_aloud(pictures.config(tmp_path / "again", calibration=str(fitted)))
    assert (
        "an estimated 5% or less of the phrases are not in their images, by 200 captions of the first"
        in text
    )
    review(again, pictures.truth, 60)
    out = printed("calibrate", again, "--reviews", "--out", tmp_path / "c.json")
    assert "keep the dataset's calibration" in out
    assert read_calibration(tmp_path / "c.json").presence.absent_share == 0.05


def test_one_sided_folds_are_refused_and_nothing_is_written(
    pictures: Pictures, plain: Path, tmp_path: Path
) -> None:
    """Regions that are wrong in a single image alone, and phrases that every image has."""
    truth = read_json(pictures.truth)
    regions = {
        (int(Path(row["file_name"]).stem), region["phrase"]): region["bbox"]
        for row in rows_of(plain)
        for region in row["annotations"]
    }
    for object_ in truth["annotations"]:
        if object_["image_id"] != 7:
            object_["bbox"] = regions.get((object_["image_id"], object_["phrase"]), object_["bbox"])
    write_json(tmp_path / "truth.json", truth)
    (tmp_path / "images").mkdir()
    alike = Pictures(tmp_path / "images", range(60), pictures.model)
    alike_truth = read_json(alike.truth)
    for object_ in alike_truth["annotations"]:
        object_["phrase"] = ("bed", "boat")[object_["id"] % 2]
    write_json(alike.truth, alike_truth)
    lines = [
        {**line, "captions": ["a bed and a boat"]} for line in read_lines(alike.folder / "captions.jsonl")
    ]
    write_lines(alike.folder / "captions.jsonl", lines)
    alike_dataset = run(alike.config(tmp_path / "alike"), QUIET)
    for dataset, right in ((plain, tmp_path / "truth.json"), (alike_dataset, alike.truth)):
        code, _, err = called("calibrate", dataset, "--truth", right, "--out", tmp_path / "c.json")
        assert code == 2
        assert_message(err)
        assert not (tmp_path / "c.json").exists()


CLIP: Final = {
    "bias": 0.0,
    "weight": {},
    "mean": {},
    "scale": {},
    "made_from": {},
    "made_with": {"model": "x:1"},
}


def test_a_calibration_of_heat_maps_another_detector_or_other_settings_is_refused(
    pictures, fitted: Path, tmp_path: Path
) -> None:
    write_json(tmp_path / "clip.json", {**read_json(fitted), **CLIP})
    save_detector("owlv2", tmp_path / "other", seed=1)
    for changes, file in (
        ({"min_score": 0.3, "precision": "bf16"}, fitted),
        ({"detector": str(tmp_path / "other")}, fitted),
        ({}, tmp_path / "clip.json"),
        ({"kind": "heat_maps"}, fitted),
    ):
        values = pictures.config(tmp_path / "out", calibration=str(file)).model_dump(mode="json")
        source = {**values["source"], **changes} if changes.get("kind") is None else changes
        values |= {"source": source, "model": {"name": "demo"}}
        with expect_error(ConfigError, key=("output.heat_maps", "regions.calibration")):
            run(RunConfig.model_validate(values), QUIET)


def test_given_boxes_cannot_be_calibrated(scenes_config: Json, tmp_path: Path) -> None:
    truth = Path(scenes_config["input"]["path"]).with_name("truth.json")
    source = {"kind": "boxes", "truth": str(truth)}
    values = {**scenes_config, "source": source, "output": {"path": str(tmp_path / "out")}}
    dataset = run(RunConfig.model_validate(values), QUIET)
    for arguments in ((), ("--truth", truth)):
        code, _, err = called("calibrate", dataset, "--out", tmp_path / "c.json", *arguments)
        assert code == 2
        assert_message(err)


@pytest.mark.slow
def test_without_annotations_presence_alone_is_fitted(
    pictures: Pictures, model: Path, tmp_path: Path
) -> None:
    """To captions of which a fifth are of other images."""
    (tmp_path / "images").mkdir()
    lying = Pictures(tmp_path / "images", range(2000, 2400), model, lies=0.2)
    dataset = run(lying.config(tmp_path / "plain"), QUIET)
    out = printed("calibrate", dataset, "--out", tmp_path / "p.json")
    assert "presence was fitted to the captions of 400 images" in out
    calibration = read_calibration(tmp_path / "p.json")
    assert calibration.made_from["absent_share"] == pytest.approx(0.2, abs=0.06)
    presence = calibration.presence
    assert isinstance(presence, DetectorPresence)
    assert_recovered(presence, 0.08)
    gated, text = run_aloud(
        lying.config(tmp_path / "gated", calibration=str(tmp_path / "p.json"), absent_share=0.5)
    )
    assert "Presence, by which they are multiplied, was fitted to the captions of 400 images" in text
    assert manifest_of(gated)["calibration"] is None
    review(gated, lying.truth, 80)
    printed("calibrate", gated, "--reviews", "--out", tmp_path / "c.json")
    assert read_calibration(tmp_path / "c.json").of_regions
