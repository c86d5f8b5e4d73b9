"""The promises of every entry of READERS, on one input of each kind with good and bad rows in it.

A new kind enters with a function in INPUTS that writes such an input.
"""

import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phrasebox.stages.contract.errors import ConfigError, InputError
from phrasebox.stages.contract.records import Sample
from phrasebox.stages.read import READERS, Piece, Reader, SkippedRow
from phrasebox.testing import check_settings
from phrasebox.testing.readers import (
    ABSENT_PATHS,
    PlannedInput,
    check_cuts,
    check_limit,
    check_parts,
    check_plan,
    check_rows,
    check_stop,
    check_travel,
    check_url,
)
from tests.build.datasets import Json
from tests.build.files import write_json
from tests.messages import expect_error
from tests.stages.read.inputs import JPEG, reader_of, tar_sample, write_lines, write_tar

ROWS = 40  # Rows that each function in INPUTS writes, over two files


def rows() -> Iterator[Json]:
    """Forty rows of a table, some of them bad."""
    for number in range(ROWS):
        row: Json = {"image": f"images/{number}.jpg", "caption": f"cat {number} on a sofa"}
        if number % 3 == 0:
            row["id"] = f"k{number % 30}"  # some twice
        if number % 7 == 1:
            row["image"] = "../outside.jpg"
        if number % 11 == 5:
            row["caption"] = None
        yield row


def write_jsonl(folder: Path) -> Json:
    lines: list[Any] = [b"{broken" if number % 13 == 4 else row for number, row in enumerate(rows())]
    write_lines(folder / "a.jsonl", lines[:25])
    write_lines(folder / "b.jsonl", lines[25:])
    return {"path": str(folder)}


def write_csv(folder: Path) -> Json:
    lines = [f'{row.get("id", "")},{row["image"]},"{row["caption"] or ""}\nagain"' for row in rows()]
    lines[4] = "too,few"
    for name, part in (("a.csv", lines[:25]), ("b.csv", lines[25:])):
        (folder / name).write_text("id,image,caption\n" + "\n".join(part) + "\n")
    return {"path": str(folder)}


def write_webdataset(folder: Path) -> Json:
    samples = []
    for number in range(ROWS - 1):
        status = "failed_to_download" if number % 9 == 2 else "success"
        samples.append(tar_sample(f"{number:09d}", status=status)[number % 7 == 1 :])
    samples.append(tar_sample("000000030"))  # again
    write_tar(folder / "a.tar", chain(*samples[:25]))
    write_tar(folder / "b.tar", chain(*samples[25:]))
    return {"path": str(folder)}


def write_parquet(folder: Path) -> Json:
    columns = [
        {
            "image": {"bytes": None if number % 5 else JPEG, "path": row["image"]},
            "caption": row["caption"],
            "sample_id": row.get("id"),
            "status": "failed_to_resize" if number % 9 == 2 else "success",
            "key": f"{number:09d}",
        }
        for number, row in enumerate(rows())
    ]
    table = pa.Table.from_pylist(columns)
    pq.write_table(table.slice(0, 25), folder / "a.parquet", row_group_size=4)
    pq.write_table(table.slice(25), folder / "b.parquet", row_group_size=100)
    return {"path": str(folder)}


def write_coco_captions(folder: Path) -> Json:
    images = [{"id": number % 28, "file_name": f"{number}.jpg"} for number in range(30)]
    annotations: list[Json] = [
        {"id": number, "image_id": number % 25, "caption": f"cat {number}"} for number in range(100)
    ]
    annotations += [
        {"id": 1000 + number, "image_id": 999, "caption": "of no image"} for number in range(10)
    ]
    write_json(folder / "a.json", {"images": images, "annotations": annotations})
    write_json(folder / "b.json", {"images": [], "annotations": []})
    return {"path": str(folder)}


def write_folder(folder: Path) -> Json:
    for number in range(ROWS):
        path = folder / ("sub" if number % 3 else "") / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        if number % 7 != 1:
            path.write_bytes(JPEG)
        if number % 11 != 5:
            path.with_suffix(".txt").write_bytes(
                b"\xff" if number % 13 == 4 else b"cat on a sofa\n\na cat\n"
            )
    return {"path": str(folder)}


INPUTS: dict[str, Callable[[Path], Json]] = {
    "jsonl": write_jsonl,
    "csv": write_csv,
    "webdataset": write_webdataset,
    "parquet": write_parquet,
    "coco_captions": write_coco_captions,
    "folder": write_folder,
}


@pytest.fixture(params=sorted(READERS), scope="module")
def planned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PlannedInput:
    kind = request.param
    assert kind in INPUTS, f"write an input for the kind {kind} in INPUTS"
    return PlannedInput.of(READERS[kind], INPUTS[kind](tmp_path_factory.mktemp(kind)))


def is_of_tars(planned: PlannedInput) -> bool:
    """Whether the input is read in whole tars, whose rows are not known before."""
    return planned.kind is READERS["webdataset"]


