"""What `--fresh` replaces is only deleted once the new run has written something."""

import json
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from phrasebox.pipeline.output import backup
from phrasebox.pipeline.output.dataset_folder import DatasetFolder
from phrasebox.stages.contract.errors import InputError, ResourceError, WeightsError
from phrasebox.stages.files.storage import move
from tests.build.datasets import Json
from tests.messages import expect_error
from tests.pipeline.light import rows_of, write_captions
from tests.pipeline.output.light_runs import RaisingStage, content, identity_of, light_config, run_light


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    return write_captions(tmp_path, [f"word{n} and more" for n in range(40)])


@pytest.fixture
def finished(captions: Path, tmp_path: Path) -> Path:
    """A finished dataset of 40 rows in five shards."""
    run_light(light_config(captions, tmp_path / "out"))
    return tmp_path / "out"


CAPTIONS = {"kind": "jsonl", "path": "{}/captions.jsonl"}
REFUSED: dict[str, Json] = {
    "input": {"input": {"kind": "jsonl", "path": "{}/typo.jsonl"}},
    "images": {"input": {**CAPTIONS, "image_root": "{}/out"}},
    "weights": {"model": {"name": "ViT-B-32/none"}},
}
"""Name -> sections of the configuration."""

KEYS = {"input": "input.path", "images": "input.image_root", "weights": ""}
"""Name -> the key that the refusal is about."""


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_deletes_nothing(name: str, captions: Path, finished: Path, monkeypatch) -> None:
    def no_network(*_: object) -> None:
        raise WeightsError("no such tag")

    monkeypatch.setattr(
        "phrasebox.pipeline.run.run.fetch_weights", no_network if name == "weights" else lambda *_: None
    )
    filled = json.loads(json.dumps(REFUSED[name]).replace("{}", str(captions.parent)))
    before = content(finished)
    with expect_error(InputError, WeightsError, key=KEYS[name]):
        run_light(light_config(captions, finished, **filled), fresh=True)
    assert content(finished) == before


@pytest.mark.parametrize(
    "error", [ResourceError("no cluster"), KeyboardInterrupt(), RuntimeError("a fault")]
)
@pytest.mark.parametrize("answers", [0, 1])
def test_a_run_ended_before_its_first_file_leaves_the_former(
    error, answers, captions, finished, monkeypatch
) -> None:
    """One batch has 32 rows: after it, four files are there."""
    before = content(finished)
    config = light_config(captions, finished, explain={"blocks": 1})
    with pytest.raises(type(error)) as caught:
        run_light(config, last=RaisingStage(error, answers), fresh=True)
    is_back = f"nothing was written: the former run in {finished} is back" in "".join(
        caught.value.__notes__
    )
    assert is_back == (answers == 0)
    if is_back:
        assert content(finished) == before
    else:
        assert not (finished / ".phrasebox/replaced").exists()
        assert len(rows_of(finished)) == 32
        assert "resuming" in run_light(config)
        assert len(rows_of(finished)) == 40


class Killed(BaseException):
    pass


def killed_at(step: int) -> Callable[..., None]:
    """A `move` that ends the process in front of one of its calls."""
    steps = count()

    def move_or_die(*paths: Any) -> None:
        if next(steps) == step:
            raise Killed
        move(*paths)

    return move_or_die


@pytest.mark.parametrize("while_coming_back", [False, True])
def test_a_run_killed_while_files_are_moved_loses_none(
    while_coming_back, captions, finished, monkeypatch
) -> None:
    (finished / ".phrasebox/journal-0001").mkdir()
    (finished / ".phrasebox/journal-0001/00000.parquet").touch()
    before = content(finished)
    other = light_config(captions, finished, explain={"blocks": 1})
    config = light_config(captions, finished)
    for step in range(len(before)):
        folder = DatasetFolder(finished)
        with folder.locked():
            previous = folder.claim_fresh(identity_of(other))
            if while_coming_back:
                folder.start(previous)
                (folder.data / "00000.parquet").write_bytes(b"half of a file")
            monkeypatch.setattr(backup, "move", killed_at(step))
            with pytest.raises(Killed):
                folder.restore_backup() if while_coming_back else folder.start(previous)
            monkeypatch.setattr(backup, "move", move)
        folder = DatasetFolder(finished)
        with folder.locked():
            assert folder.claim(identity_of(config)).state == "complete"
            assert folder.notes[0].endswith("that --fresh was to replace is back: nothing had replaced it")
        assert content(finished) == before
