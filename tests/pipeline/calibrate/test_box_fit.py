"""Fitting boxes to images with known boxes: what can be learned is, and noise is not."""

import numpy as np

from phrasebox.pipeline.calibrate.box_fit import (
    FEWEST_IMAGES,
    BoxTrainer,
    PlacedObject,
    fit_networks,
    learn_boxes,
)
from phrasebox.stages.contract.errors import InputError
from phrasebox.stages.contract.levels import quantise
from phrasebox.stages.regions.ladder import ladders_of
from phrasebox.stages.scores.learned_box import FACTS, MapView
from tests.messages import expect_error


def objects_of(images: int, *, is_noise: bool) -> list[PlacedObject]:
    """Humps cut at half of their height; the things are twice as wide and high, or larger or smaller by chance."""
    rng = np.random.default_rng(0)
    grid = np.mgrid[:14, :14] + 0.5
    objects = []
    for image in range(images):
        centre = rng.uniform(5, 9, 2)
        width = rng.uniform(1.2, 2.2)
        levels = quantise(
            np.exp(-((grid - centre[:, None, None]) ** 2).sum(0) / (2 * width**2)).astype(np.float32)
        )
        assert levels is not None
        middle = centre[::-1] / 14
        half = 1.18 * width / 14
        cut_box = np.concatenate([middle - half, middle + half])
        half *= rng.choice([0.4, 1.0, 1.0, 2.5]) if is_noise else 2.0
        objects.append(
            PlacedObject(
                image=image,
                heads={"red dog": "dog"},
                view=MapView(
                    ladders_of(levels[None], [0.0])[0], np.zeros(len(FACTS)), np.zeros(4), cut_box
                ),
                boxes=np.concatenate([middle - half, middle + half])[None].clip(0, 1),
                weight=1 + image % 3,
            )
        )
    return objects


def test_what_a_cut_misses_without_exception_is_learned() -> None:
    fit, folds, gain = learn_boxes(objects_of(120, is_noise=False))
    assert gain is not None
    assert gain.low > 0.5
    assert fit.networks
    assert all(fold.networks for fold in folds)


def test_noise_is_not_learned() -> None:
    fit, folds, gain = learn_boxes(objects_of(60, is_noise=True))
    assert gain is not None
    assert gain.low <= 0
    assert not fit.networks
    assert not any(fold.networks for fold in folds)
    assert fit.usual.words


def test_too_few_images_are_fitted_to_without_networks() -> None:
    fit, _, gain = learn_boxes(objects_of(FEWEST_IMAGES - 1, is_noise=False))
    assert not fit.networks
    assert gain is None


def test_the_same_things_give_the_same_fit() -> None:
    objects = objects_of(FEWEST_IMAGES, is_noise=False)
    first, second = (BoxTrainer(objects, fit_networks).whole().model_dump() for _ in range(2))
    assert first == second


def test_nothing_to_fit_to_is_refused() -> None:
    with expect_error(InputError):
        learn_boxes([])
