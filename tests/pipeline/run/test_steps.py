"""The order of the stages, and a step of somebody between explain and regions."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from phrasebox import RunConfig, run
from phrasebox.pipeline.demo.scenes import write_scenes
from phrasebox.pipeline.run.steps import Steps
from phrasebox.stages.contract.records import Record
from phrasebox.stages.contract.stage import Stage
from tests.pipeline.light import rows_of

SCENES = 6


class Marker(Stage):
    """Notes in the caption scores of records that they have been here."""

    name = "marker"

    def process(self, batch: Sequence[Record]) -> list[Record]:
        return [replace(record, caption_scores=(0.5,) * len(record.caption_scores)) for record in batch]


@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")  # Ray makes its own context
@pytest.mark.parametrize(
    ("calibration", "engine"),
    [
        ("auto", "inline"),
        ("none", "inline"),
        pytest.param("auto", "ray", marks=[pytest.mark.ray, pytest.mark.slow]),
    ],
)
def test_a_step_behind_the_model_gets_the_first_images_too(
    calibration: str, engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_scenes(tmp_path / "scenes", SCENES, seed=1)
    monkeypatch.setattr(Steps, "last_stages", property(lambda steps: (Marker(), steps.regions_stage)))
    config = {
        "input": {
            "path": str(tmp_path / "scenes/captions.jsonl"),
            "image_root": str(tmp_path / "scenes/images"),
        },
        "model": {"name": "demo"},
        "regions": {"calibration": calibration},
        "engine": {"kind": engine},
        "output": {"path": str(tmp_path / "out")},
    }
    run(RunConfig.model_validate(config))
    rows = rows_of(tmp_path / "out")
    assert len(rows) == SCENES
    assert {score for row in rows for score in row["caption_score"]} == {0.5}
