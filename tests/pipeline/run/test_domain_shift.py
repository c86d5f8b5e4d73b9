"""A calibration is used on pictures like those that it was fitted on, and on no others in silence."""

import json
import shutil
from contextlib import nullcontext
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from rich.console import Console

from phrasebox.pipeline.config.run_config import RunConfig
from phrasebox.pipeline.demo.photographs import INPUT
from phrasebox.pipeline.output.report import Report
from phrasebox.pipeline.run.decisions import Run, find_input, resolve
from phrasebox.pipeline.run.domain_shift import NOT_COMPARED, DomainShift
from phrasebox.pipeline.run.engines import inline
from phrasebox.pipeline.run.run import run
from phrasebox.pipeline.run.stage_calls import set_up
from phrasebox.pipeline.run.steps import build_steps
from phrasebox.pipeline.run.warm_up import FirstAnswers, compare_images
from phrasebox.stages.contract.errors import ConfigError
from phrasebox.stages.contract.score_threshold import ScoreRanking, useful_threshold
from phrasebox.stages.model.catalog import WEIGHTS_ROOT
from phrasebox.stages.scores.presence import Presence
from phrasebox.stages.scores.score import Calibration, calibration_of, read_calibration
from tests.build.datasets import Json, manifest_of
from tests.build.files import write_json
from tests.messages import expect_error
from tests.pipeline.commands.evaluated import config_of, drawing, run_aloud
from tests.pipeline.light import assert_alike, rows_of
from tests.pipeline.output.light_runs import resolved_by

CAPTIONS = (
    "a man in a grey coat walks along the street",
    "two children and their dog on the grass",
    "an old woman sells fish at the market",
    "a boat on the lake before the mountains",
)


drawn = drawing(24, 43)


