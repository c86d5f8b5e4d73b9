"""Equality of numbers but for rounding, which is relative to their size, and another one on each processor."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

SINGLE: Final = 3e-5
"""Largest difference of two computations in float32, as a share of the largest number: some 250 of its last bits."""


def assert_close(actual: Any, expected: Any, share: float = SINGLE) -> None:
    """Tensors, arrays or numbers of one shape differ nowhere by more than a share of the largest expected number."""
    wanted = _array(expected)
    atol = share * np.abs(wanted).max(initial=0)
    np.testing.assert_allclose(_array(actual), wanted, rtol=0, atol=atol, strict=True)


def _array(numbers: Any) -> NDArray[np.float64]:
    return np.asarray(numbers.detach().double() if isinstance(numbers, Tensor) else numbers, np.float64)
