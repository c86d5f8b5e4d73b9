"""`phrasebox calibrate` for boxes that CLIP names: score and presence."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from phrasebox.pipeline.calibrate.presence import features_by_text
from phrasebox.pipeline.dataset.validate import validate
from phrasebox.pipeline.demo.scenes import write_scenes
from phrasebox.stages.contract.masks import encode_box
from phrasebox.stages.contract.records import Phrase, Record, Region, Sample
from phrasebox.stages.regions.config import RegionsConfig
from phrasebox.stages.scores.detected import BoxFeatures, DetectorPresence
from phrasebox.stages.scores.score import Calibration, read_calibration
from phrasebox.stages.sources.source_stage import SourceRegionsStage
from tests.build.datasets import manifest_of
from tests.pipeline.commands.evaluated import printed
from tests.pipeline.light import rows_of

SIZE_HW = (40, 80)


def region(index: int, similarity: float) -> Region:
    box = (0, 0, 20, 20)
    return Region(
        phrase_index=index,
        box_xywh_px=box,
        mask=encode_box(box, SIZE_HW),
        area_px=400,
        score=0.5,
        similarity=similarity,
    )


RECORD = replace(
    Record.start(Sample(sample_id="1", source="1", captions=("a cat and a dog",))),
    width_px=SIZE_HW[1],
    height_px=SIZE_HW[0],
    phrases=(
        Phrase(text="cat", caption_index=0, start=2, end=5, head="cat"),
        Phrase(text="dog", caption_index=0, start=12, end=15, head="dog"),
        Phrase(text="old lorry", caption_index=0, start=0, end=0, head="lorry"),
    ),
    regions=(region(0, 0.3), region(2, 0.2)),
)


def test_what_no_caption_says_tells_nothing_of_the_captions() -> None:
    """It is no phrase to fit presence to, no evidence of a caption, and not listed as absent."""
    features = features_by_text(RECORD)
    assert features == {"cat": [1.0, 0.0, 0.3], "dog": [0.0, 0.0, 0.0]}
    weight = {"similarity": 1.0}
    presence = DetectorPresence(
        bias=-9.0, weight=weight, mean={"similarity": 0.0}, scale={"similarity": 1.0}, absent_share=0.5
    )
    calibration = Calibration(
        bias=0.0, weight={}, mean={}, scale={}, made_with={}, made_from={}, presence=presence
    )
    stage = SourceRegionsStage(RegionsConfig(absent_share=0.5), calibration)
    only_said = replace(RECORD, phrases=RECORD.phrases[:2], regions=RECORD.regions[:1])
    assert stage.caption_log_ratios(RECORD) == stage.caption_log_ratios(only_said) != {}
    [judged] = stage.process([RECORD])
    assert judged.regions == ()
    assert [entry.phrase_index for entry in judged.absent] == [0, 1]


def test_a_similarity_that_is_not_measured_has_no_weight() -> None:
    measured = np.array([[1.0, 0.5, 0.3], [0.0, 0.0, 0.0]])
    features = BoxFeatures.of(measured)
    assert features.names == ("has_box", "log_odds", "similarity")
    assert features.ranks.tolist() == [0.3, -np.inf]
    features = BoxFeatures.of(measured * [1, 1, 0])
    assert (features.names, features.values.shape) == (("has_box", "log_odds"), (2, 2))
    assert features.ranks.tolist() == [0.5, -np.inf]


@pytest.mark.slow  # three runs of 80 scenes
def test_scores_of_proposals_become_probabilities_and_foreign_phrases_absent(tmp_path: Path) -> None:
    write_scenes(tmp_path / "scenes", 80, seed=0)
    truth = tmp_path / "scenes" / "truth.json"
    arguments = (
        "run", tmp_path / "scenes" / "captions.jsonl", "--images", tmp_path / "scenes" / "images", "--model", "demo",
        "--set", "engine.kind=inline", "--set", "source.kind=proposals", "--set", "source.by=roi",
    )  # fmt: skip
    printed(*arguments, "--out", tmp_path / "plain")
    out = printed("calibrate", tmp_path / "plain", "--truth", truth, "--out", tmp_path / "c.json")
    assert "Verdict: use it." in out
    calibration = read_calibration(tmp_path / "c.json")
    assert isinstance(calibration.presence, DetectorPresence)
    assert calibration.presence.weight["similarity"] > 0
    assert "similarity" in calibration.weight
    text = printed(
        *arguments, "--out", tmp_path / "fitted", "--set", f"regions.calibration={tmp_path}/c.json"
    )
    assert "Scores are calibrated" in text
    assert [*validate(tmp_path / "fitted")] == []
    assert manifest_of(tmp_path / "fitted")["calibration"] == calibration.digest
    scores = [entry["score"] for row in rows_of(tmp_path / "fitted") for entry in row["annotations"]]
    assert np.mean(scores) < 0.3, "few proposals are right"
    out = printed("calibrate", tmp_path / "plain", "--out", tmp_path / "p.json")
    assert "presence was fitted to the captions of 80 images" in out
