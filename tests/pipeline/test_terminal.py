import sys
import textwrap
from io import StringIO

import pytest
from rich.console import Console

from phrasebox.pipeline import terminal
from phrasebox.pipeline.terminal import progress_bar
from tests.pipeline.light import ended


def shown(*, is_terminal: bool, total: int | None) -> str:
    text = StringIO()
    with progress_bar(Console(file=text, force_terminal=is_terminal, width=100), "rows", total) as advance:
        advance(1000)
        advance(2000)
    return text.getvalue()


@pytest.mark.parametrize(
    ("total", "lines"),
    [
        (2000, "rows: 1,000 of 2,000, 0 s left\nrows: 2,000 of 2,000\n"),
        (None, "rows: 1,000\nrows: 2,000\n"),
    ],
)
def test_a_long_job_says_in_a_log_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, total: int | None, lines: str
) -> None:
    assert shown(is_terminal=False, total=total) == "", "a short job says nothing in a log"
    monkeypatch.setattr(terminal, "FIRST_LINE_SECONDS", 0.0)
    monkeypatch.setattr(terminal, "LINE_SECONDS", 0.0)
    assert shown(is_terminal=False, total=total) == lines
    assert "rows" in shown(is_terminal=True, total=total)


def test_a_second_signal_ends_a_run_at_once() -> None:
    code = """
        import os, signal, time
        from phrasebox.pipeline.terminal import stoppable
        with stoppable():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(10)
            finally:
                print("cleaning up", flush=True)
                {second}
        """
    signal_again = "os.kill(os.getpid(), signal.SIGTERM)"
    first, second = (
        ended([sys.executable, "-c", textwrap.dedent(code).format(second=line)])
        for line in ("pass", signal_again)
    )
    assert (first.stdout, first.stderr.splitlines()[-1]) == (
        "cleaning up\n",
        "phrasebox.pipeline.terminal.Terminated",
    )
    assert (second.returncode, second.stderr) == (143, "stopped at once.\n")


def test_a_signal_that_a_library_makes_an_error_ends_a_run_as_a_signal() -> None:
    code = """
        import os, signal
        from phrasebox.pipeline.terminal import stoppable
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background is born without
        with stoppable():
            try:
                os.kill(os.getpid(), signal.{name})
            except KeyboardInterrupt:
                raise RuntimeError("Query interrupted")  # as DuckDB's connection does
        """
    ends = [
        ended([sys.executable, "-c", textwrap.dedent(code).format(name=name)])
        for name in ("SIGTERM", "SIGINT")
    ]
    assert [end.stderr.splitlines()[-1] for end in ends] == [
        "phrasebox.pipeline.terminal.Terminated",
        "KeyboardInterrupt",
    ]
