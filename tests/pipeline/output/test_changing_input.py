"""An input that changes while a run reads it: one sentence, no row of other bytes, and the same command goes on."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from phrasebox.stages.contract.errors import InputError, ResumeError
from phrasebox.stages.contract.records import Record
from tests.build.files import write_lines
from tests.messages import expect_error
from tests.pipeline.light import LastStage, rows_of, write_captions
from tests.pipeline.output.light_runs import light_config, run_light

CAPTIONS = [f"word{n} and more" for n in range(80)]


class ChangingStage(LastStage):
    """Changes a file when it answers the first batch, which holds 32 rows."""

    def __init__(self, change: Callable[[], object]) -> None:
        super().__init__(0.0)
        self.changes = [change]

    def process(self, batch: Sequence[Record]) -> list[Record]:
        if self.changes:
            self.changes.pop()()
        return super().process(batch)


def append(captions: Path) -> None:
    with captions.open("a") as file:
        file.write(json.dumps({"id": "c1", "image": "1.jpg", "caption": "again"}) + "\n")


def shorten(captions: Path) -> None:
    os.truncate(captions, captions.stat().st_size // 2 + 7)


def replace_whole(captions: Path) -> None:
    new = captions.with_name("new")
    first = json.dumps({"id": "first", "image": "first.jpg", "caption": "a line in front"})
    new.write_text(first + "\n" + captions.read_text())
    new.replace(captions)


def touch(captions: Path) -> None:
    """Write as many other bytes."""
    captions.write_text(captions.read_text().replace("more", "less"))


def delete(captions: Path) -> None:
    captions.unlink()


@pytest.mark.parametrize("change", [append, shorten, replace_whole, touch, delete])
def test_a_change_is_told_and_gives_no_row(change: Callable[[Path], None], tmp_path: Path) -> None:
    captions = write_captions(tmp_path, CAPTIONS)
    content = captions.read_bytes()
    source = {"kind": "jsonl", "path": str(captions), "piece_size": 8}
    config = light_config(captions, tmp_path / "out", input=source)
    with expect_error(InputError):
        run_light(config, last=ChangingStage(lambda: change(captions)))
    rows = rows_of(tmp_path / "out")
    assert {(row["sample_id"], *row["captions"]) for row in rows} == {
        (f"c{n}", CAPTIONS[n]) for n in range(32)
    }
    if change in (append, replace_whole, touch):
        assert "resuming the run" in run_light(config)
        assert len(rows_of(tmp_path / "out")) == len(captions.read_text().splitlines())
    captions.write_bytes(content)
    if change in (append, replace_whole):
        with pytest.raises(ResumeError, match="gone from the input: 1 "):
            run_light(config)
    else:
        run_light(config)
        assert len(rows_of(tmp_path / "out")) == 80


def test_a_list_that_the_plan_carries_may_change(tmp_path: Path) -> None:
    """Its rows are those of the plan. The next command compares them with the file."""
    captions = write_captions(tmp_path, CAPTIONS).with_suffix(".json")
    rows = [{"id": f"c{n}", "image": f"{n}.jpg", "caption": text} for n, text in enumerate(CAPTIONS)]
    captions.write_text(json.dumps(rows))
    config = light_config(captions, tmp_path / "out")
    run_light(
        config,
        last=ChangingStage(lambda: captions.write_text(json.dumps([*rows, {**rows[0], "id": "new"}]))),
    )
    assert len(rows_of(tmp_path / "out")) == 80
    assert "no row yet: 1." in run_light(config)


def test_the_line_names_the_row_at_which_a_change_was_noticed(tmp_path: Path) -> None:
    captions = tmp_path / "captions.jsonl"
    (tmp_path / "0.jpg").touch()
    write_lines(captions, ({"image": f"{n}.jpg", "caption": text} for n, text in enumerate(CAPTIONS)))
    config = light_config(captions, tmp_path / "out")
    with pytest.raises(InputError, match=r"noticed after captions\.jsonl:32 "):
        run_light(config, last=ChangingStage(lambda: append(captions)))
