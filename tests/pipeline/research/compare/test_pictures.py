"""The sample: which images and phrases are asked, the same for the same seed."""

import json
from collections import defaultdict
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from phrasebox.pipeline.config.run_config import RunConfig
from phrasebox.pipeline.demo.scenes import write_scenes
from phrasebox.pipeline.research.compare.pictures import ComparedImage, Source, read_images
from phrasebox.stages.contract.errors import InputError
from tests.build.files import read_json, read_lines
from tests.factories import SPEC
from tests.messages import expect_error

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    write_scenes(folder, 8, 21, side_px=64)
    rows = read_lines(folder / "captions.jsonl")
    rows[2]["image"] = "missing.jpg"
    rows[3]["caption"] = "beautiful!"
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return folder


def sample(
    scenes: Path, truth: bool = True, console: Console = QUIET, most: int = 8
) -> list[ComparedImage]:
    values_of_input = {
        "kind": "jsonl",
        "path": str(scenes / "captions.jsonl"),
        "image_root": str(scenes / "images"),
    }
    config = RunConfig.model_validate({"input": values_of_input})
    truth_path = scenes / "truth.json" if truth else None
    return read_images(Source(name="scenes", config=config, truth=truth_path, most=most), SPEC, console)


def test_every_question_has_a_place_and_pixels(scenes: Path) -> None:
    images = sample(scenes)
    assert [image.number for image in images] == list(range(6)), "two have no picture and no phrase"
    truth = read_json(scenes / "truth.json")
    boxes: dict[tuple[int, str], set[tuple[float, ...]]] = defaultdict(set)
    for one in truth["annotations"]:
        if one["mentioned"]:
            boxes[one["image_id"], one["phrase"]].add(tuple(one["bbox"]))
    for image in images:
        assert image.record.pixels.rgb.shape == (32, 32, 3)
        assert image.record.phrases == tuple(question.phrase for question in image.questions)
        number = int(image.record.sample.sample_id.rsplit("-", 1)[1]) + 1
        for question in image.questions:
            assert set(question.query.true_target.boxes_xywh_px) == boxes[number, question.phrase.text]


def test_a_sample_is_drawn_from_the_whole_input_the_same_again(scenes: Path) -> None:
    few, again = ([image.record.sample.sample_id for image in sample(scenes, most=3)] for _ in range(2))
    assert few == again
    numbers = [int(name.rsplit("-", 1)[1]) for name in few]
    assert max(numbers) > 3, "not the first ones"


def test_without_truth_phrases_have_things_from_their_captions(scenes: Path) -> None:
    images = sample(scenes, truth=False)
    assert len(images) == 6
    for image in images:
        assert all(question.query is None for question in image.questions)
        objects = [question.object_ for question in image.questions]
        assert "" not in objects
        assert len(set(objects)) == len(objects), "a scene's caption names each thing once"


def test_what_is_left_out_is_said(scenes: Path, tmp_path: Path) -> None:
    output = StringIO()
    sample(scenes, truth=False, console=Console(file=output, width=200))
    expected = (
        "2 of 8 images are left out: 1 cannot be opened, the others name nothing that can be asked for\n"
    )
    assert output.getvalue() == expected
    (tmp_path / "images").symlink_to(scenes / "images")
    row = {"id": "a", "image": "000000.jpg", "caption": "beautiful!"}
    (tmp_path / "captions.jsonl").write_text(json.dumps(row) + "\n")
    with expect_error(InputError):
        sample(tmp_path, truth=False)
