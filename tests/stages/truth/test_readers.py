"""The reader that a path gets."""

import codecs
import gzip
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from phrasebox.stages.contract.errors import InputError
from phrasebox.stages.contract.masks import decode_mask, encode_mask
from phrasebox.stages.truth import TRUTHS, kind_of, read_truth
from phrasebox.stages.truth.ground_truth import TruthImage, TruthTarget
from tests.build.files import write_json
from tests.messages import expect_error

EMPTY = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "car"}]}


def made(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        if name.endswith("/"):
            path.mkdir(parents=True)
        else:
            write_json(path, EMPTY)
    return folder


def test_kinds(tmp_path: Path) -> None:
    """The reader of a folder gets the folder."""
    made(tmp_path, "some.JSON", "flickr/Sentences/", "flickr/Annotations/")
    (tmp_path / "tasks.json").write_bytes(codecs.BOM_UTF8 + b" [\n{}]")
    kinds = [kind_of(tmp_path / name) for name in ("some.JSON", "flickr", "tasks.json")]
    assert kinds == [*TRUTHS] == ["coco", "flickr30k", "label_studio"]
    assert read_truth(tmp_path / "some.JSON").categories == {"car"}
    with expect_error(InputError):
        read_truth(tmp_path / "flickr")


@pytest.mark.parametrize("kind", ["zip", "gztar"])
def test_archives_are_read(kind: str, tmp_path: Path) -> None:
    made(tmp_path, "all/", "all/truth.json")
    truth = read_truth(Path(shutil.make_archive(str(tmp_path / "archive"), kind, tmp_path / "all")))
    assert truth.categories == {"car"}
    made(tmp_path, "both/flickr/Sentences/", "both/flickr/Annotations/")
    (tmp_path / "both/flickr/Sentences/7.txt").write_text("a dog")
    for root in (tmp_path / "both", tmp_path / "both" / "flickr"):
        archive = Path(shutil.make_archive(str(tmp_path / root.name), kind, root))
        assert set(read_truth(archive).images) == {"7.jpg"}


def test_archives_that_are_none_or_reach_outside_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"no archive")
    (tmp_path / "cut.tar.gz").write_bytes(gzip.compress(bytes(5000))[:20])
    with tarfile.open(tmp_path / "outside.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("../outside.json"))
    for name in ("a.zip", "cut.tar.gz", "outside.tar"):
        with expect_error(InputError):
            read_truth(tmp_path / name)
    assert not (tmp_path.parent / "outside.json").exists()


@pytest.mark.parametrize("path", ["none.json", "some.txt", "x.json"])
def test_what_is_understood_is_listed(tmp_path: Path, path: str) -> None:
    made(tmp_path, "some.txt", "x.json/", "x.json/Sentences/")
    with expect_error(InputError):
        read_truth(tmp_path / path)


def test_a_truth_is_scaled_to_a_resized_image() -> None:
    mask = np.zeros((4, 6), np.bool_)
    mask[1:3, 2:4] = True
    target = TruthTarget(
        phrase="car", boxes_xywh_px=((2.0, 1.0, 2.0, 2.0),), match="phrase", mask=encode_mask(mask)
    )
    image = TruthImage(file_name="1.jpg", width_px=6, height_px=4, targets=(target,))
    scaled = image.resize((8, 18))
    assert (scaled.height_px, scaled.width_px) == (8, 18)
    (target,) = scaled.targets
    assert target.boxes_xywh_px == ((6.0, 2.0, 6.0, 4.0),)
    assert np.array_equal(decode_mask(target.mask), np.kron(mask, np.ones((2, 3), np.bool_)))
    unsized = replace(image, width_px=0, height_px=0)
    assert unsized.resize((8, 18)) is unsized
