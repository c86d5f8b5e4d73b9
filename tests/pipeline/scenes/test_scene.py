"""Scenes: the same from the same seed, exact masks, and distractors."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pipeline.scenes.captions import COLOURS, HELDOUT_PAIRS, KINDS
from pipeline.scenes.scene import Scene, make_scene, write_scenes
from tests.build.files import read_json, read_lines


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [make_scene(3, k, side_px=96, min_objects=2, max_objects=5) for k in range(200)]


def test_masks_are_disjoint_and_boxes_fit_them(scenes: list[Scene]) -> None:
    for scene in scenes[:30]:
        assert scene.image.shape == (96, 96, 3)
        assert scene.image.dtype == np.uint8
        assert np.sum([thing.mask for thing in scene.objects], axis=0).max() == 1
        for thing in scene.objects:
            assert thing.mask.dtype == np.bool_
            rows, columns = np.nonzero(thing.mask)
            expected = (columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1)
            assert thing.box_xywh_px == expected


def test_pairs_that_the_model_never_saw_are_drawn_now_and_then(scenes: list[Scene]) -> None:
    things = [thing for scene in scenes for thing in scene.objects]
    assert 0.08 < np.mean([thing.unseen_combination for thing in things]) < 0.30
    assert len(HELDOUT_PAIRS) == 24
    assert all(kind in KINDS and colour in COLOURS for kind, colour in HELDOUT_PAIRS)
    assert max(Counter(kind for kind, _ in HELDOUT_PAIRS).values()) == 1
    assert max(Counter(colour for _, colour in HELDOUT_PAIRS).values()) <= 4


def test_most_scenes_have_distractors_and_some_have_plurals(scenes: list[Scene]) -> None:
    scenes = [scene for scene in scenes if len(scene.objects) > 1]
    near = 0
    plural = 0
    for scene in scenes:
        pairs = {(thing.kind, thing.colour) for thing in scene.objects}
        kinds = Counter(kind for kind, _ in pairs)
        colours = Counter(colour for _, colour in pairs)
        near += max(kinds.values()) > 1 or max(colours.values()) > 1
        plural += len(pairs) < len(scene.objects)
    assert near / len(scenes) > 0.5
    assert 0.1 < plural / len(scenes) < 0.6


def test_objects_keep_their_size_and_stay_visible(scenes: list[Scene]) -> None:
    occluded = 0
    for scene in scenes[:150]:
        for thing in scene.objects:
            assert 0.1 <= thing.size_rel <= 0.55
            assert thing.mask.sum() >= 6
        boxes = [thing.box_xywh_px for thing in scene.objects]
        for k, (x, y, w, h) in enumerate(boxes):
            occluded += any(
                x < u + p and u < x + w and y < v + q and v < y + h for u, v, p, q in boxes[k + 1 :]
            )
    assert occluded > 30


def test_neither_the_centre_nor_chance_finds_the_things() -> None:
    """Of the things that captions name; many scenes, because a thing is at the centre or is not."""
    centre = []
    area = []
    for k in range(300):
        scene = make_scene(21, k, side_px=64, min_objects=2, max_objects=5)
        for thing in scene.objects:
            if thing.is_mentioned:
                centre.append(thing.mask[32, 32])
                area.append(thing.mask.mean())
    assert len(centre) > 750
    assert 0.04 < np.mean(centre) < 0.10
    assert 0.03 < np.mean(area) < 0.05


def test_absent_things_are_named_and_known_and_nothing_else_changes(tmp_path: Path) -> None:
    write_scenes(tmp_path / "plain", 6, 3, side_px=96)
    write_scenes(tmp_path / "absent", 6, 3, side_px=96, absent=True)
    rows = {}
    truths = {}
    for name in ("plain", "absent"):
        rows[name] = read_lines(tmp_path / name / "captions.jsonl")
        truths[name] = read_json(tmp_path / name / "truth.json")
    for number, (plain, absent) in enumerate(zip(rows["plain"], rows["absent"], strict=True)):
        [first, second] = absent["captions"]
        [phrase] = truths["absent"]["images"][number].pop("absent")
        assert (first, absent["id"]) == (plain["caption"], plain["id"])
        assert second == f"There is a{'n' if phrase[0] in 'aeiou' else ''} {phrase}."
        things = [each for each in truths["plain"]["annotations"] if each["image_id"] == number + 1]
        colour, _, kind = phrase.rpartition(" ")
        kinds = [
            KINDS[each["category_id"] - 1] for each in things if not colour or each["colour"] == colour
        ]
        assert kind not in kinds
        image = f"images/{plain['image']}"
        assert (tmp_path / "plain" / image).read_bytes() == (tmp_path / "absent" / image).read_bytes()
    assert truths["plain"] == truths["absent"]
