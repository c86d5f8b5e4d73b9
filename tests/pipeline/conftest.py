"""Intervals from fewer resamples, which take most of the time of an evaluation."""

import functools
from collections.abc import Iterator
from typing import Any

import pytest

from phrasebox.pipeline.evaluate import estimates

FEW = 100


@pytest.fixture(scope="session", autouse=True)
def few_resamples() -> Iterator[None]:
    draws = estimates._draws

    @functools.wraps(draws)
    def few(count: int, resamples: int) -> Any:
        return draws(count, min(FEW, resamples))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimates, "_draws", few)
        yield
