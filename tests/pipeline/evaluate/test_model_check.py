"""The check of a model, with models that know nothing, something and everything."""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from phrasebox.pipeline.config.run_config import RunConfig
from phrasebox.pipeline.demo.photographs import INPUT, TRUTH
from phrasebox.pipeline.evaluate.model_check import ModelCheck, check_model
from phrasebox.pipeline.run.steps import HeatMapSteps, build_steps
from phrasebox.stages.contract.masks import decode_mask
from phrasebox.stages.contract.records import HeatMap, Phrase, Record
from phrasebox.stages.contract.stage import Forwards, Stage
from phrasebox.stages.truth import read_truth
from phrasebox.stages.truth.ground_truth import TruthTarget
from tests.pipeline.evaluate.query_builders import mask_of
from tests.stages.model.saved import save_model

CELLS = 48
COUNT = len(read_truth(TRUTH).images)


class Informed(Stage):
    """Stands where the model does, and answers from the truth: the cosine of an own caption is high, and the heat of a
    phrase lies on its thing.

    Args:
        knows_captions: Without it every caption is as near to every photograph as the next.
        knows_places: Without it all heat is in the middle of the image.
    """

    name: ClassVar[str] = "explain"

    def __init__(self, *, knows_captions: bool = True, knows_places: bool = True) -> None:
        self.knows_captions = knows_captions
        self.knows_places = knows_places
        self.truth = read_truth(TRUTH)

    def take_forwards(self) -> Forwards:
        return Forwards(images=COUNT, device="cpu, 1 thread")

    def process(self, batch: Sequence[Record]) -> list[Record]:
        maps = [tuple(self.map_of(record, phrase) for phrase in record.phrases) for record in batch]
        return [
            replace(record, heat_maps=own, pixels=None) for record, own in zip(batch, maps, strict=True)
        ]

    def map_of(self, record: Record, phrase: Phrase) -> HeatMap:
        similarity = 0.2 + 0.1 * (self.knows_captions and phrase.text in record.sample.captions)
        values = np.zeros((CELLS, CELLS), np.float32)
        values[CELLS // 2 - 2 : CELLS // 2 + 2, CELLS // 2 - 2 : CELLS // 2 + 2] = 1
        image = self.truth.images[record.sample.image.file_name]
        target = next((each for each in image.targets if each.phrase == phrase.text), None)
        if self.knows_places and target is not None:
            values = cv2.resize(thing_mask(target, (image.height_px, image.width_px)), (CELLS, CELLS))
        return HeatMap(text=phrase.text, values=values, similarity=similarity)


def thing_mask(target: TruthTarget, size_hw: tuple[int, int]) -> NDArray[np.float32]:
    """1 where the thing is, 0 elsewhere."""
    mask = target.mask if target.mask is not None else mask_of(*target.boxes_xywh_px, size_hw=size_hw)
    return decode_mask(mask).astype(np.float32)


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> HeatMapSteps:
    """Of a tiny model with random weights."""
    _, model = save_model(tmp_path_factory.mktemp("tiny"))
    return build_steps(RunConfig.model_validate({"input": INPUT, "model": model}))


@pytest.fixture(scope="module")
def informed(steps: HeatMapSteps) -> ModelCheck:
    return check_model(replace(steps, model_stage=Informed()))


def test_a_model_that_knows_is_sane(informed: ModelCheck) -> None:
    figures = informed.measure()
    assert (figures.faults, figures.cautions) == ([], [])
    assert figures.image_to_caption == figures.caption_to_image == figures.photographs == COUNT
    assert 0 < figures.centre_hits < figures.phrases / 2
    assert figures.peaks > 0.85 * figures.phrases
    assert figures.heat_auc > 0.9
    assert 0.5 < figures.centre_auc < 0.7
    assert figures.others_gain.low > 0.2
    assert figures.box_recall > 0.7 > figures.centred_box_recall
    assert informed.images_per_s > 0


def test_random_weights_are_not_sane(steps: HeatMapSteps) -> None:
    check = check_model(steps)
    assert check.cosines.shape == (COUNT, COUNT)
    assert np.isfinite(check.cosines).all()
    assert any("which caption belongs to which photograph" in fault for fault in check.measure().faults)
    assert check.device.startswith("cpu")


def test_a_model_that_cannot_tell_captions_apart_is_not_sane(steps: HeatMapSteps) -> None:
    (fault,) = check_model(replace(steps, model_stage=Informed(knows_captions=False))).measure().faults
    assert f"0 of {2 * COUNT} are right" in fault


def test_a_model_that_points_at_the_middle_is_not_sane(steps: HeatMapSteps) -> None:
    figures = check_model(replace(steps, model_stage=Informed(knows_places=False))).measure()
    assert figures.peaks == figures.centre_hits
    peaks, boxes = figures.cautions
    assert f"{figures.peaks} of {figures.phrases}" in peaks
    assert "no better than one box in the middle of every photograph (recall " in boxes
    centre, phrase = figures.faults
    assert "no better on the objects than a spot in the middle" in centre
    assert "heat maps of other phrases lie as well" in phrase


def test_cosines_that_are_no_numbers_are_a_fault_and_both_directions_are_counted(
    informed: ModelCheck,
) -> None:
    broken = replace(informed, cosines=np.full((COUNT, COUNT), np.nan, np.float32)).measure()
    assert (broken.image_to_caption, broken.caption_to_image) == (0, 0)
    assert "no finite numbers" in broken.faults[0]
    # Photograph 0 is nearest to caption 1, which is still nearest to photograph 1.
    cosines = np.eye(COUNT, dtype=np.float32)
    cosines[0, 1] = 0.9
    cosines[0, 0] = 0.5
    figures = replace(informed, cosines=cosines).measure()
    assert (figures.image_to_caption, figures.caption_to_image) == (COUNT - 1, COUNT)
