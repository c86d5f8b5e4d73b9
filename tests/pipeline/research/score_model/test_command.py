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


def test_the_figures_and_their_intervals(scores: Json) -> None:
    for key in ("regions", "described"):
        assert list(scores[key]) == ["roi", "mask", "crop"]
        for figures in scores[key].values():
            assert set(figures) == {"top1", "top5", "mean_per_class", "n"}
            assert figures["n"] == scores["counts"]["boxes"] > 3 * COUNT / 2
    for key in ("phrases", "phrases_pool"):
        assert set(scores[key]) == {"recall_1", "recall_5", "chance_1", "n"}
    retrieval = scores["retrieval"]
    assert retrieval["t2i_n"] == retrieval["i2t_n"] == scores["counts"]["images"] == COUNT
    figures = [*scores["regions"]["roi"].values(), *scores["phrases"].values(), *retrieval.values()]
    for figure in (each for each in figures if isinstance(each, dict)):
        assert 0 <= figure["low"] <= figure["value"] <= figure["high"] <= 1
    assert scores["counts"]["classes"]["regions"] == 36


def test_a_model_that_knows_things_is_far_above_chance(scores: Json) -> None:
    assert scores["regions"]["crop"]["top1"]["low"] > 1 / 36
    assert scores["regions"]["roi"]["top1"]["low"] > 2 / 36
    assert scores["phrases"]["recall_1"]["low"] > scores["phrases"]["chance_1"]["high"]
    assert scores["phrases_pool"]["recall_1"]["low"] > 5 * scores["phrases_pool"]["chance_1"]["high"]
    assert scores["retrieval"]["t2i_r1"]["low"] > 5 / COUNT


def test_boxes_of_other_things_are_worse(scores: Json, drawn: Path, tmp_path: Path) -> None:
    """The control: every thing gets the box of another one, so that features say nothing of the name."""
    truth = read_json(drawn / "truth.json")
    things = truth["annotations"]
    boxes = [thing["bbox"] for thing in things]
    for thing, box in zip(things, boxes[1:] + boxes[:1], strict=True):
        thing["bbox"] = box
        del thing["segmentation"]
    write_json(tmp_path / "truth.json", truth)
    shuffled = json.loads(printed(*command(drawn, "--no-crops", "--json", truth=tmp_path / "truth.json")))
    assert list(shuffled["regions"]) == ["roi"], "neither masks nor crops"
    for figure in ("top1", "top5"):
        assert shuffled["regions"]["roi"][figure]["value"] < scores["regions"]["roi"][figure]["value"] - 0.1
    assert shuffled["retrieval"] == scores["retrieval"], "which boxes do not touch"


@pytest.mark.slow
def test_the_same_again_and_compared_with_itself(scores: Json, drawn: Path, tmp_path: Path) -> None:
    other = tmp_path / "before.json"
    write_json(other, scores)
    again = json.loads(printed(*command(drawn, "--compare", other, "--json")))
    added = {"compared_with": "demo", "asked_differently": [], "differences": again["differences"]}
    assert {**again, "seconds": 0} == {**scores, "seconds": 0, **added}
    for figure in again["differences"]["regions"]["roi"].values():
        assert not isinstance(figure, dict) or (figure["value"], figure["low"], figure["high"]) == (0, 0, 0)
    out = printed(*command(drawn, "--residual", "--no-crops", "--compare", other))
    for words in ("below each: the difference from demo", "which was asked differently: ", "residual"):
        assert words in out
    assert "crop, embedded" not in out


def test_a_damaged_image_is_named_and_left_out(drawn: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(drawn, tmp_path / "few"))
    lines = (folder / "captions.jsonl").read_text().splitlines()[:4]
    (folder / "captions.jsonl").write_text("\n".join(lines))
    damaged = folder / "images" / json.loads(lines[1])["image"]
    damaged.write_bytes(damaged.read_bytes()[:500])
    out = printed(*command(folder, "--no-crops"))
    for words in (
        "1 images cannot be opened and are left out: 1 bad_image",
        "captions.jsonl:2",
        "3 images, 3 captions",
    ):
        assert words in out


def test_without_truth_there_is_retrieval_alone(drawn: Path) -> None:
    given = ("--data", drawn / "captions.jsonl", "--images", drawn / "images", "--limit", 6)
    figures = json.loads(printed("score-model", "demo", *given, "--json"))
    assert figures["regions"] == {}
    assert "phrases" not in figures
    assert figures["retrieval"]["i2t_n"] == 6


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
        "pipeline.research.score_model.job.load", lambda *_: pytest.fail("the model was loaded")
    )
    code, out, err = called(*shlex.split(command.replace("{drawn}", str(drawn))))
    assert (code, out) == (2, "")
    assert_message(err)


def test_scores_of_other_images_are_rejected(scores: Json, drawn: Path, tmp_path: Path) -> None:
    write_json(tmp_path / "other.json", {**scores, "images": ["x.jpg"]})
    code, _, err = called(*command(drawn, "--compare", tmp_path / "other.json"))
    assert (code, "--compare: its figures are of other images" in err) == (2, True)


def test_a_truth_of_another_size_is_refused(drawn: Path, tmp_path: Path) -> None:
    truth = read_json(drawn / "truth.json")
    for image in truth["images"]:
        image["width"] *= 2
    for thing in truth["annotations"]:
        thing["bbox"][0] *= 2
        thing["bbox"][2] *= 2
        del thing["segmentation"]
    write_json(tmp_path / "truth.json", truth)
    given = command(drawn, "--no-crops", "--limit", 5, truth=tmp_path / "truth.json")
    code, _, err = called(*given)
    assert (code, "(--resized)" in err) == (2, True)
    printed(*given, "--resized")