@pytest.fixture(scope="module")
def clouds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures without outlines, and captions of photographs."""
    folder = tmp_path_factory.mktemp("clouds")
    (folder / "images").mkdir()
    rng = np.random.default_rng(5)
    lines = []
    for number in range(24):
        coarse = rng.integers(0, 256, (int(rng.integers(4, 12)), 12, 3), dtype=np.uint8)
        picture = cv2.resize(coarse, (320, 240), interpolation=cv2.INTER_CUBIC)
        assert cv2.imwrite(str(folder / "images" / f"{number}.png"), picture)
        lines.append(json.dumps({"image": f"{number}.png", "caption": CAPTIONS[number % 4]}) + "\n")
    (folder / "captions.jsonl").write_text("".join(lines))
    return folder


def resolved(config: RunConfig) -> Run:
    return resolve(find_input(config), "auto", lambda _: None)


def compared(run: Run) -> DomainShift | None:
    """How the first images of a run differ from those of its calibration."""
    with set_up((*run.steps.before, run.steps.model_stage)):
        return compare_images(run.steps, run.reader, run.pieces).shift


def finished(config: RunConfig) -> tuple[str, Any, list[Json]]:
    """The output of a run, its manifest and its rows."""
    dataset, text = run_aloud(config)
    return text, manifest_of(dataset), rows_of(dataset)


def test_drawn_scenes_are_what_the_demo_model_was_calibrated_on(drawn: Path, tmp_path: Path) -> None:
    printed, manifest, rows = finished(config_of(drawn, tmp_path / "out"))
    scores = [region["score"] for row in rows for region in row["annotations"]]
    threshold = useful_threshold(ScoreRanking.of(np.float32(scores)).table())
    assert threshold is not None
    assert (
        f"Scores are calibrated: on images like those of the fit, about {threshold.precision:.0%} of the regions with "
        f"a score of {threshold.score:.3f} or more are right; {threshold.share:.0%} of all regions here have it."
    ) in printed
    card = (tmp_path / "out" / "README.md").read_text()
    assert (
        "Scores are calibrated on 1499 images with the boxes of truth.json:\non images like those" in card
    )
    assert "The images" not in card
    assert manifest["calibration"] is not None


CLAUSE = "The images differ from those that the calibration was fitted to"


@pytest.fixture(scope="module")
def other(clouds: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, Any, list[Json]]:
    """A run over them: its folder, and what `finished` gives."""
    out = tmp_path_factory.mktemp("other") / "out"
    return out, *finished(config_of(clouds, output={"path": str(out), "rows_per_file": 8}))


@pytest.fixture(scope="module")
def uncalibrated(clouds: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Json]:
    """The rows of a run over them without a calibration."""
    return finished(config_of(clouds, tmp_path_factory.mktemp("none"), regions={"calibration": "none"}))[2]


def test_on_other_pictures_the_scores_rank_and_the_run_says_so(other, uncalibrated) -> None:
    out, printed, manifest, rows = other
    assert f"Scores are not calibrated: use them for ranking, not as probabilities. {CLAUSE}" in printed
    assert manifest["calibration"] is None
    assert "only ranks" in (out / "README.md").read_text()
    assert rows == uncalibrated


def test_a_run_that_is_resumed_keeps_what_was_decided(other, clouds, tmp_path, monkeypatch) -> None:
    """The first images may be gone by then, and leave no doubt."""
    out = Path(shutil.copytree(other[0], tmp_path / "out"))
    write_json(out / ".phrasebox/run.json", manifest_of(out)["run"])
    (out / "dataset.json").unlink()
    (out / "data/00002.parquet").unlink()
    monkeypatch.setattr("phrasebox.pipeline.run.source.warm_up", None)  # it is not repeated
    printed, manifest, rows = finished(config_of(clouds, output={"path": str(out), "rows_per_file": 8}))
    assert "resuming the run" in printed
    assert f"Scores are not calibrated: use them for ranking, not as probabilities. {CLAUSE}" in printed
    assert manifest["calibration"] is None
    assert rows == other[3]


def test_a_calibration_that_is_named_is_used_and_doubted(clouds, tmp_path, uncalibrated) -> None:
    own = build_steps(config_of(clouds, tmp_path)).calibration
    (tmp_path / "own.json").write_text(own.to_json())
    config = config_of(clouds, tmp_path / "out", regions={"calibration": str(tmp_path / "own.json")})
    printed, manifest, rows = finished(config)
    assert f"Scores are calibrated, but may be too high or too low here. {CLAUSE}" in printed
    assert CLAUSE in (tmp_path / "out" / "README.md").read_text()
    assert manifest["calibration"] is not None
    assert rows != uncalibrated


def test_pictures_of_other_things_leave_the_calibration_in_use_and_doubted(
    drawn: Path, tmp_path: Path
) -> None:
    """Scenes against a fit whose images lay closer together: their regions are as usual, what they show is not."""
    config = config_of(drawn, tmp_path / "out")
    usual = resolved(config)
    presence = usual.steps.model_stage.presence
    assert presence is not None
    images = presence.images.model_copy(update={"directions": 0.8 * presence.images.directions})
    closer = presence.model_copy(update={"images": images})
    steps = replace(usual.steps, model_stage=usual.steps.model_stage.with_presence(closer))
    other = replace(usual, steps=steps)
    outside = compared(other)
    assert outside is not None
    assert not outside.in_regions
    printed = StringIO()
    with resolved_by(lambda *_: other):
        dataset = run(config, Console(file=printed, width=300))
    text = printed.getvalue()
    assert "show other objects than those that the calibration was fitted to" in outside.what
    assert f"Scores are calibrated, but may be too high or too low here. {outside.what}." in text
    assert outside.measured not in text
    assert f"phrasebox inspect {tmp_path / 'out'} --review" in text
    assert "precision" not in text.partition("dataset in")[2], "no advice that rests on the scores"
    assert f" {outside.what}." in (dataset / "README.md").read_text()
    manifest = manifest_of(dataset)
    assert manifest["calibration"] is not None
    assert manifest["run"]["outside_domain"]["measured"] == outside.measured


def test_pictures_that_cannot_be_read_leave_no_doubt(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "broken.png").write_bytes(b"no picture")
    (tmp_path / "captions.jsonl").write_text(json.dumps({"image": "broken.png", "caption": "a dog"}) + "\n")
    assert compared(resolved(config_of(tmp_path, tmp_path / "out"))) is None


@pytest.mark.parametrize(
    ("made_from", "used", "doubted"),
    [
        ({}, "fp32", None),
        ({}, "bf16", "fp32"),  # a calibration that does not say it was fitted in fp32
        ({"precisions": ["bf16"]}, "fp16", "bf16"),
        ({"precisions": ["fp32", "fp16"]}, "fp16", None),
    ],
)
def test_a_calibration_of_another_precision_is_used_and_doubted(
    made_from: Json, used: str, doubted: str | None, drawn: Path, tmp_path: Path
) -> None:
    report = Report()
    usual = resolved(config_of(drawn, tmp_path / "out", model={"name": "demo", "precision": used}))
    calibration = bundled("demo", "guided").model_copy(update={"made_from": made_from})
    steps = usual.steps.with_calibration(calibration)
    run = replace(usual, steps=steps)
    other, _ = run.source.decide(run, FirstAnswers(precision=used), report)
    doubt = f"The calibration was fitted to maps in {doubted}, and model.precision is {used}"
    assert other.meaning.caveat == (doubt if doubted else None)
    assert (doubt in report.notes) == (doubted is not None)
    assert other.steps.is_calibrated, "it is used all the same"


FIVE: Json = {"captions": 5.0, "mentions": 2.4}
SINGLE: Json = {"captions": 1.0, "mentions": 1.0}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("captions", "doubt"),
    [
        ([FIVE], "The images have 1 caption on average, those that the calibration was fitted to 5"),
        ([SINGLE, FIVE], None),
        (
            [{**FIVE, "captions": 2.5}, FIVE],
            "The images have 1 caption on average, those that the calibration was fitted to 2.5 to 5",
        ),
        (
            [{**SINGLE, "mentions": 3.0}],
            "Captions name an object 1 times on average, those that the calibration was fitted to 3 times",
        ),
    ],
)
def test_captions_unlike_those_of_the_fit_are_doubted(
    captions: list[Json], doubt: str | None, drawn: Path, tmp_path: Path
) -> None:
    """Drawn scenes have one caption. The calibration is used all the same."""
    usual = resolved(config_of(drawn, tmp_path / "out"))
    steps = usual.steps.with_calibration(captioned(bundled("demo", "guided"), captions))
    outside = compared(replace(usual, steps=steps))
    assert (None if outside is None else outside.what) == doubt
    if outside is not None:
        assert not outside.in_regions
        assert outside.measured == "1.00 captions, and 1.00 mentions of an object, in 24 images"


@pytest.mark.slow
@pytest.mark.parametrize(("mean", "doubt"), [(0.2, "fewer"), (0.95, None)])
def test_an_older_calibration_tells_of_its_captions_by_its_evidence(
    mean: float, doubt: str | None, drawn: Path, tmp_path: Path
) -> None:
    """It does not say how many captions its images had, but which share of them names a thing."""
    older = captioned(bundled("demo", "guided"))
    means = {**older.mean, "of_thing_captions": mean}
    older = calibration_of(older.model_copy(update={"mean": means}).to_json(), "older.json")
    usual = resolved(config_of(drawn, tmp_path / "out"))
    outside = compared(replace(usual, steps=usual.steps.with_calibration(older)))
    assert (outside is not None) == (doubt is not None)
    if outside is not None:
        assert (
            outside.what
            == f"The images have {doubt} captions than those that the calibration was fitted to"
        )
        assert "of_thing_captions" in outside.measured


def test_a_run_says_that_its_captions_are_unlike_those_of_the_fit(drawn: Path, tmp_path: Path) -> None:
    file = tmp_path / "five.json"
    file.write_text(captioned(bundled("demo", "guided"), [FIVE]).to_json())
    config = config_of(drawn, tmp_path / "out", regions={"calibration": str(file)})
    text, manifest, _ = finished(config)
    doubt = "The images have 1 caption on average, those that the calibration was fitted to 5."
    assert f"Scores are calibrated, but may be too high or too low here. {doubt}" in text
    assert doubt in (tmp_path / "out" / "README.md").read_text()
    assert manifest["run"]["outside_domain"]["what"] == doubt.removesuffix(".")
    assert manifest["calibration"] is not None


@pytest.mark.slow
def test_captions_and_pictures_may_both_be_other_ones(drawn: Path, tmp_path: Path) -> None:
    usual = resolved(config_of(drawn, tmp_path / "out"))
    calibration = captioned(bundled("demo", "guided"), [FIVE])
    assert isinstance(calibration.presence, Presence)
    images = calibration.presence.images
    closer = images.model_copy(update={"directions": 0.8 * images.directions})
    presence = calibration.presence.model_copy(update={"images": closer})
    steps = usual.steps.with_calibration(calibration.model_copy(update={"presence": presence}))
    outside = compared(replace(usual, steps=steps))
    assert outside is not None
    assert "1 caption on average" in outside.what
    assert "show other objects" in outside.what


@pytest.mark.parametrize("captions", ["five", [{"captions": 5}], [{**FIVE, "mentions": "many"}]])
def test_a_calibration_that_garbles_its_captions_is_refused(captions: object) -> None:
    content = captioned(bundled("demo", "guided"), captions).to_json()
    with expect_error(ConfigError, key="regions.calibration"):
        calibration_of(content, "garbled.json")


def captioned(calibration: Calibration, captions: object = None) -> Calibration:
    """A calibration that says how the images of its fit were captioned; None: it does not say."""
    made_from = {key: value for key, value in calibration.made_from.items() if key != "captions"}
    said = {} if captions is None else {"captions": captions}
    return calibration.model_copy(update={"made_from": {**made_from, **said}})


def bundled(model: str, name: str) -> Calibration:
    return read_calibration(WEIGHTS_ROOT / model / f"calibration-{name}.json")


@pytest.mark.slow
@pytest.mark.parametrize(("instruction", "precision"), [("avx2", "fp32"), ("avx512_bf16", "bf16")])
def test_workers_decide_the_precision(instruction, precision, tmp_path, monkeypatch) -> None:
    """As on a cluster, about which the driver knows nothing; a resumed run takes the same."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {instruction: True}, raising=False)
    monkeypatch.setattr("phrasebox.pipeline.run.run.start_processes", lambda *_, **__: nullcontext())
    monkeypatch.setattr("phrasebox.pipeline.run.run.start_engine", inline.start)
    cluster = {"kind": "ray", "address": "elsewhere:6379"}

    def rows(out: str, **engine: str) -> list[Json]:
        output, few = {"path": str(tmp_path / out), "rows_per_file": 2}, {**INPUT, "limit": 4}
        values = {
            "input": few,
            "model": {"name": "photo", "device": "cpu"},
            "engine": engine,
            "output": output,
        }
        run(RunConfig.model_validate(values))
        manifest = manifest_of(tmp_path / out)
        assert manifest["config"]["model"]["precision"] == precision
        assert (
            manifest["calibration"] == manifest["run"]["calibration"] == bundled("photo", "photos").digest
        )
        return rows_of(tmp_path / out)

    wanted = rows("inline", kind="inline")
    assert_alike(rows("out", **cluster), wanted)
    (tmp_path / "out/data/00001.parquet").unlink()
    assert_alike(rows("out", **cluster), wanted)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")  # Ray makes its own context
@pytest.mark.parametrize("images", ["drawn", "clouds"])
def test_a_worker_of_ray_compares_and_its_maps_become_rows(images: str, request, tmp_path: Path) -> None:
    folder = request.getfixturevalue(images)
    _, plain, wanted = finished(config_of(folder, tmp_path / "inline"))
    engine = {"kind": "ray", "explain_workers": 1}
    _, manifest, rows = finished(config_of(folder, tmp_path / "ray", engine=engine))
    assert_alike(rows, wanted)
    assert manifest["calibration"] == plain["calibration"]
    assert manifest["run"]["outside_domain"] == plain["run"]["outside_domain"]
    assert manifest["stages"]["explain"]["records"] == 24


@pytest.mark.slow
def test_images_that_workers_died_over_are_not_compared(drawn: Path, tmp_path: Path, monkeypatch) -> None:
    """The calibration stays in use, and the run says what is not known."""
    monkeypatch.setattr(inline.InlineEngine, "compute_first", lambda *_: None)
    printed, manifest, _ = finished(config_of(drawn, tmp_path / "out"))
    assert printed.count(f"{NOT_COMPARED.what}\n") == 1
    assert f"may be too high or too low here. {NOT_COMPARED.what}." in printed
    assert manifest["calibration"] is not None
