"""Embeddings of regions on every kind of tower, and that a region's own place is what they show."""

import numpy as np
import pytest
import torch

from phrasebox.pipeline.research.score_model.probe import Embedder, Picture, Questions, questions_of
from phrasebox.stages.contract.errors import InputError
from phrasebox.stages.model.config import ModelConfig
from phrasebox.stages.model.load import from_open_clip
from phrasebox.stages.truth.ground_truth import TruthImage, TruthObject, TruthTarget
from tests.factories import TOWERS
from tests.messages import expect_error
from tests.stages.model.saved import load_model

HALF = (0.0, 0.0, 0.5, 1.0)


def picture(rgb: np.ndarray, *boxes: tuple[float, float, float, float]) -> Picture:
    questions = Questions(
        boxes_rel=np.array(boxes, np.float64).reshape(-1, 4),
        objects=(),
        candidates=np.arange(len(boxes)),
        phrases=(),
    )
    return Picture(rgb, questions)


@pytest.mark.parametrize("tower", TOWERS)
def test_every_kind_of_tower(tower: str) -> None:
    make, spec = TOWERS[tower]
    module = make()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    embedder = Embedder(from_open_clip(module, spec=spec), batch_images=4)
    side = spec.size_px
    noise = np.random.default_rng(0).integers(0, 256, (2, side, side, 3), np.uint8)
    pictures = [
        picture(noise[0], HALF, (0, 0, 1, 1)),
        picture(noise[1]),
        picture(noise[1], (0.25, 0.5, 1, 1)),
    ]
    embeddings = embedder.embed_pictures(pictures)
    assert [part.regions.shape for part in embeddings] == [
        (count, embedder.model.embed_dim) for count in (2, 0, 1)
    ]
    assert np.linalg.norm(embeddings[0].regions, axis=1) == pytest.approx(np.ones(2), abs=1e-5)
    (single,) = embedder.embed_pictures(pictures[2:])
    for values, wanted in zip(single, embeddings[2], strict=True):
        assert values == pytest.approx(wanted, abs=1e-5), "whatever its neighbours are"
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_texts_and_classes() -> None:
    embedder = Embedder(load_model(ModelConfig(name="demo")), ("a {}", "the {}"))
    plain = embedder.embed_texts(["a car", "the car"])
    (car,) = embedder.embed_classes(["car"])
    mean = plain.mean(axis=0)
    assert car == pytest.approx(mean / np.linalg.norm(mean), abs=1e-5)
    assert embedder.embed_texts([]).shape == (0, embedder.model.embed_dim)


SIZE_HW = (50, 100)


def object_(*box: float, category: str | None = "car") -> TruthObject:
    description = None if category is None else f"red {category}"
    return TruthObject(
        box_xywh_px=(box[0], box[1], box[2], box[3]), category=category, description=description, mask=None
    )


def image(
    *phrases: tuple[str, list[tuple[float, float, float, float]]], match: str = "phrase"
) -> TruthImage:
    targets = tuple(
        TruthTarget(phrase=text, boxes_xywh_px=tuple(boxes), match=match) for text, boxes in phrases
    )  # type: ignore[arg-type]
    return TruthImage(file_name="a.jpg", width_px=100, height_px=50, targets=targets)


LEFT = (0, 0, 50, 25)
RIGHT = (50, 0, 50, 25)
BELOW = (0, 25, 100, 25)


def test_things_come_first_and_boxes_of_phrases_which_categories_are_not_behind_them() -> None:
    objects = [object_(*LEFT), object_(*RIGHT, category="bus")]
    questions = questions_of(
        image(("a car", [LEFT]), ("the road", [BELOW])), objects, SIZE_HW, resized=False
    )
    assert [each.category for each in questions.objects] == ["car", "bus", None]
    assert [each.description for each in questions.objects] == ["red car", "red bus", None]
    assert questions.boxes_rel.tolist() == [[0, 0, 0.5, 0.5], [0.5, 0, 1, 0.5], [0, 0.5, 1, 1]]
    assert questions.candidates.tolist() == [0, 1, 2]
    assert questions.phrases == (("a car", (0,)), ("the road", (2,)))
    truth = image(("car", [LEFT]), match="category")
    questions = questions_of(truth, [object_(*LEFT), object_(*RIGHT)], SIZE_HW, resized=False)
    assert questions.phrases == ()
    assert len(questions.boxes_rel) == 2


def test_things_with_the_same_box_are_two_regions_and_one_candidate() -> None:
    objects = [object_(*LEFT), object_(*LEFT, category="bus"), object_(*RIGHT)]
    questions = questions_of(
        image(("cars", [LEFT, RIGHT]), ("right car", [RIGHT])), objects, SIZE_HW, resized=False
    )
    assert [each.category for each in questions.objects] == ["car", "bus", "car"]
    assert questions.candidates.tolist() == [0, 2]
    assert questions.phrases == (("right car", (1,)),), "a phrase that means every box asks nothing"


def test_boxes_end_with_the_image_whose_size_must_be_the_truths_unless_it_was_resized() -> None:
    objects = [object_(-10, -10, 20, 20), object_(100, 0, 10, 10), object_(90, 40, 30, 30)]
    questions = questions_of(image(("gone", [(100, 0, 10, 10)])), objects, SIZE_HW, resized=False)
    assert questions.boxes_rel.tolist() == [[0, 0, 0.1, 0.2], [0.9, 0.8, 1, 1]]
    assert questions.phrases == ()
    with expect_error(InputError):
        questions_of(image(), [object_(*LEFT)], (25, 50), resized=False)
    questions = questions_of(image(), [object_(*LEFT)], (25, 50), resized=True)
    assert questions.boxes_rel.tolist() == [[0, 0, 0.5, 0.5]]
