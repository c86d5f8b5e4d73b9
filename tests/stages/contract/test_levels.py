"""Heat in whole levels."""

from typing import Any

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from phrasebox.stages.contract.levels import LEVELS, quantise
from tests.build.cases import cases


@cases(
    ("values", "levels"),
    {
        "range": ([[0.0, 1.0]], [[0, 255]]),
        "offset; 127.5 goes up": ([[2.0, 3.0, 4.0]], [[0, 128, 255]]),
        "huge": ([[0.0, 3e38]], [[0, 255]]),
        "signed": ([[-1.0], [0.0], [3.0]], [[0], [64], [255]]),
        "constant up to rounding": ([[0.3, 0.30000004]], None),
        "one cell": ([[0.5]], None),
        "no cell": ([[]], None),
        "nan": ([[0.0, np.nan]], None),
        "both infinities": ([[-np.inf, np.inf]], None),
    },
)
def test_quantise(values: Any, levels: Any) -> None:
    quantised = quantise(np.array(values, dtype=np.float32))
    assert levels is quantised if levels is None else np.array_equal(quantised, levels)


@given(hnp.arrays(np.float32, (5, 4), elements=st.floats(0, 2, width=32)))
@example(np.arange(LEVELS + 1, dtype=np.float32).reshape(16, 16))
def test_the_levels_of_levels_are_the_same_levels(values: Any) -> None:
    levels = quantise(values)
    if levels is not None:
        np.testing.assert_array_equal(quantise(levels.astype(np.float32)), levels)
