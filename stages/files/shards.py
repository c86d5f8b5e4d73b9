"""Shards as files: the digests of their content, and what they say of the run that wrote them.

The digest of a shard is computed while it is written, and is compared when somebody counts on the
shard later. The footer has a digest of its own: it names the place, size and checksum of
everything else, and many footers are read in the time of one shard.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic_core import from_json

from phrasebox.stages.contract.values import Json
from phrasebox.stages.files.storage import AnyPath, parquet_file, replacing

ORIGIN_KEY: Final = b"phrasebox"
"""The key in the metadata of a shard for its origin: JSON with what `dataset.json` says of a run
before its end."""

_DIGEST_KEY: Final = b"phrasebox_sha256"
"""The key for the digest of the origin: Parquet has checksums for pages, and none for metadata."""

_CHUNK_BYTES: Final = 4 << 20
_TAIL_BYTES: Final = 8  # of a Parquet file: the length of the footer, and a magic number


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardFile:
    """A shard, as `dataset.json` lists it.

    Attributes:
        name: The file's name.
        rows: The number of its rows.
        size_bytes: Its size.
        sha256: The digest of the file.
        footer_sha256: The digest of its footer.
    """

    name: str
    rows: int
    size_bytes: int
    sha256: str
    footer_sha256: str


class _DigestedFile(io.BufferedWriter):
    """A file that is written from its beginning to its end; `sha256` is the digest of what was written."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path, "wb"))
        self.sha256 = hashlib.sha256()

    def write(self, content: Any) -> int:
        """Write bytes."""
        self.sha256.update(content)
        return super().write(content)


@contextmanager
def writing_shard(
    path: AnyPath, on_written: Callable[[ShardFile], None], confirm: Callable[[], None] = lambda: None
) -> Iterator[IO[bytes]]:
    """Yield a file to write a shard to, which takes its place when the block ends without an error.

    on_written: Called then. confirm: As in `replacing`.
    """
    with replacing(path, confirm) as temporary:
        with _DigestedFile(temporary) as file:
            yield file
        shard = ShardFile(
            name=path.name,
            rows=pq.read_metadata(temporary).num_rows,
            size_bytes=temporary.stat().st_size,
            sha256=file.sha256.hexdigest(),
            footer_sha256=footer_sha256_of(temporary),
        )
    on_written(shard)


def read_shard_file(path: AnyPath) -> ShardFile:
    """Return what `dataset.json` lists of a shard; all of it is read. Raise OSError or pyarrow.ArrowException."""
    digest = hashlib.sha256()
    size_bytes = 0
    end = b""
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
            size_bytes += len(chunk)
            end = (end + chunk)[-2 * _CHUNK_BYTES :]
    footer = end[-_TAIL_BYTES - int.from_bytes(end[-_TAIL_BYTES:-4], "little") :]
    return ShardFile(
        name=path.name,
        rows=pq.read_metadata(pa.BufferReader(footer)).num_rows,
        size_bytes=size_bytes,
        sha256=digest.hexdigest(),
        footer_sha256=hashlib.sha256(footer).hexdigest(),
    )


def sha256_of(path: AnyPath) -> str:
    """Return the digest of a file. Raise OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def footer_sha256_of(path: AnyPath) -> str:
    """Return the digest of the footer of a Parquet file; of another file, of what is in its place. Raise OSError."""
    with path.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - _TAIL_BYTES))
        tail = stream.read(_TAIL_BYTES)
        length = int.from_bytes(tail[:4], "little")
        stream.seek(max(0, size - _TAIL_BYTES - length))
        return hashlib.sha256(stream.read(length + _TAIL_BYTES)).hexdigest()


def with_origin(table: Any, origin: str) -> Any:
    """Return an Arrow table whose file will name its origin; "" names none."""
    if not origin:
        return table
    content = origin.encode()
    values = {ORIGIN_KEY: content, _DIGEST_KEY: hashlib.sha256(content).hexdigest()}
    return table.replace_schema_metadata({**(table.schema.metadata or {}), **values})


def origin_of(path: AnyPath) -> Json:
    """Return the origin that a shard names; empty if it names none. Raise OSError or pyarrow.ArrowException."""
    with parquet_file(path) as file:
        return origin_in(file)


def origin_in(file: Any) -> Json:
    """Return the origin that an open shard names, as `origin_of`; raise ArrowInvalid if it is damaged."""
    metadata = file.metadata.metadata or {}
    text = metadata.get(ORIGIN_KEY, b"{}")
    digest = hashlib.sha256(text).hexdigest().encode()
    if metadata.get(_DIGEST_KEY, digest) != digest:
        raise pa.ArrowInvalid("what it says of its run does not have its digest")
    try:
        origin = from_json(text)  # which ends where somebody else's brackets are too deep
    except ValueError:
        return {}
    return origin if isinstance(origin, dict) else {}
