"""Bytes are a budget beside rows: small files that unpack to large ones, and headers that promise anything."""

import gzip
import json
import sys
import tarfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from phrasebox.pipeline.run import stage_calls
from phrasebox.pipeline.run.stage_calls import take_batch
from phrasebox.stages.contract.errors import InputError
from phrasebox.stages.contract.records import ImageRef, Record, Sample
from phrasebox.stages.read import base, parquet, plan_pieces, streams
from phrasebox.stages.read.base import Piece, read_piece
from phrasebox.stages.read.webdataset import _Group
from tests.build.files import write_lines
from tests.messages import expect_error
from tests.stages.read.inputs import reader_of, reason, samples_of, tar_bytes, tar_sample

MEGABYTE = 1 << 20


def oversized_header(kind: bytes, size: int) -> bytes:
    """A header of long names or attributes that states a size, and nothing of them."""
    header = tarfile.TarInfo("././@LongLink")
    header.type = kind
    header.size = size
    return header.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("size", [2**33, 2**45])
@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_that_states_any_size_is_a_bad_row(
    kind: bytes, size: int, packed: bool, tmp_path: Path
) -> None:
    before = tar_bytes(tar_sample("a"))[: 6 * tarfile.BLOCKSIZE]
    content = before + oversized_header(kind, size) + bytes(20 * tarfile.BLOCKSIZE)
    path = tmp_path / ("a.tar.gz" if packed else "a.tar")
    path.write_bytes(gzip.compress(content) if packed else content)
    good, bad = samples_of(kind="webdataset", path=str(path))
    assert (reason(good), reason(bad)) == (None, "bad_row")
    assert f"states {size} bytes of names" in str(bad.error)


def test_a_sample_of_a_packed_tar_holds_a_single_image(tmp_path: Path) -> None:
    members = [
        ("a.png", b"png"),
        ("a.tiff", b"tiff"),
        ("a.jpg", b"jpg"),
        ("a.gif", b"gif"),
        ("a.txt", b"a"),
    ]
    (tmp_path / "a.tgz").write_bytes(tar_bytes(members, "w:gz"))
    content = next(iter(samples_of(kind="webdataset", path=str(tmp_path / "a.tgz")))).image.content
    assert content == b"jpg"

    group = _Group("a")
    for name in ("png", "tiff", "jpg"):
        group.add_image(name, ImageRef(content=name.encode()), base.IMAGE_EXTENSIONS)
    assert list(group.images) == ["jpg"]


def repeated_image(path: Path, rows: int, **options: object) -> str:
    table = pa.table({"jpg": [bytes(8 * MEGABYTE)] * rows, "txt": ["a cat"] * rows})
    pq.write_table(table, path, dictionary_pagesize_limit=1 << 30, compression="zstd", **options)
    return str(path)


def test_rows_of_parquet_that_repeat_an_image_do_not_hold_it_many_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of a few kB, with 32 images of 8 MB, of which two are the budget."""
    path = repeated_image(tmp_path / "a.parquet", 32)
    assert Path(path).stat().st_size < 20_000
    monkeypatch.setattr(parquet, "_ROW_BYTES", 16 * MEGABYTE)
    reader = reader_of(kind="parquet", path=path)
    before = pa.total_allocated_bytes()
    most = 0
    (piece,) = reader.pieces()
    for item in reader.read(piece):
        assert isinstance(item, Sample)
        assert len(item.image.content or b"") == 8 * MEGABYTE
        most = max(most, pa.total_allocated_bytes() - before)
    assert 8 * MEGABYTE <= most < 64 * MEGABYTE


def test_a_row_group_that_is_larger_than_the_budget_is_read_row_by_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = repeated_image(tmp_path / "a.parquet", 4, use_dictionary=False)
    sizes: list[int] = []
    values_of = parquet.values_of
    monkeypatch.setattr(parquet, "values_of", lambda column: sizes.append(len(column)) or values_of(column))
    assert len(samples_of(kind="parquet", path=path)) == 4
    assert set(sizes) == {4}
    monkeypatch.setattr(parquet, "_ROW_BYTES", MEGABYTE)
    assert len(samples_of(kind="parquet", path=path)) == 4
    assert set(sizes[2:]) == {1}


def test_a_batch_ends_where_its_images_reach_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_calls, "BATCH_BYTES", 1000)
    sizes = (400, 400, 400, 1, 2000, 10, 10)
    records = iter(
        Record.start(Sample(sample_id=str(size), source="", image=ImageRef(content=bytes(size))))
        for size in sizes
    )
    batches = list(iter(lambda: take_batch(records, 3), []))
    contents = [[len(record.sample.image.content or b"") for record in batch] for batch in batches]
    assert contents == [[400, 400, 400], [1, 2000], [10, 10]]


LISTS = {
    "jsonl": lambda rows: json.dumps([{"image": f"{n}.jpg", "caption": "a cat"} for n in range(rows)]),
    "coco_captions": lambda rows: json.dumps(
        {"images": [{"id": n, "file_name": f"{n}.jpg"} for n in range(rows)], "annotations": []}
    ),
}
"""Kind of a file that is read whole -> its content."""


@pytest.mark.parametrize("kind", LISTS)
def test_a_list_that_unpacks_to_more_than_the_budget_is_refused(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json.gz"
    text = LISTS[kind](3).encode()
    path.write_bytes(gzip.compress(text + b" " * (64 * MEGABYTE)))
    monkeypatch.setattr(streams, "MAX_WHOLE_BYTES", 2 * MEGABYTE)
    tracemalloc.start()
    try:
        with expect_error(InputError):
            reader_of(kind=kind, path=str(path)).pieces()
        assert tracemalloc.get_traced_memory()[1] < 8 * MEGABYTE
    finally:
        tracemalloc.stop()
    path.write_bytes(gzip.compress(text))
    assert len(samples_of(kind=kind, path=str(path))) == 3


@pytest.mark.parametrize("kind", LISTS)
def test_a_list_that_does_not_fit_into_the_memory_is_refused(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.json").write_text(LISTS[kind](3))

    def fail(*_: object, **__: object) -> object:
        raise MemoryError

    monkeypatch.setattr(sys.modules[f"phrasebox.stages.read.{kind}"].json, "loads", fail)
    with expect_error(InputError):
        plan_pieces(reader_of(kind=kind, path=str(tmp_path / "a.json")))


def test_a_row_that_does_not_fit_into_the_memory_ends_a_run_in_a_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_lines(path, [{"image": "1.jpg", "caption": "a cat"}] * 3)

    class Exhausted:
        def read(self, piece: Piece) -> Iterator[Sample]:
            yield Sample(sample_id="a", source="a.jsonl:1")
            raise MemoryError

    rows = read_piece(Exhausted(), Piece(url=str(path), name="a.jsonl"))  # type: ignore[arg-type]
    assert next(rows)
    with expect_error(InputError):
        next(rows)
