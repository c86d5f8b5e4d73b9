"""Paired timings: ours and a baseline in turn, so that a machine that slows down slows both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

ROUNDS: Final = 7


def line(name: str, value: float, unit: str, against: str) -> dict[str, Any]:
    """A figure as it is printed."""
    return {"name": name, "value": round(value, 3), "unit": unit, "against": against}


def ratio_of(ours: Callable[[], Any], baseline: Callable[[], Any], rounds: int = ROUNDS) -> float:
    """Median over rounds of our time divided by the baseline's; the two alternate."""
    ours()
    baseline()
    ratios = []
    for _ in range(rounds):
        before = seconds_of(baseline)
        mine = seconds_of(ours)
        after = seconds_of(baseline)
        ratios.append(mine / ((before + after) / 2))
    return statistics.median(ratios)


def seconds_of(call: Callable[[], Any]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def speed_over(ours: Iterable[Any], bare: Callable[[], Iterator[Any]], rounds: int = 11) -> float:
    """The bare time over ours, each the least of many rounds, the two taken in turn, for the same number of items.

    Other programs on the machine only ever add to a time.
    """
    found = [(cpu_seconds(bare()), cpu_seconds(ours)) for _ in range(rounds)]
    if any(without[1] != with_[1] for without, with_ in found):
        raise ValueError("the two sides decode different images")
    return min(without[0] for without, _ in found) / min(with_[0] for _, with_ in found)


def cpu_seconds(items: Iterable[Any]) -> tuple[float, int]:
    """CPU time to go through the items, and how many there are."""
    start = time.process_time()
    count = sum(1 for _ in items)
    return time.process_time() - start, count


def speed_of(items: Iterable[Any], rounds: int = 3) -> float:
    """Items per second, the best of some rounds after one that warms up."""
    found = [cpu_seconds(items) for _ in range(rounds + 1)]
    return max(count / seconds for seconds, count in found[1:])


def processor() -> str:
    """The processor's name, where the system tells."""
    try:
        described = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return "unknown CPU"
    names = [text.partition(":")[2].strip() for text in described.splitlines() if text.startswith("model name")]
    return f"{names[0]} CPU" if names else "unknown CPU"
