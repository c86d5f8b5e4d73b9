"""What an explainer costs: its time for one batch as a multiple of the time that the image tower takes for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from stages.explain.base import Explainer

REPEATS: Final = 3

LONG_S: Final = 4.0
"""What takes longer is timed once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """The time of one batch.

    Attributes:
        explain_s: Median seconds for the maps of all its phrases.
        encode_s: Median seconds for its embeddings alone.
        repeats: How often each was measured.
    """

    explain_s: float
    encode_s: float
    repeats: int


def timing(explainer: Explainer[Any], rgb: NDArray[np.uint8], phrases: Sequence[Sequence[str]]) -> Timing:
    """Time the maps of images (B, height, width, 3) and their phrases, and the image tower alone.

    The two take turns, so that what else the machine does falls on both. Texts are embedded before the clock starts.
    """
    explainer.texts([text for texts in phrases for text in texts])
    pixels = torch.from_numpy(rgb)
    tower = explainer.model.tower

    @torch.no_grad()
    def encode() -> None:
        tower.encode(pixels)

    def explain() -> None:
        explainer.explain(rgb, phrases)

    first = _seconds(explain, tower.device)
    if first > LONG_S:
        return Timing(explain_s=first, encode_s=_seconds(encode, tower.device), repeats=1)
    both = [(_seconds(encode, tower.device), _seconds(explain, tower.device)) for _ in range(REPEATS)]
    return Timing(explain_s=median(b for _, b in both), encode_s=median(a for a, _ in both), repeats=REPEATS)


def _seconds(work: Callable[[], None], device: torch.device) -> float:
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
