"""Presence that is fitted to captions alone: runs fit it to their first images."""

import random
from pathlib import Path
from typing import Any

import pytest

from phrasebox.pipeline.config.run_config import RunConfig
from phrasebox.pipeline.dataset.validate import validate
from phrasebox.pipeline.demo.scenes import write_scenes
from phrasebox.pipeline.evaluate.evaluation import evaluate_dataset
from phrasebox.pipeline.evaluate.evaluation_set import open_evaluation_set
from phrasebox.pipeline.output.dataset_folder import DatasetFolder
from phrasebox.pipeline.run import presence_fit
from phrasebox.pipeline.run.presence_fit import draw_foreign_phrases
from phrasebox.pipeline.run.run import run
from phrasebox.pipeline.run.source import CutHeatMaps
from phrasebox.pipeline.run.steps import build_steps
from phrasebox.stages.contract.errors import ConfigError, ResumeError
from phrasebox.stages.contract.records import Phrase, Record, Sample
from phrasebox.stages.model.load import load
from tests.build.datasets import manifest_of
from tests.build.files import read_json, read_lines, write_lines
from tests.messages import expect_error
from tests.pipeline.commands.evaluated import QUIET, called, config_of, printed, run_aloud
from tests.pipeline.light import assert_alike, rows_of


def record_of(number: int, *said: tuple[str, str]) -> Record:
    """An image whose caption is its phrases, each with its head."""
    phrases = [Phrase(text=text, head=head, caption_index=0, start=0, end=1) for text, head in said]
    sample = Sample(sample_id=str(number), source="", captions=(" and ".join(text for text, _ in said),))
    return Record(sample=sample, phrases=tuple(phrases))


def test_phrases_of_other_images_name_no_thing_of_the_captions() -> None:
    named = [["one man", "red car"], ["tall person", "red hat"], ["old boat", "small dog"], ["green tree"]]
    records = [
        record_of(number, *((text, text.split()[1]) for text in texts))
        for number, texts in enumerate(named, start=1)
    ]
    pool = [(record.sample.id, phrase) for record in records for phrase in record.phrases]
    first, again = ({phrase.text for phrase in draw_foreign_phrases(records[0], pool, 3)} for _ in range(2))
    assert first == again
    assert first == {"old boat", "small dog", "green tree"}, (
        "a person may be the man, and the hat is red, too"
    )


@pytest.fixture(scope="module")
def few() -> Any:
    """As if fewer images sufficed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(presence_fit, "FEWEST_IMAGES", 10)
        patch.setattr(presence_fit, "LEAST_LOOK", 24)
        patch.setattr(presence_fit, "FEWEST_PHRASES", 20)
        yield


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes with a caption of their own, and one of another scene."""
    folder = tmp_path_factory.mktemp("drawn")
    write_scenes(folder, 24, 43)
    rows = read_lines(folder / "captions.jsonl")
    captions = [row.pop("caption") for row in rows]
    others = [*captions[1:], captions[0]]
    write_lines(
        folder / "captions.jsonl",
        [{**row, "captions": pair} for *pair, row in zip(captions, others, rows, strict=True)],
    )
    return folder


def uncalibrated(scenes: Path, out: Path, **more: Any) -> RunConfig:
    """Settings that the model has no calibration for."""
    output = {"path": str(out), "rows_per_file": 8}
    return config_of(scenes, **{"explain": {"blocks": 1}, "output": output, **more})


def made(config: RunConfig) -> str:
    """Run; return what was printed."""
    return run_aloud(config)[1]


