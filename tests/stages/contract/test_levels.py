"""Heat in whole levels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from stages.contract.levels import LEVELS, quantise


@pytest.mark.parametrize(
    ("values", "levels"),
    [
        pytest.param([[0.0, 1.0]], [[0, 255]], id="range"),
        pytest.param([[2.0, 3.0, 4.0]], [[0, 128, 255]], id="offset; 127.5 goes up"),
        pytest.param([[0.0, 1e-30, 2e-30]], [[0, 128, 255]], id="tiny"),
        pytest.param([[0.0, 3e38]], [[0, 255]], id="huge"),
        pytest.param([[-1.0], [0.0], [3.0]], [[0], [64], [255]], id="signed"),
    ],
)
def test_quantise(values: Any, levels: Any) -> None:
    np.testing.assert_array_equal(quantise(np.array(values, dtype=np.float32)), levels)


@pytest.mark.parametrize(
    "values",
    [
        pytest.param([[0.0, 0.0]], id="zeros"),
        pytest.param([[0.3, 0.3]], id="constant"),
        pytest.param([[0.3, 0.30000004]], id="constant up to rounding"),
        pytest.param([[0.5]], id="one cell"),
        pytest.param([[]], id="no cell"),
        pytest.param([[0.0, np.nan]], id="nan"),
        pytest.param([[0.0, np.inf]], id="inf"),
        pytest.param([[-np.inf, np.inf]], id="both infinities"),
    ],
)
def test_nothing_to_see(values: Any) -> None:
    assert quantise(np.array(values, dtype=np.float32)) is None


def test_every_level_stays_what_it_is() -> None:
    levels = np.arange(LEVELS + 1, dtype=np.uint8).reshape(16, 16)
    np.testing.assert_array_equal(quantise(levels.astype(np.float32)), levels)


@given(hnp.arrays(np.float32, (5, 4), elements=st.floats(0, 2, width=32)))
def test_the_levels_of_levels_are_the_same_levels(values: Any) -> None:
    levels = quantise(values)
    if levels is not None:
        np.testing.assert_array_equal(quantise(levels.astype(np.float32)), levels)
