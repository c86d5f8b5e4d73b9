"""The truth table: a scene's own captions are true of it, and the bank hides what training must not show."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stages.model.scenes.scene import make_scene
from stages.model.scenes.vocabulary import COLOUR_NAMES, HELDOUT_PAIRS, KINDS
from stages.model.train.concepts import (
    COLUMNS,
    CONCEPTS,
    PAIRS,
    bank_columns,
    bank_wordings,
    claims,
    concept_column,
    present,
)
from stages.model.train.loss import known_true


def test_columns_are_distinct() -> None:
    pairs = [concept_column(kind, colour) for kind in KINDS for colour in COLOUR_NAMES]
    kinds = [concept_column(kind, None) for kind in KINDS]
    colours = [concept_column(None, colour) for colour in COLOUR_NAMES]
    assert pairs + kinds + colours == list(range(CONCEPTS))
    with pytest.raises(ValueError, match="got neither"):
        concept_column(None, None)


def test_a_scene_s_captions_are_true_of_it() -> None:
    for k in range(150):
        scene = make_scene(2, k, side_px=64, split="train", max_objects=6, extra_captions=3)
        row = present(scene.objects)
        assert row.shape == (COLUMNS,)
        for caption in scene.captions:
            claimed, denied = claims(caption)
            assert claimed.sum() + denied.sum() > 0
            rows = [torch.from_numpy(values)[None] for values in (claimed, denied, row)]
            assert bool(known_true(*rows)), caption.text


def test_present_counts() -> None:
    scene = next(
        scene
        for scene in (make_scene(2, k, side_px=64, split="train", min_objects=3) for k in range(500))
        if len(scene.objects) == 3 and len({(thing.kind, thing.colour) for thing in scene.objects}) == 2
    )
    row = present(scene.objects)
    assert row[:PAIRS].sum() == 2
    assert row[CONCEPTS : CONCEPTS + PAIRS].sum() == 1
    assert np.flatnonzero(row[2 * CONCEPTS :]).tolist() == [3]


def test_the_bank_never_asks_for_a_heldout_pair() -> None:
    columns = bank_columns()
    assert len(columns) == CONCEPTS - len(HELDOUT_PAIRS)
    texts = {text for column in columns for text in bank_wordings(column)}
    assert not any(f"{colour} {kind}" in texts for kind, colour in HELDOUT_PAIRS)
    assert {"red fish", "a red fish", "two red fish", "fish", "something red"} <= texts | {
        "red fish" if ("fish", "red") in HELDOUT_PAIRS else ""
    }
