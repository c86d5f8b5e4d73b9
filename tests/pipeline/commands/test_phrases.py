import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from phrasebox.pipeline.commands.phrases import phrases_json
from phrasebox.pipeline.config.run_config import RunConfig
from phrasebox.pipeline.run.run import run
from phrasebox.stages.contract.errors import InputError, ResumeError
from phrasebox.stages.phrases.config import PhrasesConfig
from tests.build.datasets import Json
from tests.build.files import read_lines
from tests.messages import assert_message, expect_error
from tests.pipeline.commands.evaluated import called, printed
from tests.pipeline.light import assert_alike, rows_of


def test_phrases_json_reads_no_further_than_a_batch(monkeypatch):
    monkeypatch.setattr("phrasebox.pipeline.commands.phrases.CAPTIONS_PER_STEP", 2)
    read = []

    def captions() -> Iterator[str]:
        for caption in ("Two dogs.", "", "A photo of my cat"):
            read.append(caption)
            yield caption

    answers = phrases_json(captions(), PhrasesConfig())
    lines = [next(answers)]
    assert len(read) == 2
    lines += answers
    dogs = {"text": "two dogs", "start": 0, "end": 8, "head": "dog", "plural": True}
    cat = {"text": "cat", "start": 11, "end": 17, "head": "cat", "plural": False}
    assert json.loads(json.dumps(lines)) == [
        {"caption": "Two dogs.", "phrases": [dogs]},
        {"caption": "", "phrases": [], "error": "no_caption: all captions are empty"},
        {"caption": "A photo of my cat", "phrases": [cat]},
    ]


def test_a_run_with_the_phrases_of_its_input_makes_the_same_rows_and_one_with_others_is_rejected(
    scenes_config: Json, inline_dataset: Path, tmp_path: Path
) -> None:
    file = tmp_path / "phrases.jsonl"
    out = tmp_path / "out"
    source = scenes_config["input"]
    printed("phrases", source["path"], "--images", source["image_root"], "--out", file)
    lines = read_lines(file)
    assert len({line["caption"] for line in lines}) == len(lines)

    values = {**scenes_config, "input": {**source, "phrases": str(file)}}
    config = RunConfig.model_validate({**values, "output": {"path": str(out)}})
    run(config)
    assert_alike(rows_of(out), rows_of(inline_dataset))

    file.write_text(file.read_text() + json.dumps({"caption": "a", "phrases": []}) + "\n")
    with expect_error(ResumeError, key="output.path"):
        run(config)
    file.write_text('{"caption": "a", "phrases": []}\n')
    with expect_error(InputError, key="input.phrases"):
        run(RunConfig.model_validate({**values, "output": {"path": str(tmp_path / "other")}}))
    assert not list((tmp_path / "other").rglob("*.json")), "before any work"


@pytest.mark.parametrize("name", ["captions.json", "captions.jsonl", "Captions.CSV"])
def test_captioned_images_are_not_read_as_lines_of_text(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_text('{"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": []}\n')
    code, out, err = called("phrases", file)
    assert (code, out) == (2, "")
    assert "--out FILE" in err
    assert_message(err)
