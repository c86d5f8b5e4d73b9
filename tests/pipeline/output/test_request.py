"""A request is known again by its settings and by the files of its model."""

from pathlib import Path

import pytest

from phrasebox.pipeline.config.run_config import load_config
from phrasebox.pipeline.output.previous_run import PreviousRun
from phrasebox.pipeline.output.request import request_fingerprint
from phrasebox.stages.contract.errors import ResumeError
from tests.messages import expect_error


def fingerprint(folder: Path, *settings: str) -> str | None:
    options = {"input.path": str(folder / "captions.jsonl"), "model.name": str(folder / "clip")}
    return request_fingerprint(load_config(None, settings, options=options))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "captions.jsonl").write_text("{}\n")
    (tmp_path / "clip").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "clip" / name).write_text("{}")
    (tmp_path / "fit.json").write_text("{}")
    return tmp_path


def test_it_changes_with_settings_that_decide_rows_and_with_files_of_the_model(folder: Path) -> None:
    plain = fingerprint(folder)
    assert plain is not None
    assert fingerprint(folder, "model.batch_size=2", "output.path=elsewhere") == plain
    fitted = f"regions.calibration={folder / 'fit.json'}"
    others = {plain, *(fingerprint(folder, setting) for setting in ("explain.blocks=2", fitted))}
    assert len(others) == 3
    (folder / "fit.json").write_text("{ }")
    (folder / "clip" / "config.json").write_text("{ }")
    assert not {fingerprint(folder), fingerprint(folder, fitted)} & others
    (folder / "clip" / "tokenizer.json").write_text("{}")
    assert fingerprint(folder) not in others


def test_rows_that_depend_on_other_files_have_none(folder: Path) -> None:
    assert fingerprint(folder, "regions.refine=sam") is None
    assert fingerprint(folder, "source={kind: detector, detector: owner/name}") is None


def test_only_what_no_model_decides_is_compared_without_one(tmp_path: Path) -> None:
    """Left out, `blocks` and `precision` may be what the run has."""

    def check(*settings: str) -> None:
        config = load_config(None, settings, options={"input.path": "a.csv", "model.name": "photo"})
        PreviousRun(folder=tmp_path, state="complete", run={"config": stored}).check_before_model(config)

    settings = ("explain.blocks=3", "model.precision=bf16")
    options = {"input.path": "a.csv", "model.name": "photo"}
    stored = load_config(None, settings, options=options).rows_depend_on()
    check()
    check(*settings)
    for setting in (
        "explain.blocks=2",
        "model.precision=fp32",
        "explain.kind=grad_cam",
        "phrases.max_phrases=9",
    ):
        with expect_error(ResumeError, key="output.path"):
            check(setting)
