"""Scenes: exact masks, distractors, and no place that a guess would find."""

from collections import Counter

import numpy as np
import pytest

from phrasebox.pipeline.demo.scenes.scene import Scene, make_scene


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    before = np.random.get_state()[1].copy()
    drawn = [make_scene(3, k, side_px=96) for k in range(200)]
    assert np.array_equal(np.random.get_state()[1], before), "no global random state is changed"
    return drawn


def test_masks_are_disjoint_and_boxes_fit_them(scenes: list[Scene]) -> None:
    for scene in scenes[:30]:
        assert (scene.image.shape, scene.image.dtype) == ((96, 96, 3), np.uint8)
        assert np.sum([item.mask for item in scene.objects], axis=0).max() == 1
        for item in scene.objects:
            rows, columns = np.nonzero(item.mask)
            expected = (columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1)
            assert item.box_xywh_px == expected
            assert len(rows) >= 6, "enough of it is visible"


def test_most_scenes_have_distractors_and_some_have_plurals_and_unseen_pairs(scenes: list[Scene]) -> None:
    near = []
    plural = []
    for scene in scenes:
        pairs = {(item.kind, item.colour) for item in scene.objects}
        counts = [Counter(kinds) for kinds in zip(*pairs, strict=True)]
        near.append(max(max(count.values()) for count in counts) > 1)
        plural.append(len(pairs) < len(scene.objects))
    assert np.mean(near) > 0.5
    assert 0.1 < np.mean(plural) < 0.6
    unseen = [item.unseen_combination for scene in scenes for item in scene.objects]
    assert 0.08 < np.mean(unseen) < 0.30


def test_neither_the_centre_nor_chance_finds_the_objects() -> None:
    """Of the objects that captions name; many scenes, because an object is at the centre or is not."""
    scenes = [make_scene(21, k, side_px=64) for k in range(300)]
    masks = [item.mask for scene in scenes for item in scene.objects if item.is_mentioned]
    assert len(masks) > 750
    assert 0.04 < np.mean([mask[32, 32] for mask in masks]) < 0.10
    assert 0.03 < np.mean(masks) < 0.05
