"""What the summary says of Ray's start, from reports of runs that never were."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from io import StringIO

import pytest
from rich.console import Console

from pipeline import terminal
from pipeline.summary import Display, Report, inline_instead
from stages.contract.stage import Forwards

FORWARDS = Forwards(images=32, computed=32, device="cpu")


def finished(
    first_batch_s: float, wall_s: float, batches: int, *, engine_s: float = 2.0, busy_s: float = 1.5
) -> Report:
    """A run of batches of 32 that took `wall_s` seconds until now; the stages were busy for `busy_s` a batch."""
    report = Report()
    for _ in range(batches):
        report.stage("prepare", 32, 0.5)
        report.stage("explain", 32, busy_s - 0.5, FORWARDS)
    report.started_s = time.perf_counter() - wall_s
    report.engine_s, report.first_batch_s = engine_s, first_batch_s
    return report


def test_a_run_that_was_mostly_start_names_the_other_engine_and_its_time() -> None:
    """Nine of ten batches took 9 s after the start: all take 10, and 2 s were before the engine."""
    assert inline_instead(finished(18, 27, 10)) == (
        "Ray's start took 16 of 27 s: for an input of this size --set engine.kind=inline would have taken about 12 s"
    )


def test_a_single_batch_is_estimated_by_what_the_stages_were_busy() -> None:
    told = inline_instead(finished(18, 20, 1))
    assert told is not None
    assert told.endswith("about 4 s")


@pytest.mark.parametrize(
    "run",
    [
        partial(finished, 10, 27, 10),  # the start took less than half
        partial(finished, 18, 27, 10, engine_s=9),  # so it did here, where what came before the engine took long
        partial(finished, 18, 20, 1, busy_s=30),  # one process would have taken as long
        Report,  # no image had a phrase
    ],
)
def test_where_the_start_is_not_the_most_of_it_or_costs_nothing_the_summary_is_silent(
    run: Callable[[], Report],
) -> None:
    assert inline_instead(run()) is None


def test_the_first_batch_is_that_of_the_stage_with_a_model() -> None:
    report = Report()
    report.stage("phrases", 64, 0.1)
    assert report.first_batch_s is None
    report.stage("explain", 32, 0.1, FORWARDS)
    first = report.first_batch_s
    assert first is not None
    report.stage("explain", 20, 0.1, FORWARDS)
    assert (report.first_batch_s, report.first_batch) == (first, 32)


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_log_gets_a_line_of_progress_now_and_then(is_terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def shown(seconds: float) -> str:
        monkeypatch.setattr(terminal, "LINE_SECONDS", seconds)
        text = StringIO()
        with Display(Console(file=text, force_terminal=is_terminal, width=100)).shown() as display:
            report = Report()
            report.expected = 800
            display.update(report)
            report.rows(32, 2)
            display.update(report)
        return text.getvalue()

    if is_terminal:
        assert "images: 32" not in shown(0.0)
        return
    assert shown(3600.0) == ""
    first, second = shown(0.0).splitlines()
    assert first == "images: 0 of 800, starting"
    assert second.startswith("images: 32 of 800, ")
    assert second.endswith("2 failed")


def test_progress_is_what_the_model_has_seen_at_the_speed_after_its_first_batch() -> None:
    """Rows of a file come together, long after it."""
    report = Report(expected=100)
    report.stage("phrases", 64, 0.1)
    assert (report.seen, report.images_per_second) == (0, None)
    report.stage("explain", 32, 0.1, FORWARDS)
    assert (report.seen, report.images_per_second) == (32, None), "how long the first batch took tells of the start"
    report.stage("explain", 32, 0.1, FORWARDS)
    first, now = report.first_batch_s, report.wall_time_s
    assert first is not None
    assert report.seen == 64
    assert report.images_per_second is not None
    assert report.images_per_second <= 32 / (now - first)
    report.stage("explain", 64, 0.1, FORWARDS)
    assert report.seen == 100, "a batch whose worker died is answered twice"


def test_progress_without_a_model_is_that_of_rows() -> None:
    report = Report()
    report.stage("regions", 64, 0.1)
    report.rows(32, 0)
    assert (report.seen, report.images_per_second) == (32, None)
    report.rows(32, 0)
    assert report.seen == 64
    assert report.images_per_second is not None
