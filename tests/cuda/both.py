"""The same model on the CPU and on the simulated device, and the comparison of what both make."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from phrasebox.stages.contract.records import HeatMap, Record
from phrasebox.stages.model.clip import ClipModel
from phrasebox.stages.model.device import DTYPES
from phrasebox.stages.model.load import from_open_clip
from tests.build.datasets import Json
from tests.factories import TOWERS
from tests.stages.explain.models import tokenizer
from tests.stages.explain.test_stage import make_record

TOLERANCE = {"fp32": 1e-4, "bf16": 1e-2, "fp16": 1e-2}
"""Precision -> how far maps may be from the CPU's, as a share of their highest value. The kernels are the same, but
beside 16 bits the class path has TF32, and random weights and contrast leave small differences."""

PHRASES = ["red car", "dog", "two green fish", "house", "a very tall man"]


def both(tower: str = "class token", precision: str = "fp32") -> list[ClipModel]:
    """The model on the CPU, and on the device."""
    make, spec = TOWERS[tower]
    modules = [make(), make().to("cuda")]
    return [from_open_clip(each, tokenizer, spec, precision=DTYPES[precision]) for each in modules]


def records(count: int, side_px: int = 32) -> list[Record]:
    """Images with none to five phrases."""
    return [make_record(number, PHRASES[: number % 6], (side_px, side_px)) for number in range(count)]


def assert_same_maps(maps: Sequence[HeatMap], wanted: Sequence[HeatMap], precision: str = "fp32") -> None:
    """Maps, cosines and presence of one image, from both devices."""
    assert [(each.text, each.fault) for each in maps] == [(each.text, each.fault) for each in wanted]
    for mine, theirs in zip(maps, wanted, strict=True):
        assert np.abs(mine.values - theirs.values).max() <= TOLERANCE[precision] * max(
            theirs.values.max(), 1e-9
        )
        assert mine.similarity == pytest.approx(theirs.similarity, abs=TOLERANCE[precision] / 10)
        assert mine.presence == pytest.approx(theirs.presence, abs=TOLERANCE[precision])


def plain(record: Record) -> Json:
    """What a record says beside its maps."""
    return {
        "phrases": [phrase.text for phrase in record.phrases],
        "error": record.error,
    }
