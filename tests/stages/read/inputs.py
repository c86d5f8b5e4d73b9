"""Inputs that the reader tests write, and the shortest way to read them."""

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import TypeAdapter

from phrasebox.stages.contract.records import Sample
from phrasebox.stages.read import InputConfig, Reader, SkippedRow, make_reader

JPEG = b"\xff\xd8 not decoded by readers \xff\xd9"


def reader_of(**keys: Any) -> Reader:
    return make_reader(TypeAdapter(InputConfig).validate_python(keys))


def read_all(**keys: Any) -> list[Sample | SkippedRow]:
    reader = reader_of(**keys)
    return [item for piece in reader.pieces() for item in reader.read(piece)]


def samples_of(**keys: Any) -> list[Sample]:
    items = read_all(**keys)
    assert all(isinstance(item, Sample) for item in items), items
    return items  # type: ignore[return-value]


def reason(item: Sample | SkippedRow) -> str | None:
    assert isinstance(item, Sample)
    return None if item.error is None else item.error.reason


def write_lines(path: Path, rows: Iterable[Any]) -> Path:
    """Bytes as they are, anything else as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


Member = tuple[str, bytes] | tarfile.TarInfo


def tar_bytes(members: Iterable[Member], mode: str = "w", **options: Any) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode, **options) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                header = tarfile.TarInfo(member[0])
                header.size = len(member[1])
                tar.addfile(header, io.BytesIO(member[1]))
    return stream.getvalue()


def write_tar(path: Path, members: Iterable[Member], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar_bytes(members, mode))
    return path


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    """A member that is no file: a folder, a link, a pipe."""
    member = tarfile.TarInfo(name)
    member.type = kind
    member.linkname = target
    return member


def zstd(content: bytes) -> bytes:
    stream = pa.BufferOutputStream()
    with pa.CompressedOutputStream(stream, "zstd") as packed:
        packed.write(content)
    return stream.getvalue().to_pybytes()


def tar_sample(key: str, caption: str = "a cat", image: bytes = b"", **more: Any) -> list[Member]:
    """The members that img2dataset writes for a sample; by default each has another image, which is none."""
    facts = {"caption": caption, "key": key, "status": "success", **more}
    members = {
        "jpg": image or JPEG + key.encode(),
        "json": json.dumps(facts).encode(),
        "txt": caption.encode(),
    }
    return [(f"{key}.{kind}", content) for kind, content in members.items()]
