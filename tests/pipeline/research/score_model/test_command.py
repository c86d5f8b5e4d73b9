"""`phrasebox score-model` on drawn scenes: what a model knows is found, and what cannot be used is refused at once."""

import json
import shlex
import shutil
from pathlib import Path

import pytest

from tests.build.datasets import Json
from tests.build.files import read_json, write_json
from tests.messages import assert_message
from tests.pipeline.commands.evaluated import called, drawing, printed

COUNT = 20


drawn = drawing(COUNT, 5)


def command(folder: Path, *more: object, truth: Path | None = None) -> tuple[object, ...]:
    given = ("score-model", "demo", "--data", folder / "captions.jsonl", "--images", folder / "images")
    return (*given, "--truth", truth or folder / "truth.json", "--prompt", "a {}", *more)


@pytest.fixture(scope="module")
def scores(drawn: Path) -> Json:
    return dict(json.loads(printed(*command(drawn, "--json"))))


def test_a_model_that_knows_objects_is_far_above_chance(scores: Json) -> None:
    figures = scores["figures"]
    for name in ("regions.roi", "described.roi"):
        assert set(figures[name]) == {"top1", "top5", "mean_per_class"}
        assert figures[name]["top1"]["n"] == scores["counts"]["boxes"] > 3 * COUNT / 2
    assert scores["counts"]["classes"]["regions"] == 36
    assert figures["regions.roi"]["top1"]["low"] > 2 / 36
    assert figures["phrases"]["recall_1"]["low"] > figures["phrases"]["chance_1"]["high"]
    assert figures["phrases_pool"]["recall_1"]["low"] > 5 * figures["phrases_pool"]["chance_1"]["high"]
    assert figures["t2i"]["r1"]["low"] > 5 / COUNT
    assert figures["i2t"]["r1"]["n"] == scores["counts"]["images"] == COUNT


def test_boxes_of_other_objects_are_worse(scores: Json, drawn: Path, tmp_path: Path) -> None:
    """The control: every object gets the box of another one, so that features say nothing of the name."""
    truth = read_json(drawn / "truth.json")
    objects = truth["annotations"]
    boxes = [object_["bbox"] for object_ in objects]
    for object_, box in zip(objects, boxes[1:] + boxes[:1], strict=True):
        object_["bbox"] = box
        del object_["segmentation"]
    write_json(tmp_path / "truth.json", truth)
    shuffled = json.loads(printed(*command(drawn, "--json", truth=tmp_path / "truth.json")))["figures"]
    top1, control = (part["regions.roi"]["top1"] for part in (scores["figures"], shuffled))
    assert control["value"] < top1["value"] - 0.1
    assert shuffled["t2i"] == scores["figures"]["t2i"], "which boxes do not touch"


@pytest.mark.slow
def test_the_same_again_and_compared_with_itself(scores: Json, drawn: Path, tmp_path: Path) -> None:
    other = tmp_path / "before.json"
    write_json(other, scores)
    again = json.loads(printed(*command(drawn, "--compare", other, "--json")))
    comparison = again["comparison"]
    assert {**again, "seconds": 0, "comparison": None} == {**scores, "seconds": 0}
    for figure in comparison["differences"]["regions.roi"].values():
        assert (figure["value"], figure["low"], figure["high"]) == (0, 0, 0)
    assert "over demo" in printed(*command(drawn, "--compare", other))


def test_a_damaged_image_is_named_and_left_out(drawn: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(drawn, tmp_path / "few"))
    lines = (folder / "captions.jsonl").read_text().splitlines()[:4]
    (folder / "captions.jsonl").write_text("\n".join(lines))
    damaged = folder / "images" / json.loads(lines[1])["image"]
    damaged.write_bytes(damaged.read_bytes()[:500])
    out = printed(*command(folder))
    for words in (
        "images cannot be opened and are left out: 1 bad_image",
        "captions.jsonl:2",
        "3 images, 3 captions",
    ):
        assert words in out


def test_without_truth_there_is_retrieval_alone(drawn: Path) -> None:
    given = ("--data", drawn / "captions.jsonl", "--images", drawn / "images", "--limit", 6)
    figures = json.loads(printed("score-model", "demo", *given, "--json"))["figures"]
    assert {kind: part["r1"]["n"] for kind, part in figures.items()} == {"t2i": 6, "i2t": 6}


DATA = "score-model demo --data {drawn}/captions.jsonl --images {drawn}/images"

REFUSED = [
    "score-model nothing --data {drawn}/captions.jsonl",
    "score-model demo --data nothing.jsonl",
    f"{DATA} --set explain.blocks=1",
    f"{DATA} --prompt 'a photo'",
    f"{DATA} --truth nothing.json",
    f"{DATA} --compare {{drawn}}/truth.json",
    f"{DATA} --compare {{drawn}}/x.json",
]


@pytest.mark.parametrize("command", REFUSED)
def test_what_cannot_be_used_is_rejected_before_any_work(command: str, drawn: Path, monkeypatch) -> None:
    monkeypatch.setattr(
        "phrasebox.pipeline.research.score_model.job.load", lambda *_: pytest.fail("the model was loaded")
    )
    code, out, err = called(*shlex.split(command.replace("{drawn}", str(drawn))))
    assert (code, out) == (2, "")
    assert_message(err)


@pytest.mark.parametrize("other", [{"images": ["x.jpg"]}, {"prompts": ["{}"]}])
def test_scores_of_other_questions_are_rejected(
    other: Json, scores: Json, drawn: Path, tmp_path: Path
) -> None:
    write_json(tmp_path / "other.json", {**scores, **other})
    code, _, err = called(*command(drawn, "--compare", tmp_path / "other.json"))
    assert (code, f"--compare: its figures are of other {next(iter(other))}" in err) == (2, True)


def test_a_truth_of_another_size_is_refused(drawn: Path, tmp_path: Path) -> None:
    truth = read_json(drawn / "truth.json")
    for image in truth["images"]:
        image["width"] *= 2
    for object_ in truth["annotations"]:
        object_["bbox"][0] *= 2
        object_["bbox"][2] *= 2
        del object_["segmentation"]
    write_json(tmp_path / "truth.json", truth)
    given = command(drawn, "--limit", 5, truth=tmp_path / "truth.json")
    code, _, err = called(*given)
    assert (code, "(--resized)" in err) == (2, True)
    printed(*given, "--resized")