@pytest.fixture(scope="module")
def whole(few: None, scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("whole") / "out"
    return out, made(uncalibrated(scenes, out))


def test_a_run_without_a_calibration_fits_presence_to_its_first_images(whole, scenes) -> None:
    out, text = whole
    assert "presence was fitted to the captions of 24 images, without annotations" in text
    assert "Scores are not calibrated" in text
    assert "Presence, by which they are multiplied, was fitted to the captions of 24 images" in text
    card = (out / "README.md").read_text()
    assert "was fitted to the captions of 24 images, without annotations" in card
    assert "only ranks" in card
    assert manifest_of(out)["calibration"] is None
    assert list(validate(out)) == []
    regions = [region for row in rows_of(out) for region in row["annotations"]]
    assert all(region["score"] <= region["presence"] for region in regions)
    figures = evaluate_dataset(open_evaluation_set(out, scenes / "truth.json"), QUIET, ["absent"])
    assert figures.absent.by["presence"]["auc"].value > 0.85
    assert "of the phrases name nothing in their image" in printed("stats", out)


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_with_its_fit(few, whole, scenes, tmp_path, monkeypatch) -> None:
    config = uncalibrated(scenes, tmp_path / "out")

    store_decisions = DatasetFolder.store_decisions

    def stop(*arguments: Any) -> None:
        store_decisions(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(DatasetFolder, "store_decisions", stop)
        with pytest.raises(KeyboardInterrupt):
            run(config, QUIET)
    kept = (tmp_path / "out" / "presence.json").read_bytes()
    monkeypatch.setattr(CutHeatMaps, "decide", None)  # nothing is decided again
    (tmp_path / "out" / "presence.json").write_bytes(kept + b" ")
    with expect_error(ResumeError):
        run(config, QUIET)
    (tmp_path / "out" / "presence.json").write_bytes(kept)
    run(config, QUIET)
    assert kept == (whole[0] / "presence.json").read_bytes()
    assert_alike(rows_of(tmp_path / "out"), rows_of(whole[0]))
    assert manifest_of(tmp_path / "out")["stages"].keys() == {"phrases", "regions"}, "all maps were kept"


@pytest.mark.slow
def test_nothing_is_computed_twice(few: None, scenes: Path, tmp_path: Path, monkeypatch) -> None:
    """The maps that presence is fitted to become rows, and the model is loaded once."""
    loaded: list[Any] = []
    monkeypatch.setattr(
        "phrasebox.stages.model.load.load",
        lambda *args, **options: loaded.append(load(*args, **options)) or loaded[-1],
    )
    monkeypatch.setattr(presence_fit, "LEAST_LOOK", 16)
    explain = {"blocks": 1, "contrast": 0.5}
    text = made(uncalibrated(scenes, tmp_path / "out", explain=explain))
    assert "presence was fitted to the captions of 16 images" in text
    assert len(loaded) == 1
    manifest = manifest_of(tmp_path / "out")
    share = manifest["run"]["absent_share"]
    assert manifest["config"]["regions"]["absent_share"] == share
    assert f" of the first images (regions.absent_share: {share})" in text
    assert {stage["records"] for stage in manifest["stages"].values()} == {24}
    assert manifest["stages"]["explain"]["images"] == 24
    decided = {"absent_share": share, "exponent": manifest["run"]["exponent"]}
    part = {"calibration": str(tmp_path / "out" / "presence.json"), **decided}
    made(uncalibrated(scenes, tmp_path / "again", explain=explain, regions=part))
    assert_alike(rows_of(tmp_path / "out"), rows_of(tmp_path / "again"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")  # Ray makes its own context
def test_ray_fits_in_a_worker(few: None, whole: tuple[Path, str], scenes: Path, tmp_path: Path) -> None:
    """Constants of this process do not reach it: it says that there are too few images."""
    config = uncalibrated(scenes, tmp_path / "out", engine={"kind": "ray", "explain_workers": 1})
    assert "presence is not known: 24 images with" in made(config)
    assert [row["absent"] for row in rows_of(tmp_path / "out")] == [[]] * 24


@pytest.mark.slow
def test_a_run_says_why_it_goes_on_without_presence(few: None, scenes: Path, tmp_path) -> None:
    lines = read_lines(scenes / "captions.jsonl")
    captions = [line["captions"] for line in lines]
    random.Random(1).shuffle(captions)
    mixed = [{**line, "captions": said} for line, said in zip(lines, captions, strict=True)]
    write_lines(tmp_path / "captions.jsonl", mixed)
    (tmp_path / "images").symlink_to(scenes / "images")
    text = made(uncalibrated(tmp_path, tmp_path / "mixed", regions={"exponent": 1.0}))
    assert "presence is not known: captions fit their images hardly better than those of others" in text
    none = uncalibrated(tmp_path, tmp_path / "none", regions={"calibration": "none"})
    assert "presence" not in made(none)
    assert_alike(rows_of(tmp_path / "mixed"), rows_of(tmp_path / "none"))
    assert not (tmp_path / "mixed" / "presence.json").exists()


def test_calibrate_without_truth_fits_presence_alone(few, whole, scenes, tmp_path, monkeypatch) -> None:
    file = tmp_path / "c.json"
    text = printed("calibrate", whole[0], "--out", file)
    assert "The calibration knows presence alone: scores of regions still rank" in text
    known = read_json(file)
    assert known["made_from"]["annotations"] == "none"
    assert known["made_from"]["images"] == 24
    precision = manifest_of(whole[0])["config"]["model"]["precision"]
    assert known["made_from"]["precisions"] == [precision]
    # Where maps are cut does not matter for it, and which maps are made does.
    other = {"calibration": str(file), "rule": "mean"}
    steps = build_steps(uncalibrated(scenes, tmp_path / "out", regions=other))
    assert not steps.is_calibrated
    assert steps.model_stage.presence is not None
    with expect_error(ConfigError, key="regions.calibration"):
        build_steps(uncalibrated(scenes, tmp_path / "out", regions=other, explain={"blocks": 2}))
    monkeypatch.setattr(presence_fit, "FEWEST_PHRASES", 100_000)
    for options, message in (
        (["--resized"], "without it there is nothing to fit but presence"),
        ([], "are too few"),
    ):
        assert message in called("calibrate", whole[0], "--out", file, *options)[2]
