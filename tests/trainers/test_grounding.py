"""Trainers of grounding: MDETR, MMDetection, Open-GroundingDino, CLIPSelf, SAM 3, and ms-swift for Kosmos-2."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from tests.build.records import HEIGHT, WIDTH
from tests.pipeline.export.datasets import exported
from tests.trainers.scenes import CATS, IMAGES, PIEBALD, expected
from tests.trainers.sources import CLIPSELF, MDETR, OPEN_GROUNDINGDINO, SAM3, run_loader

Entries = list[tuple[str, tuple[int, ...]]]


def whole(entries: list[list]) -> Entries:
    """Entries of JSON with boxes in whole pixels, sorted."""
    return sorted((name, tuple(round(edge) for edge in box)) for name, box in entries)


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of RoBERTa's kind, made from the captions: the published one is a download."""
    from tokenizers import ByteLevelBPETokenizer

    folder = tmp_path_factory.mktemp("vocabulary")
    tokenizer = ByteLevelBPETokenizer()
    texts = ["A boy with a dog\na young child and two dogs\na black/white cat"] * 9
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer.train_from_iterator(texts, vocab_size=400, special_tokens=special, show_progress=False)
    tokenizer.save_model(str(folder))
    return folder


@pytest.mark.parametrize("per", ["phrase", "group"])
def test_mdetr(per: str, scenes: Path, vocabulary: Path, tmp_path: Path) -> None:
    """The tokens of all phrases of an object are positive, in both of its datasets; masks fit boxes."""
    out, _ = exported("mdetr", scenes, tmp_path / "out", {"images": True}, per=per)
    answer = MDETR.load("mdetr", out / "images" / "train", out / "train.json", vocabulary)
    names = {"boy": "A boy young child" if per == "group" else "A boy"}
    wanted = [(names.get(name, name), box) for name, box in expected(per=per)]
    for kind in ("modulated", "mixed"):
        read = [(" ".join(name.split()), box) for name, box in answer[kind]]
        assert whole(read) == sorted(wanted)
    assert answer["farthest_px"] <= 1
    boxes = np.array(answer["trained_boxes"])
    assert ((boxes >= 0) & (boxes <= 1)).all()


@pytest.mark.parametrize("per", ["phrase", "group"])
def test_mmdetection_grounding(per: str, scenes: Path, tmp_path: Path) -> None:
    """Every span of a region says one of the phrases of its object."""
    out, _ = exported("odvg", scenes, tmp_path / "out", {"images": True}, per=per)
    read = mmdetection(out / "images" / "train", out / "train.jsonl")
    assert whole([(name, box) for name, _, box in read]) == expected(per=per)
    spans = {name: set(words) for name, words, _ in read}
    boy = {"a boy", "young child"} if per == "group" else {"a boy"}
    assert spans["boy"] == boy
    assert spans["two dogs"] == {"two dogs"}


def test_mmdetection_detection(scenes: Path, tmp_path: Path) -> None:
    out, _ = exported("odvg", scenes, tmp_path / "out", {"images": True, "form": "detection"})
    read = mmdetection(out / "images" / "train", out / "train.jsonl", out / "label_map.json")
    assert whole([(name, box) for name, _, box in read]) == expected()


def mmdetection(*arguments: Path) -> list[list]:
    (folder,) = find_spec("mmdet").submodule_search_locations
    return run_loader("mmdetection", folder, *arguments, paths=[])


def test_open_groundingdino_grounding(scenes: Path, tmp_path: Path) -> None:
    out, _ = exported("odvg", scenes, tmp_path / "out", {"images": True})
    answer = OPEN_GROUNDINGDINO.load("open_groundingdino", out / "images" / "train", out / "train.jsonl")
    assert whole(answer["entries"]) == expected(per="phrase")
    assert answer["side"] >= 480
    assert answer["trained_boxes"]


def test_open_groundingdino_detection(scenes: Path, tmp_path: Path) -> None:
    out, _ = exported("odvg", scenes, tmp_path / "out", {"images": True, "form": "detection"})
    files = (out / "images" / "train", out / "train.jsonl", out / "label_map.json")
    assert whole(OPEN_GROUNDINGDINO.load("open_groundingdino", *files)["entries"]) == expected()


def test_clipself(scenes: Path, tmp_path: Path) -> None:
    """A category's number is the row of its embedding; names are sorted."""
    out, report = exported("clipself", scenes, tmp_path / "out", {"images": True})
    files = (out / "images" / "train", out / "train.json", out / "text_embeddings.npy")
    answer = CLIPSELF.load("clipself", *files)
    names = [PIEBALD, "boy", "dog", "two dogs"]
    assert whole([(names[row], box) for row, box in answer["entries"]]) == expected()
    assert np.allclose(answer["norms"], 1, atol=1e-5)
    assert len(answer["norms"]) == report.categories == len(names)


def test_sam3(scenes: Path, tmp_path: Path) -> None:
    """Its own regions are a perfect answer; absent phrases count; its trainer reads `coco`."""
    saco, _ = exported("saco", scenes, tmp_path / "saco", {"exhaustive": "all"})
    coco, _ = exported("coco", scenes, tmp_path / "coco")
    answer = SAM3.load("saco", saco / "train.json", coco / "annotations" / "instances_train.json")
    scores = {
        name: next(value for key, value in figures.items() if key.endswith("cgF1"))
        for name, figures in answer["figures"].items()
    }
    assert scores["right"] == pytest.approx(1.0, abs=1e-3)
    assert scores["and absent"] < scores["right"]
    assert answer["pairs"] == 5 * IMAGES
    # The loader has a query for each category of an image that has an object of it.
    found = [(name, count) for name, count in answer["queries"] if count]
    assert sorted(found) == sorted(
        [("boy", 1), ("dog", 1), ("two dogs", 2)] * IMAGES + [(PIEBALD, 1)] * CATS
    )


def test_ms_swift_takes_grit(scenes: Path, tmp_path: Path) -> None:
    """It leaves out captions of a phrase with several boxes, without a word."""
    import datasets
    from swift.dataset.dataset.mllm import GritPreprocessor

    out, _ = exported("grit", scenes, tmp_path / "out")
    rows = datasets.load_dataset("parquet", data_dir=str(out / "data"), cache_dir=str(tmp_path / "cache"))[
        "train"
    ]
    preprocessor = GritPreprocessor("grounding", columns={"url": "images"})
    read = []
    sides = np.array([WIDTH, HEIGHT] * 2)
    for row in rows:
        answer = preprocessor.preprocess({**row, "images": row["url"]})
        assert (answer is None) == ("two dogs" in row["caption"])
        if answer is not None:
            boxes = (np.array(answer["objects"]["bbox"]) * sides).tolist()
            names = [text.lower().removeprefix("a ") for text in answer["objects"]["ref"]]
            read += zip(names, boxes, strict=True)
    assert whole(read) == [(name, box) for name, box in expected() if name != "two dogs"]
