"""A sample that kills the process in which everything runs: it costs its row, and no other."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from phrasebox.pipeline.output.dataset_folder import DatasetFolder
from phrasebox.pipeline.output.report import Report
from phrasebox.pipeline.run.engines.inline import InlineEngine
from phrasebox.pipeline.run.engines.trials import FIRST_IMAGES, MOST_DEATHS, Trials
from phrasebox.stages.contract.errors import ResourceError
from phrasebox.stages.contract.records import Record, stable_key
from phrasebox.stages.files.storage import place_of
from tests.pipeline.light import ROOT, LastStage, rows_of, write_captions
from tests.pipeline.output.light_runs import RaisingStage, light_config, run_light

DONE = np.empty(0, np.int64)

PROGRAM = """
import os, signal, sys
from pathlib import Path
from tests.pipeline.light import LastStage
from tests.pipeline.output.light_runs import light_config, run_light

class DeadlyStage(LastStage):
    def process(self, batch):
        with Path(sys.argv[1]).with_name("batches").open("a") as file:
            file.write(f"{len(batch)}\\n")
        if any(record.sample.captions == ("deadly",) for record in batch):
            os.kill(os.getpid(), signal.SIGKILL)
        return list(batch)

config = light_config(Path(sys.argv[1]), Path(sys.argv[2]), output={"path": sys.argv[2], "rows_per_file": 100})
print(run_light(config, last=DeadlyStage(0.0)))
"""


def run_deadly(captions: Path, out: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", PROGRAM, str(captions), str(out)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


@pytest.mark.slow
def test_a_sample_that_kills_the_process_becomes_a_row_with_an_error(tmp_path: Path) -> None:
    """Until then the same command dies, as often as `MOST_DEATHS` says."""
    captions = write_captions(
        tmp_path, ["deadly" if number == 40 else f"word{number}" for number in range(70)]
    )
    deaths = 0
    while (done := run_deadly(captions, tmp_path / "out")).returncode == -9:
        deaths += 1
        assert deaths <= MOST_DEATHS
    assert done.returncode == 0, done.stderr
    assert deaths == MOST_DEATHS
    rows = {row["sample_id"]: row for row in rows_of(tmp_path / "out")}
    assert len(rows) == 70
    assert {name: row["error"] for name, row in rows.items() if row["error"]} == {"c40": "worker_died"}
    assert rows["c40"]["error_detail"].endswith(
        f": {MOST_DEATHS} processes died at it, out of memory or by a fault in a library; look at its image"
    )
    assert "samples in hand: they are computed one by one" in done.stdout
    assert not (tmp_path / "out/.phrasebox/in-hand.json").exists()
    assert (tmp_path / "batches").read_text().split().count("1") > 6, "alone after the first death"


class Died(BaseException):
    """Stands for the death of a process."""


class DyingStage(LastStage):
    """Leaves what is noted as a death would, and ends the run."""

    def __init__(self, place: Path) -> None:
        super().__init__(0.0)
        self.place = place

    def process(self, batch: Sequence[Record]) -> list[Record]:
        if any(record.sample.captions == ("deadly",) for record in batch):
            shutil.copy(self.place, self.place.with_name("in-hand.copy"))
            raise Died
        return list(batch)


def test_two_samples_of_a_batch_that_kill_the_process_are_told_apart(tmp_path: Path) -> None:
    captions = write_captions(
        tmp_path, ["deadly" if number in (5, 7) else f"word{number}" for number in range(20)]
    )
    config = light_config(
        captions, tmp_path / "out", output={"path": tmp_path / "out", "rows_per_file": 100}
    )
    place = DatasetFolder(tmp_path / "out").in_hand
    printed = ""
    for _ in range(2 * MOST_DEATHS):
        try:
            printed = run_light(config, last=DyingStage(place))
        except Died:
            for shard in (tmp_path / "out/data").iterdir():  # a death leaves no unfinished one
                shard.unlink()
            place.with_name("in-hand.copy").rename(place)
    for name in ("c5", "c7"):
        assert f"{MOST_DEATHS} processes died at the sample {name} (" in printed
    errors = {row["sample_id"]: row["error"] for row in rows_of(tmp_path / "out")}
    assert len(errors) == 20
    assert {name for name, error in errors.items() if error} == {"c5", "c7"}


def test_a_run_that_is_stopped_blames_no_sample(tmp_path: Path) -> None:
    captions = write_captions(tmp_path, ["a word"] * 50)
    with pytest.raises(ResourceError):
        run_light(
            light_config(captions, tmp_path / "out"), last=RaisingStage(ResourceError("no cluster"), 1)
        )
    assert not (tmp_path / "out/.phrasebox/in-hand.json").exists()
    assert "one by one" not in run_light(light_config(captions, tmp_path / "out"))


def test_a_new_run_takes_over_no_blame(tmp_path: Path) -> None:
    captions = write_captions(tmp_path, ["a word"] * 5)
    run_light(light_config(captions, tmp_path / "out"))
    place = DatasetFolder(tmp_path / "out").in_hand
    place.write_text(json.dumps({"deaths": [[stable_key("c1"), 9]], "in_hand": []}))
    run_light(light_config(captions, tmp_path / "out"), fresh=True)
    assert [row["error"] for row in rows_of(tmp_path / "out")] == [None] * 5


@pytest.mark.parametrize(("steps", "deaths"), [([8], 1), ([8, 16], 0), ([8, 8], 1)], ids=str)
def test_a_process_that_got_further_with_the_first_images_blames_none(steps, deaths, tmp_path) -> None:
    """What they gave is kept, so a run that is killed again and again still comes to its end."""
    path = tmp_path / "in-hand.json"
    died(path, [FIRST_IMAGES])
    trials = Trials(path, DONE)
    session: Any = SimpleNamespace(report=Report(), update=lambda: None)
    run: Any = SimpleNamespace(steps=None)

    def compute(_: Any, on_progress: Callable[[int, int], None]) -> int:
        for done in steps:
            on_progress(done, 20)
        assert trials.deaths_of(FIRST_IMAGES) == deaths
        return 7

    assert InlineEngine(run, session, trials).compute_first(compute) == 7
    assert trials.deaths_of(FIRST_IMAGES) == 0


def test_first_images_at_which_processes_died_decide_nothing(tmp_path: Path) -> None:
    path = tmp_path / "in-hand.json"
    for _ in range(MOST_DEATHS):
        died(path, [FIRST_IMAGES])
    session: Any = SimpleNamespace(report=Report(), update=lambda: None)
    engine = InlineEngine(session, session, Trials(path, DONE))
    assert engine.compute_first(lambda *_: pytest.fail("it would die again")) is None


def died(path: Path, keys: Sequence[int], done: Sequence[int] = ()) -> Trials:
    """The trials of a process that dies with samples in hand."""
    trials = Trials(path, np.array(done, np.int64))
    trials.take(keys)
    return trials


def test_deaths_are_counted_until_a_sample_has_its_row(tmp_path: Path) -> None:
    path = tmp_path / "in-hand.json"
    died(path, [1, 2, 3])
    died(path, [2])
    third = died(path, [FIRST_IMAGES])
    assert [third.deaths_of(key) for key in (1, 2, 3, 4)] == [1, 2, 1, 0]
    last = died(path, [], done=[1, 3])
    assert [last.deaths_of(key) for key in (1, 2, 3, FIRST_IMAGES)] == [0, 2, 0, 1]
    assert last.suspects == 1
    last.forget(2)
    last.forget(FIRST_IMAGES)
    last.take([])
    assert not path.exists()


@pytest.mark.parametrize("text", ["", '{"deaths": [', "[]", '{"deaths": 3, "in_hand": []}'])
def test_a_note_that_was_being_written_says_nothing(text: str, tmp_path: Path) -> None:
    path = tmp_path / "in-hand.json"
    path.write_text(text)
    assert Trials(path, DONE).suspects == 0


def test_nothing_is_noted_in_object_storage() -> None:
    trials = Trials(place_of("s3://bucket/out/.phrasebox/in-hand.json"), DONE)
    trials.take([1])
    assert trials.deaths_of(1) == 0
