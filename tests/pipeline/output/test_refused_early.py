"""What can be refused is refused before a model is loaded, which takes seconds."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from phrasebox.pipeline.run.run import run
from phrasebox.stages.contract.errors import ResourceError, ResumeError
from tests.build.cases import cases
from tests.messages import expect_error
from tests.pipeline.light import write_captions
from tests.pipeline.output.light_runs import RaisingStage, content, light_config, resolved_by, run_light


def put(name: str, text: str) -> Callable[[Path], None]:
    def write(out: Path) -> None:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(text)

    return write


def of_another_version(out: Path) -> None:
    path = out / ".phrasebox" / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "phrasebox_version": "0.0.1"}))


@cases(
    ("state", "change"),
    {
        "shard of nobody": ("new", put("data/00000.parquet", "mine")),
        "card of somebody": ("new", put("README.md", "mine")),
        "damaged manifest": ("new", put("dataset.json", '{"half')),
        "other files, finished": ("finished", lambda _: None),
        "other files, unfinished": ("unfinished", lambda _: None),
        "another version": ("unfinished", of_another_version),
    },
)
def test_no_model_is_loaded(state: str, change: Callable[[Path], None], tmp_path: Path) -> None:
    captions = write_captions(tmp_path, [f"word{n}" for n in range(40)])
    out = tmp_path / "out"
    config = light_config(captions, out)
    if state == "finished":
        run_light(config)
    elif state == "unfinished":
        with pytest.raises(ResourceError):
            run_light(config, last=RaisingStage(ResourceError("killed"), 1))
    change(out)
    if change.__name__ == "<lambda>":
        (tmp_path / "more").mkdir()
        config = light_config(write_captions(tmp_path / "more", ["a word"]), out)

    def resolver(*_: Any) -> Any:
        pytest.fail("the model would be loaded")

    before = content(out)
    with resolved_by(resolver), expect_error(ResumeError, key=("", "output.path")):
        run(config, Console(quiet=True))
    assert content(out) == before
