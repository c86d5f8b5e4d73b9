"""Trainers of vision-language models: ms-swift, LLaMA-Factory, Qwen's own and LLaVA."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.architecture.source import ROOT
from tests.build.files import read_json, read_lines
from tests.build.records import HEIGHT, WIDTH
from tests.pipeline.export.datasets import exported
from tests.trainers.scenes import IMAGES, expected
from tests.trainers.sources import LLAMA_FACTORY, LLAVA, QWEN_VL, run_loader
from tests.trainers.tiny_qwen import write_qwen

RESIZED = (84, 56)
"""The size in pixels that Qwen2.5-VL gives these images: multiples of 28 with 56 * 56 pixels or more."""


def as_boy(name: str) -> str:
    """A name of an object; one is asked for by either of two."""
    return {"young child": "boy"}.get(name, name).removeprefix("A ")


EVERY_BOX = sorted((as_boy(name), box) for name, box in expected() + expected(per="phrase"))
"""What is located and what is grounded: (name, box x0, y0, x1, y1 px)."""


def boxes_in(answer: str, scale: Sequence[int]) -> list[tuple[str, tuple[int, ...]]]:
    """The named boxes of an answer in pixels of the image; scale: width and height that they count by."""
    if not answer.startswith("["):
        return []
    factors = (WIDTH / scale[0], HEIGHT / scale[1]) * 2
    boxes = ((entry["label"], np.array(entry["bbox_2d"]) * factors) for entry in json.loads(answer))
    return [(as_boy(label), tuple(box.round().astype(int).tolist())) for label, box in boxes]


def test_ms_swift_takes_chat(scenes: Path, tmp_path: Path) -> None:
    """Each record is a row with its references and boxes, which the template of Qwen-VL scales to 0 .. 1000."""
    from swift.dataset import load_dataset
    from swift.template.template_inputs import StdTemplateInputs
    from swift.template.templates.qwen import Qwen2VLTemplate

    out, _ = exported("chat", scenes, tmp_path / "out", {"images": True})
    records = read_lines(out / "train.jsonl")
    rows, _ = load_dataset([str(out / "train.jsonl")], num_proc=1, split_dataset_ratio=0.0)
    read = sorted(json.dumps([row["messages"][0]["content"], row["objects"]["bbox"]]) for row in rows)
    assert read == sorted(
        json.dumps([one["messages"][0]["content"], one["objects"]["bbox"]]) for one in records
    )
    template = Qwen2VLTemplate.__new__(Qwen2VLTemplate)
    for record in records[:9]:
        inputs = StdTemplateInputs.from_dict(json.loads(json.dumps(record)))
        inputs = inputs[0] if isinstance(inputs, tuple) else inputs
        inputs.objects |= {"width": [WIDTH], "height": [HEIGHT]}
        template.normalize_bbox(inputs)
        scales = np.array([1000 / WIDTH, 1000 / HEIGHT] * 2)
        wanted = np.array(record["objects"]["bbox"]).reshape(-1, 4) * scales
        assert inputs.objects["bbox"] == wanted.round().astype(int).tolist()


@pytest.mark.parametrize("style", ["ms-swift-json", "qwen2.5-vl"])
def test_an_epoch_of_training(style: str, scenes: Path, tmp_path: Path) -> None:
    """The answers that the model learns have the dataset's boxes, and it learns them."""
    out, _ = exported("chat", scenes, tmp_path / "out", {"images": True, "style": style})
    model = write_qwen(tmp_path / "model")
    (records,) = out.glob("*.jsonl")
    trained = run_loader(
        "ms_swift", model, out / "images" / "train", records, tmp_path / "trained", paths=[]
    )
    texts = [text.removesuffix("<|im_end|>\n").removesuffix("<|im_end|>") for text in trained["texts"]]
    assert len(texts) == len(records.read_text().splitlines())
    assert sorted(entry for text in texts for entry in boxes_in(text, RESIZED)) == EVERY_BOX
    assert texts.count("[]") == IMAGES - IMAGES // 4, "the cat is absent"
    losses = trained["losses"]
    assert np.isfinite(losses).all()
    assert np.mean(losses[-9:]) < 0.7 * np.mean(losses[:9])


def test_llama_factory_reads_turns_as_they_are(scenes: Path, tmp_path: Path) -> None:
    """Registered as the guide says; boxes are text to it."""
    out, _ = exported("chat", scenes, tmp_path / "out", {"images": True, "style": "qwen3-vl"})
    guide = (ROOT / "docs/how-to/train-a-vision-language-model.md").read_text("utf-8")
    (entry,) = re.findall(r"^```json\n(\{\n.*?)\n```$", guide, re.MULTILINE | re.DOTALL)
    (out / "dataset_info.json").write_text(entry)
    images = out / "images" / "train"
    read = LLAMA_FACTORY.load("llama_factory", out, images, "phrasebox")
    records = read_lines(out / "train.jsonl")
    turns = [
        [str(images / record["image"]), *(turn["value"] for turn in record["conversations"])]
        for record in records
    ]
    assert read == turns
    assert all(question.count("<image>") == 1 and Path(image).is_file() for image, question, _ in read)


@pytest.mark.parametrize("style", ["qwen3-vl", "qwen2.5-vl"])
def test_qwen_s_own_trainer(style: str, scenes: Path, tmp_path: Path) -> None:
    """Boxes of Qwen3-VL are thousandths, those of Qwen2.5-VL pixels of the image that its processor makes."""
    pixels = (9000, 50176)
    settings = {"images": True, "style": style, "min_pixels": pixels[0], "max_pixels": pixels[1]}
    out, _ = exported("chat", scenes, tmp_path / "out", settings)
    (records,) = out.glob("*.jsonl")
    answers = QWEN_VL.load("qwen_vl", out / "images" / "train", records, *pixels)
    assert len(answers) == len(records.read_text().splitlines())
    read = [
        entry
        for answer, resized in answers
        for entry in boxes_in(answer, resized if style == "qwen2.5-vl" else (1000, 1000))
    ]
    assert sorted(read) == EVERY_BOX


def test_llava(scenes: Path, tmp_path: Path) -> None:
    """Boxes are shares of the square that its loader pads the image to; hundredths of 40 pixels are within one."""
    out, _ = exported("chat", scenes, tmp_path / "out", {"images": True, "style": "llava"})
    answers = LLAVA.load("llava_train", out / "images" / "train", out / "train.json")
    records = read_json(out / "train.json")
    assert [answer for answer, *_ in answers] == [record["conversations"][1]["value"] for record in records]
    read = []
    for answer, side, (top, bottom) in answers:
        assert bottom - top == HEIGHT
        for text in re.findall(r"\[([\d., ]+)\]", answer):
            box = np.array([float(share) for share in text.split(", ")]) * side - (0, top, 0, top)
            read.append(tuple(box.round().astype(int).tolist()))
    assert sorted(read) == sorted(box for _, box in EVERY_BOX)
