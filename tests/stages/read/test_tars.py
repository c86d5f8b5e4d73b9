from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.read.webdataset import Member, iter_members
from tests.stages.read.inputs import tar_sample, write_tar


def everything(content: bytes, *, can_seek: bool) -> list[Member]:
    return list(iter_members(io.BytesIO(content), can_seek=can_seek, wants=lambda member: True))


def archive(tmp_path: Path) -> bytes:
    sparse = tarfile.TarInfo("folder")
    sparse.type = tarfile.DIRTYPE
    members = [sparse, *tar_sample("n" * 150), ("empty.txt", b""), ("big.jpg", b"x" * 3000), *tar_sample("b")]
    return write_tar(tmp_path / "t.tar", members).read_bytes()


def test_members_with_their_places(tmp_path: Path) -> None:
    content = archive(tmp_path)
    members = everything(content, can_seek=True)
    assert everything(content, can_seek=False) == members
    assert len(members) == 8
    for member in members:
        assert member.content == content[member.data_offset : member.data_offset + member.size]
        assert member.kind == "a file"
    assert members[3].size == 0


@settings(max_examples=80)
@given(st.data())
def test_damaged_headers_never_raise(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    content = bytearray(archive(tmp_path_factory.mktemp("tar")))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        _mend_checksums(content)
    length = data.draw(st.integers(0, len(content)))
    for can_seek in (True, False):
        members = everything(bytes(content[:length]), can_seek=can_seek)
        assert all(not member.damage for member in members[:-1])
        assert sum(len(m.content or b"") for m in members) <= length * len(members)


def _mend_checksums(content: bytearray) -> None:
    """Make damaged headers pass tarfile's check, so that their fields are parsed."""
    for start in range(0, len(content) - 511, 512):
        if content[start + 257 : start + 262] == b"ustar":
            content[start + 148 : start + 156] = b" " * 8
            content[start + 148 : start + 156] = b"%06o\0 " % sum(content[start : start + 512])
