import gzip
import json
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phrasebox.stages.contract.records import Sample
from phrasebox.stages.images.decode import load_image_bytes
from phrasebox.stages.images.faults import DecodeLimits
from phrasebox.stages.read import SkippedRow
from tests.stages.read.inputs import read_all, reason, samples_of, special, tar_bytes, tar_sample, write_tar


def only_item(tmp_path: Path, *members: tuple[str, bytes], **keys: object) -> Sample | SkippedRow:
    """The row of members between two good samples, which must stay unharmed."""
    path = write_tar(tmp_path / "t.tar", [*tar_sample("before"), *members, *tar_sample("later")])
    before, item, after = read_all(kind="webdataset", path=str(path), **keys)
    assert reason(before) is reason(after) is None
    return item


@pytest.mark.parametrize(
    ("members", "file_name", "captions"),
    [
        ([("k.JPG", b"x"), ("k.TXT", b"a")], "k.JPG", ("a",)),
        ([("k.jpg", b"x"), ("k.json", b'{"caption": "b"}'), ("k.txt", b"a")], "k.jpg", ("a",)),
        ([("k.jpg", b"x"), ("k.json", b'{"captions": ["b", "c"]}')], "k.jpg", ("b", "c")),
        ([("k.jpg", b"x"), ("k.txt", b"\xef\xbb\xbfa \n")], "k.jpg", ("a \n",)),
        ([("README", b"x"), ("d.1/e/k.jpg", b"x"), ("d.1/e/k.txt", b"a")], "d.1/e/k.jpg", ("a",)),
        ([("k.cls", b"3"), ("k.jpg", b"x"), ("k.seg.png", b"y"), ("k.txt", b"a")], "k.jpg", ("a",)),
        ([("n" * 300 + ".jpg", b"x"), ("n" * 300 + ".txt", b"a")], "n" * 300 + ".jpg", ("a",)),
    ],
)
def test_members_of_a_sample(tmp_path, members, file_name, captions) -> None:
    sample = only_item(tmp_path, *members)
    assert isinstance(sample, Sample)
    assert (sample.error, sample.image.file_name, sample.captions) == (None, file_name, captions)
    assert load_image_bytes(sample.image, DecodeLimits()) == b"x"


def test_configured_members(tmp_path: Path) -> None:
    facts = json.dumps({"caption": "no", "long": "z", "alt": ["u", "v"]}).encode()
    members = [
        ("k.jpg", b"no"),
        ("k.in.png", b"x"),
        ("k.json", facts),
        ("k.short.txt", b"y"),
        ("k.txt", b"no"),
    ]
    path = write_tar(tmp_path / "t.tar", members)
    captions = ["short.txt", "long", "missing", "alt"]
    (sample,) = samples_of(kind="webdataset", path=str(path), image="in.png", caption=captions)
    assert (sample.image.file_name, sample.captions) == ("k.in.png", ("y", "z", "u", "v"))


def contents(path: Path) -> list[tuple[tuple[str, ...], bytes]]:
    """Captions and image of the good samples of a tar."""
    samples = [sample for sample in samples_of(kind="webdataset", path=str(path)) if sample.error is None]
    return [(sample.captions, load_image_bytes(sample.image, DecodeLimits())) for sample in samples]


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_compressed_tars_carry_their_images(tmp_path: Path, mode: str) -> None:
    members = [*tar_sample("a"), ("b.jpg", b""), ("b.txt", b"x"), *tar_sample("c")]
    plain = write_tar(tmp_path / "t.tar", members)
    packed = write_tar(tmp_path / f"t.tar.{mode[2:]}", members, mode)
    assert contents(packed) == contents(plain)
    assert all(
        sample.image.content is not None for sample in samples_of(kind="webdataset", path=str(packed))
    )


@pytest.mark.parametrize("packed", [False, True])
def test_a_tar_that_breaks_off_anywhere(tmp_path: Path, packed: bool) -> None:
    whole = write_tar(tmp_path / "whole.tar", [*tar_sample("a"), *tar_sample("b"), *tar_sample("c")])
    content = whole.read_bytes()
    path = tmp_path / ("t.tgz" if packed else "t.tar")
    end = 9 * 1024  # nine members of a header and a block each
    counts = set()
    for length in [0, 1, *range(100, end, 256), *range(512, end, 512), end - 1, end]:
        path.write_bytes(gzip.compress(content[:length]) if packed else content[:length])
        *good, last = samples_of(kind="webdataset", path=str(path))
        assert reason(last) == "bad_row", length
        assert last.sample_id == last.source
        assert contents(path) == contents(whole)[: len(good)]
        counts.add(len(good))
    assert counts == {0, 1, 2, 3}


def test_ranges_as_webdataset_writes_them(tmp_path: Path) -> None:
    for number in (9, 10):
        write_tar(tmp_path / f"{number:03d}.tar", tar_sample("a"))
    samples = samples_of(kind="webdataset", path=str(tmp_path / "{009..010}.tar"))
    assert [sample.sample_id for sample in samples] == ["009.tar/a", "010.tar/a"]


ARCHIVE = tar_bytes([special("folder", tarfile.DIRTYPE), *tar_sample("n" * 150), ("big.jpg", b"x" * 3000)])


@settings(max_examples=80)
@given(st.data())
def test_damaged_headers_never_raise(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    content = bytearray(ARCHIVE)
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        _mend_checksums(content)
    folder = tmp_path_factory.mktemp("tar")
    cut = bytes(content[: data.draw(st.integers(0, len(content)))])
    (folder / "a.tar").write_bytes(cut)
    (folder / "b.tar.gz").write_bytes(gzip.compress(cut, 1))
    for sample in read_all(kind="webdataset", path=str(folder)):
        assert len(getattr(sample, "captions", ())) <= 1


def _mend_checksums(content: bytearray) -> None:
    """Make damaged headers pass tarfile's check, so that their fields are parsed."""
    for start in range(0, len(content) - 511, 512):
        if content[start + 257 : start + 262] == b"ustar":
            content[start + 148 : start + 156] = b" " * 8
            content[start + 148 : start + 156] = b"%06o\0 " % sum(content[start : start + 512])