def test_settings_are_closed() -> None:
    for kind in READERS:
        check_settings(READERS[kind].config_type, {"path": "a"})


def test_every_row_is_answered_once(planned: PlannedInput) -> None:
    """With a unique id that can be stored, and a place or bytes of its image, or an error that says where."""
    check_rows(planned, ROWS)
    skipped = {READERS["webdataset"]: 5, READERS["parquet"]: 5}.get(planned.kind, 0)
    assert ROWS - len(planned.samples) == skipped
    assert sum(sample.error is None for sample in planned.samples) >= ROWS // 3


@pytest.mark.parametrize("limit", [1, 25, 26, 1000])
def test_a_limit_keeps_the_first_rows(planned: PlannedInput, limit: int) -> None:
    check_limit(planned, limit)


@pytest.mark.parametrize(("parts", "limit"), [(1, None), (7, None), (2, 26), (ROWS + 1, 26)])
def test_parts_share_the_input_evenly(planned: PlannedInput, limit: int | None, parts: int) -> None:
    """Down to single rows where the reader knows their number, else by whole tars."""
    check_parts(planned, parts, limit, 25 if is_of_tars(planned) and limit is None else 1)


@pytest.mark.parametrize("piece_size", [1, 3, 7, 1000])
def test_where_the_input_is_cut_does_not_matter(planned: PlannedInput, piece_size: int) -> None:
    if not is_of_tars(planned):  # always one piece for each tar
        check_cuts(planned, piece_size)


def test_pieces_can_be_read_anywhere_in_any_order(planned: PlannedInput) -> None:
    check_travel(planned)


def test_planning_is_deterministic_and_pieces_are_small(planned: PlannedInput) -> None:
    check_plan(planned)


def test_an_input_behind_a_url_is_the_same(planned: PlannedInput) -> None:
    """With the same ids, wherever it lies."""
    check_url(planned)


def test_reading_starts_before_the_piece_is_read(planned: PlannedInput) -> None:
    check_stop(planned)  # leaves no open file: warnings are errors


@pytest.mark.parametrize("kind", sorted(READERS))
@pytest.mark.parametrize("path", ABSENT_PATHS)
def test_a_missing_or_empty_input_is_rejected_with_what_was_looked_for(
    kind: str, path: str, tmp_path: Path
) -> None:
    with expect_error(InputError, key=("", "input.path")):
        reader_of(kind=kind, path=f"{tmp_path}/{path}").pieces()


@pytest.mark.parametrize("kind", sorted(set(READERS) - {"webdataset", "folder"}))
def test_a_missing_image_root_is_rejected(kind: str, tmp_path: Path) -> None:
    keys = INPUTS[kind](tmp_path)
    with expect_error(InputError, key="input.image_root"):
        reader_of(kind=kind, **keys, image_root=f"{tmp_path}/none").pieces()


@pytest.mark.parametrize("kind", ["webdataset", "folder"])
def test_an_image_root_of_an_input_that_holds_its_images_is_rejected(kind: str, tmp_path: Path) -> None:
    with expect_error(ConfigError, key="input.image_root"):
        reader_of(kind=kind, **INPUTS[kind](tmp_path), image_root=str(tmp_path))


def test_readers_need_neither_ray_nor_torch() -> None:
    program = (
        "import sys, phrasebox.stages.read, phrasebox.stages.prepare\n"
        "print({'ray', 'torch', 'cv2', 'spacy'} & set(sys.modules))"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "set()"


PIECES = st.sampled_from(
    [b"\n", b"\r\n", b'"', b",", b"{", b"}", b'"image":', b'"caption":', b'"id":', b'"a"', b"a.jpg", b"\xff", b"\0",
     b" ", b"\\u", b"1"]
)  # fmt: skip


def pieces_and_rows(reader: Reader) -> tuple[list[Piece], list[Sample | SkippedRow]]:
    pieces = reader.pieces()
    return pieces, [item for piece in pieces for item in reader.read(piece)]


@settings(max_examples=80)
@given(st.lists(PIECES | st.binary(max_size=4), max_size=60))
def test_any_text_gives_the_same_rows_wherever_it_is_cut(tmp_path_factory, texts: list[bytes]) -> None:
    folder = tmp_path_factory.mktemp("text")
    (folder / "a.jsonl").write_bytes(b"".join(texts))
    (folder / "a.csv").write_bytes(b"id,image,caption\n" + b"".join(texts))
    for kind in ("jsonl", "csv"):
        pieces, expected = pieces_and_rows(reader_of(kind=kind, path=str(folder)))
        assert len({item.sample_id for item in expected}) == len(expected)  # type: ignore[union-attr]
        for piece_size in (1, 3):
            reader = reader_of(kind=kind, path=str(folder), piece_size=piece_size)
            assert pieces_and_rows(reader)[1] == expected
        if kind == "jsonl":
            filled = [line for line in b"".join(texts).split(b"\n") if line.strip(b" \t\r")]
            assert sum(piece.rows or 0 for piece in pieces) == len(filled)
