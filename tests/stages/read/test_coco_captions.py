from pathlib import Path
from typing import Any

import pytest

from phrasebox.stages.contract.errors import InputError
from tests.build.datasets import Json
from tests.build.files import write_json
from tests.messages import expect_error
from tests.stages.read.inputs import reader_of, reason, samples_of


def write(path: Path, images: Any, annotations: Any) -> str:
    write_json(path, {"info": {}, "images": images, "annotations": annotations})
    return str(path)


def image(number: int, name: str | None = None) -> Json:
    return {"id": number, "file_name": name or f"{number:012d}.jpg", "height": 1, "width": 1}


def caption(number: int, image_id: Any, text: Any) -> Json:
    return {"id": number, "image_id": image_id, "caption": text}


def test_captions_of_an_image_are_together_in_order(tmp_path: Path) -> None:
    annotations = [caption(5, 2, "e"), caption(1, 1, "a"), caption(4, 2, "d"), caption(2, 1, "b")]
    path = write(tmp_path / "c.json", [image(2), image(1), image(3)], annotations)
    (tmp_path / "val").mkdir()
    for piece_size in (1, 2, 100):
        samples = samples_of(
            kind="coco_captions", path=path, image_root=str(tmp_path / "val"), piece_size=piece_size
        )
        assert [(sample.sample_id, sample.captions) for sample in samples] == [
            ("2", ("e", "d")), ("1", ("a", "b")), ("3", ()),
        ]  # fmt: skip
        assert [sample.error for sample in samples] == [None] * 3
        assert samples[0].image.url == f"{tmp_path}/val/000000000002.jpg"
        assert samples[0].source == "c.json:image 2"


def test_karpathy_s_splits_are_read(tmp_path: Path) -> None:
    flickr = {
        "imgid": 7,
        "filename": "b.jpg",
        "split": "val",
        "sentences": [{"raw": "A dog.", "tokens": ["a", "dog"]}],
    }
    coco = {
        "cocoid": 9,
        "imgid": 0,
        "filepath": "val2014",
        "filename": "9.jpg",
        "sentences": [{"raw": "a"}, {"raw": "b"}],
    }
    images = [
        flickr,
        coco,
        {"filename": "c.jpg", "sentences": [{"tokens": []}, "d"]},
        {"filename": "e.jpg"},
    ]
    write_json(tmp_path / "c.json", {"images": images, "dataset": "coco"})
    samples = samples_of(kind="coco_captions", path=str(tmp_path / "c.json"), image_root=str(tmp_path))
    assert [(sample.sample_id, sample.captions, reason(sample)) for sample in samples] == [
        ("7", ("A dog.",), None),
        ("9", ("a", "b"), None),
        ("2", ("d",), None),
        ("c.json:images[3]", (), "bad_row"),
        ("c.json:annotations[3]", (), "bad_caption"),
    ]
    assert [sample.image.url for sample in samples[:2]] == [
        f"{tmp_path}/b.jpg",
        f"{tmp_path}/val2014/9.jpg",
    ]


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b'{"images": [' + b"9" * 5000 + b"]}",
        b'{"images": [], "captions": []}',
        b'{"images": [], "annotations": [{"id": 1, "bbox": [], "category_id": 2}]}',
    ],
)
def test_other_files_are_rejected(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "c.json").write_bytes(content)
    with expect_error(InputError):
        reader_of(kind="coco_captions", path=str(tmp_path / "c.json")).pieces()
