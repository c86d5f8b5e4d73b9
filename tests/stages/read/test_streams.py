"""Compressed files that break off: all that comes before the damage is read."""

import bz2
import gzip
import lzma
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from phrasebox.stages.contract.errors import RowFault
from phrasebox.stages.read import streams
from phrasebox.stages.read.streams import iter_lines, open_plain
from tests.messages import expect_error
from tests.stages.read.inputs import zstd

CONTENT = random.Random(0).randbytes(1_500_000)


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": lambda content: bz2.compress(content, 1),
    "xz": lzma.compress,
    "zst": zstd,
}


@pytest.mark.parametrize("packer", PACKERS)
def test_what_comes_before_a_cut_is_read(packer: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{packer}"
    packed = PACKERS[packer](CONTENT)
    path.write_bytes(packed)
    with open_plain(str(path)) as stream:
        assert stream.read(-1) == CONTENT
    path.write_bytes(packed[: len(packed) // 2])
    pieces: list[bytes] = []
    with open_plain(str(path)) as stream, expect_error(RowFault):
        pieces.extend(iter(lambda: stream.read(1_048_576), b""))
    content = b"".join(pieces)
    assert CONTENT.startswith(content)
    assert len(content) > len(CONTENT) // 2 - 400_000, "at most a block of the format is lost"


@pytest.mark.parametrize("size", [1000, 1001, 1060, 6000])
@pytest.mark.parametrize("before", [b"", b"x\n", b"x" * 63 + b"\n"])
@pytest.mark.parametrize("end", [b"", b"\nafter"])
def test_the_limit_of_a_line_does_not_depend_on_where_it_stands(
    size, before, end, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(streams, "MAX_LINE_BYTES", 1000)
    monkeypatch.setattr(streams, "_BLOCK_BYTES", 64)
    (tmp_path / "a").write_bytes(before + b"y" * size + end)
    with open_plain(str(tmp_path / "a")) as stream:
        lines = [content for _, _, content in iter_lines(stream)]
    line = lines[len(before.split())]
    if size > 1000:
        assert line.error.detail == f"the line has {size} bytes, more than the 1000 that are read"
    else:
        assert line == b"y" * size
    assert lines[-1] == (b"after" if end else line)
