"""Images of rows: embedded, in the folder of the run, moved; and names that lead elsewhere."""

from pathlib import Path
from typing import Any

import pytest

from phrasebox.pipeline.dataset.folder import Dataset
from phrasebox.pipeline.dataset.origin import ImageSource
from phrasebox.pipeline.dataset.signature import sign
from phrasebox.stages.contract.errors import ConfigError, InputError, RowFault
from phrasebox.stages.images.faults import DecodeLimits
from tests.messages import expect_error


def dataset_of(**source: Any) -> Dataset:
    """A dataset that was made here from an input with this configuration."""
    run = sign({"config": {"input": source}})
    return Dataset(path=Path("/nowhere"), manifest={}, run=run, shards=())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images and captions, with a secret beside them."""
    (tmp_path / "images" / "deep").mkdir(parents=True)
    for name in ("images/a.jpg", "images/deep/ö [1].jpg", "images/captions.jsonl", "secret.jpg"):
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


def fault(source: ImageSource, name: str) -> tuple[str, str]:
    """Reason and detail of an image that cannot be had."""
    with pytest.raises(RowFault) as caught:
        source.load({"file_name": name})
    return caught.value.error.reason, caught.value.error.detail


@pytest.mark.parametrize("kind", ["jsonl", "csv", "coco_captions"])
def test_the_folder_of_the_run(kind: str, folder: Path) -> None:
    """The image root, or the folder of the captions, or the folder that was given for them."""
    images = str(folder / "images")
    given = ImageSource(dataset_of(kind=kind, path="/elsewhere/captions.jsonl", image_root=images))
    for path in (
        f"{images}/captions.jsonl",
        images,
        f"{images}/gone.jsonl",
        f"file://{images}/captions.jsonl",
    ):
        assert ImageSource(dataset_of(kind=kind, path=path)).root == given.root == images
    assert given.load({"file_name": "a.jpg"}) == b"images/a.jpg"
    assert given.load({"file_name": "./deep/../deep/ö [1].jpg"}) == "images/deep/ö [1].jpg".encode()


def test_a_path_that_looks_like_a_pattern(folder: Path) -> None:
    """Is none if there is such a file; else the images may be in many folders."""
    odd = folder / "[1] {a}"
    odd.mkdir()
    (odd / "captions.csv").touch()
    assert ImageSource(dataset_of(kind="csv", path=str(odd / "captions.csv"))).root == str(odd)
    for pattern in ("*/captions.csv", "part-{00..09}/captions.csv", "part-?.csv", "part-[0-9].csv"):
        assert ImageSource(dataset_of(kind="csv", path=f"{folder}/{pattern}")).root is None


@pytest.mark.parametrize("path", ["/data/{00..09}.tar", ["/data/a.jsonl", "/data/b.jsonl"]], ids=str)
def test_no_folder(path: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says what to do; a folder that is given helps, also a relative one."""
    dataset = dataset_of(kind="webdataset" if isinstance(path, str) else "jsonl", path=path)
    reason, detail = fault(ImageSource(dataset), "a.jpg")
    assert reason == "missing_image"
    assert "give the folder, or run again with output.embed_images=true" in detail
    monkeypatch.chdir(folder)
    for root in (str(folder / "images"), "images", f"file://{folder}/images"):
        assert ImageSource(dataset, root).load({"file_name": "a.jpg"}) == b"images/a.jpg"
    for missing in ("none", "secret.jpg"):
        with expect_error(InputError):
            ImageSource(dataset, str(folder / missing))


ELSEWHERE = ["../secret.jpg", "deep/../../secret.jpg", "//etc/passwd"]
NOWHERE = [".", "deep", "a.jpg/b.jpg", "x" * 300, "s3://bucket/a.jpg", "gone.jpg"]


@pytest.mark.parametrize("name", [*ELSEWHERE, "a\0.jpg", "", *NOWHERE])
def test_names_that_lead_elsewhere_or_nowhere(name: str, folder: Path) -> None:
    source = ImageSource(dataset_of(kind="jsonl", path="/a.jsonl", image_root=str(folder / "images")))
    reason, detail = fault(source, name)
    assert reason == ("missing_image" if name in NOWHERE else "bad_location")
    assert name in NOWHERE or repr(name) in detail


def test_embedded_images(folder: Path) -> None:
    """Need no folder, and their name is only a name; the limits are those of files."""
    image = {"bytes": b"embedded", "path": "a.jpg"}
    row = {"file_name": "../secret.jpg", "image": image}
    assert ImageSource(dataset_of(kind="webdataset", path="/gone/0.tar")).load(row) == b"embedded"
    source = ImageSource(dataset_of(kind="jsonl", path="/a.jsonl"), str(folder / "images"))
    assert source.load({"file_name": "a.jpg", "image": None}) == b"images/a.jpg", "of a row with an error"
    source.limits = DecodeLimits(max_bytes=6)
    assert fault(source, "a.jpg")[0] == "image_too_large"
    with expect_error(RowFault):
        source.load(row)


def test_a_stranger_names_no_folder(folder: Path) -> None:
    """Also none inside; who wants to read there names it too."""
    source = {"kind": "jsonl", "path": "/gone/a.jsonl", "image_root": str(folder)}
    for path in (folder, folder / "images"):
        stranger = Dataset(path=path, manifest={}, run={"config": {"input": source}}, shards=())
        with expect_error(ConfigError, key="image_root"):
            ImageSource(stranger).check()
        assert fault(ImageSource(stranger), "secret.jpg")[0] == "missing_image"
        named = ImageSource(stranger, str(folder))
        named.check()
        assert named.load({"file_name": "secret.jpg"}) == b"secret.jpg"
