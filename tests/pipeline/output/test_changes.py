"""An input that changed after rows were made from it."""

from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from phrasebox.pipeline.output import manifest
from phrasebox.pipeline.output.dataset_folder import DatasetFolder
from phrasebox.pipeline.output.decisions import Decisions
from phrasebox.pipeline.output.manifest import ENVIRONMENTS, versions_here
from phrasebox.stages.contract.errors import ResourceError, ResumeError
from tests.build.datasets import manifest_of
from tests.messages import expect_error
from tests.pipeline.light import rows_of, write_captions
from tests.pipeline.output.light_runs import RaisingStage, content, identity_of, light_config, run_light

FIRST = [f"word{n} and more" for n in range(40)]
COMPARED = "comparing the input with the rows in "


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    return write_captions(tmp_path, FIRST)


@pytest.fixture(params=["finished", "unfinished"])
def out(request: pytest.FixtureRequest, captions: Path, tmp_path: Path) -> Path:
    """A run over the 40 captions: a finished dataset, or one of which 32 rows are written."""
    config = light_config(captions, tmp_path / "out")
    if request.param == "finished":
        run_light(config)
    else:
        with pytest.raises(ResourceError):
            run_light(config, last=RaisingStage(ResourceError("killed"), 1))
        assert len(rows_of(tmp_path / "out")) == 32
    return tmp_path / "out"


def test_new_samples_are_added_by_the_same_command(captions: Path, out: Path) -> None:
    config = light_config(captions, out)
    before = {row["id"]: row for row in rows_of(out)}
    write_captions(captions.parent, [*FIRST, "two new", "three new"])
    printed = run_light(config)
    told = (
        f"samples of the input that have no row yet: {42 - len(before)}. They are added\nresuming the run"
    )
    assert told in printed
    rows = {row["sample_id"]: row for row in rows_of(out)}
    assert sorted(rows) == sorted(f"c{n}" for n in range(42))
    assert rows["c41"]["captions"] == ["three new"]
    assert {row["id"]: row for row in rows.values() if row["id"] in before} == before
    assert manifest_of(out)["counts"]["read"] == 42
    assert run_light(config) == f"{out} is complete: nothing to do. --fresh starts over.\n"


def test_the_libraries_of_all_rows_are_listed(
    captions: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an upgrade between two starts; one without an upgrade adds nothing, and --fresh forgets."""
    config = light_config(captions, out)
    here = versions_here(config.phrases.packages)
    assert here["torch"] == metadata.version("torch")
    upgraded = {**here, "torch": "99.0"}
    monkeypatch.setattr(
        manifest, "version", lambda name: "99.0" if name == "torch" else metadata.version(name)
    )
    for extra in (["one new"], ["one new", "two new"]):
        write_captions(captions.parent, [*FIRST, *extra])
        run_light(config)
        assert manifest_of(out)["run"][ENVIRONMENTS] == [here, upgraded]
    run_light(config, fresh=True)
    assert manifest_of(out)["run"][ENVIRONMENTS] == [upgraded]


def test_changed_samples_keep_their_rows_and_are_told_of_each_time(captions: Path, out: Path) -> None:
    config = light_config(captions, out)
    changed = [*(f"other{n}" for n in range(6)), *FIRST[6:], "a new one"]
    write_captions(captions.parent, changed)
    told = (
        "samples of the input with other captions, or another image, than when their rows were made: 6 (c0, c1, c2, "
        "c3, c4, ...). The rows stay as they are; --fresh makes them again\n"
    )
    assert told in run_light(config)
    assert len(rows_of(out)) == 41
    for _ in range(2):
        complete = f"{out} is complete: every sample of the input has its row. --fresh starts over.\n"
        assert run_light(config) == f"{COMPARED}{out}\n{told}{complete}"
    assert {row["captions"][0] for row in rows_of(out)} == {*FIRST, "a new one"}
    run_light(config, fresh=True)
    assert {row["captions"][0] for row in rows_of(out)} == set(changed)
    assert "nothing to do" in run_light(config)


def test_samples_that_are_gone_are_refused_before_any_work(captions: Path, out: Path) -> None:
    write_captions(captions.parent, [*FIRST[:30], "new"])  # c30 is another, and what follows is gone
    before = content(out)
    names = "c31" if len(rows_of(out)) == 32 else "c31, c32, c33, c34, c35, c36, c37, c38, c39"
    with pytest.raises(
        ResumeError, match=r"samples that have rows, but are gone from the input: \d \("
    ) as caught:
        run_light(light_config(captions, out))
    shown = str(caught.value).partition("(")[2].partition(")")[0].split(", ")
    assert set(shown) <= {*names.split(", "), "..."}
    assert content(out) == before


def test_a_run_goes_on_in_any_precision_until_one_is_decided(captions: Path, tmp_path: Path) -> None:
    undecided, decided = (
        light_config(captions, tmp_path / "out", model={"precision": precision})
        for precision in ("auto", "bf16")
    )
    folder = DatasetFolder(tmp_path / "out")
    with folder.locked():
        folder.start(folder.claim(identity_of(undecided, "for fp32")))
        assert folder.claim(identity_of(decided, "for bf16")).state == "started"
        folder.store_decisions(identity_of(decided, "for bf16"), Decisions())
        with expect_error(ResumeError, key="output.path"):
            folder.claim(identity_of(light_config(captions, tmp_path / "out"), "for bf16"))


def light_part(captions: Path, out: Path, part: str, **keys: Any) -> str:
    source = {"kind": "jsonl", "path": str(captions), "part": part, **keys}
    return run_light(light_config(captions, out, input=source))


def test_parts_of_a_small_input_are_rows_of_one_run(captions: Path, tmp_path: Path) -> None:
    run_light(light_config(captions, tmp_path / "whole"))
    for number in (1, 2, 3):
        light_part(captions, tmp_path / str(number), f"{number}/3")
    parts = [rows_of(tmp_path / str(number)) for number in (1, 2, 3)]
    assert [len(rows) for rows in parts] == [13, 13, 14]
    every = [row for rows in parts for row in rows]
    assert sorted(every, key=lambda row: row["id"]) == rows_of(tmp_path / "whole")
    assert "nothing to do" in light_part(captions, tmp_path / "3", "3/3", piece_size=5)


def test_a_part_without_samples_says_that_it_is_empty(captions: Path, tmp_path: Path) -> None:
    printed = light_part(captions, tmp_path / "out", "1/41")
    assert (
        "part 1/41 of the input is empty: the input has fewer samples than parts, or fewer tars\n"
        in printed
    )
    assert "part 1/41 of the input holds no samples\n" in printed
    assert "the input holds no samples" not in printed.replace("of the input", "")


def test_a_larger_limit_adds_to_a_part_and_moves_no_sample_to_another(
    captions: Path, tmp_path: Path
) -> None:
    for number in (1, 2):
        light_part(captions, tmp_path / str(number), f"{number}/2", limit=10)
    light_part(captions, tmp_path / "1", "1/2", limit=20)
    assert len(rows_of(tmp_path / "1")) == 10
    before = content(tmp_path / "2")
    with expect_error(ResumeError):
        light_part(captions, tmp_path / "2", "2/2", limit=20)
    assert content(tmp_path / "2") == before
