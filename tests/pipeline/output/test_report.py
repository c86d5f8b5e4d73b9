"""What a run shows of itself, from reports of runs that never were."""

from io import StringIO

import pytest
from rich.console import Console

from phrasebox.pipeline import terminal
from phrasebox.pipeline.config.run_config import load_config
from phrasebox.pipeline.output.report import LOOKING, Display, Report, duration
from phrasebox.pipeline.run.engines import AT_MOST_INLINE, AT_MOST_INLINE_ON_TWO_CORES, choose_engine
from phrasebox.stages.contract.stage import Forwards

FORWARDS = Forwards(images=32, device="cpu")


def test_a_log_gets_a_line_of_progress_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    text = StringIO()
    with Display(Console(file=text, width=100)).shown() as display:
        report = Report(expected=800)
        display.show_step("loading the model")
        display.update(report)
        monkeypatch.setattr(terminal, "LINE_SECONDS", 0.0)
        display.update(report)
        report.rows(32, 2)
        display.update(report)
    assert text.getvalue() == "images: 0 of 800, loading the model\nimages: 32 of 800, 2 failed\n"


def test_a_long_step_before_the_first_image_has_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "LINE_SECONDS", 0.0)
    text = StringIO()
    with Display(Console(file=text, width=100)).shown() as display:
        (bar,) = display._progress.tasks
        display.show_step("parsing, samples")
        assert not text.getvalue(), "nothing is done yet"
        display.show_step("parsing, samples", 2000, 5000)
        assert (bar.description, bar.completed, bar.total) == (
            "parsing, samples: 2,000 of 5,000",
            2000,
            5000,
        )
        display.show_step("parsing, samples", 3000)
        display.show_step("loading the model")
        assert (bar.description, bar.completed, bar.total) == ("loading the model", 0, 1)
    assert text.getvalue() == "parsing, samples: 2,000 of 5,000\nparsing, samples: 3,000\n"


def test_the_first_images_have_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "LINE_SECONDS", 0.0)
    text = StringIO()
    report = Report(expected=1000)
    with Display(Console(file=text, width=100)).shown() as display:
        (bar,) = display._progress.tasks
        display.show_step(LOOKING)
        report.look(40, 100)
        display.update(report)
        assert (bar.description, bar.completed, bar.total) == (
            "looking at the first images: 40 of 100",
            40,
            100,
        )
        report.stage("explain", 100, 0.1, FORWARDS)
        display.update(report)
        assert (bar.description, bar.completed, bar.total) == ("images: 100 of 1,000", 100, 1000)
    assert text.getvalue() == "looking at the first images: 40 of 100\nimages: 100 of 1,000\n"
    report.rows(160, 0)  # 60 of them were computed by an earlier attempt
    assert report.images_done == 160


def test_progress_counts_what_was_done_before_and_says_how_long_the_rest_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(terminal, "LINE_SECONDS", 0.0)
    text = StringIO()
    report = Report(expected=1000, previous_rows=400)
    report.stage("explain", 32, 0.1, FORWARDS)
    report.stage("explain", 168, 0.1, FORWARDS)
    report.first_batch = (10.0, 32)
    monkeypatch.setattr(Report, "wall_time_s", 30.0)
    with Display(Console(file=text, width=200)).shown() as display:
        display.update(report)
    assert text.getvalue() == "images: 600 of 1,000, 8.40 images/s, 48 s left, 400 were done before\n"


@pytest.mark.parametrize(("seconds", "told"), [(119.4, "119 s"), (120, "2 minutes"), (7200, "2.0 hours")])
def test_durations(seconds: float, told: str) -> None:
    assert duration(seconds) == told


@pytest.mark.parametrize(
    ("settings", "cores", "samples", "kind"),
    [
        ([], 4, AT_MOST_INLINE + 1, "ray"),
        ([], 2, AT_MOST_INLINE_ON_TWO_CORES, "inline"),
        (["engine.cpu_workers=4"], 2, 1, "ray"),
        (["engine.kind=inline"], 4, None, "inline"),
    ],
)
def test_an_engine_is_chosen_by_the_number_of_samples(settings, cores, samples, kind, monkeypatch) -> None:
    monkeypatch.setattr("phrasebox.pipeline.run.engines.cores_here", lambda: cores)
    config = load_config(None, ["input={kind: jsonl, path: a}", *settings])
    assert choose_engine(config.engine, samples) == config.engine.model_copy(update={"kind": kind})


def test_progress_is_what_the_model_has_seen_at_the_speed_after_its_first_batch() -> None:
    """Rows of a file come together, long after it."""
    report = Report(expected=100)
    report.stage("phrases", 64, 0.1)
    assert (report.images_done, report.images_per_second) == (0, None)
    report.stage("explain", 32, 0.1, FORWARDS)
    assert (report.images_done, report.images_per_second) == (32, None), "its time includes the start"
    report.stage("explain", 32, 0.1, FORWARDS)
    assert report.images_done == 64
    assert (report.images_per_second or 0) > 0
    report.stage("explain", 64, 0.1, FORWARDS)
    assert report.images_done == 100, "a batch whose worker died is answered twice"
