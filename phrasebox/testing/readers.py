"""The contract of readers: every row once, the same rows wherever the input is cut, and errors that say where."""

from __future__ import annotations

import contextlib
import pickle
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple
from uuid import uuid4

import fsspec

from phrasebox.stages.contract.errors import ROW_ERRORS, InputError
from phrasebox.stages.contract.records import ImageRef, Record, Sample, stable_id
from phrasebox.stages.contract.values import Json
from phrasebox.stages.images.decode import load_image_bytes
from phrasebox.stages.images.faults import DecodeLimits
from phrasebox.stages.read import reader_for
from phrasebox.stages.read.base import InputRow, Piece, Reader, read_piece
from phrasebox.testing.requirement import expect_raised, require
from phrasebox.testing.settings import check_settings

ABSENT_PATHS: Final = ("", "none.x", "none/", "*.none", "{0..3}.none")
"""What follows an empty folder in a path that names no input."""

MOST_BYTES: Final = 10_000
"""Of a piece as it is sent to a worker."""


class PlannedInput(NamedTuple):
    """An input, and what a reader makes of it."""

    kind: type[Reader]
    keys: Json
    reader: Reader
    pieces: list[Piece]
    rows: list[InputRow]

    @classmethod
    def of(cls, kind: type[Reader], keys: Json, **others: Any) -> PlannedInput:
        """Plan and read an input; `keys` and `others` are those of the section `input`, without the kind."""
        reader = reader_for(kind, kind.config_type.model_validate({**keys, **others}))
        pieces = reader.pieces()
        return cls(kind, keys, reader, pieces, [row for piece in pieces for row in reader.read(piece)])

    def again(self, **others: Any) -> PlannedInput:
        """Plan and read the input again, with other keys."""
        return PlannedInput.of(self.kind, self.keys, **others)

    @property
    def samples(self) -> list[Sample]:
        """The rows that are samples."""
        return [row for row in self.rows if isinstance(row, Sample)]


def check_reader(reader: type[Reader], keys: Json, *, rows: int, reads_urls: bool = True) -> None:
    """Check all that readers promise, with an input of yours. Raise AssertionError with what does not hold.

    Args:
        reader: The class.
        keys: Keys of the section `input`, as {"path": "folder"}. Some rows are good and at least one is bad.
        rows: Number of the samples and skipped rows.
        reads_urls: Whether `path` may be a URL.
    """
    check_settings(reader.config_type, keys)
    planned = PlannedInput.of(reader, keys)
    check_rows(planned, rows)
    for limit in (1, rows // 2 + 1, rows + 1000):
        check_limit(planned, limit)
    for parts, most in ((1, None), (3, None), (2, rows // 2 + 1), (rows + 1, rows // 2 + 1)):
        check_parts(planned, parts, most)
    if "piece_size" in reader.config_type.model_fields:
        for piece_size in (1, 3, 1000):
            check_cuts(planned, piece_size)
    check_travel(planned)
    check_plan(planned)
    check_stop(planned)
    if reads_urls:
        check_url(planned)
    with tempfile.TemporaryDirectory() as folder:
        for path in ABSENT_PATHS:
            check_absence(reader, {**keys, "path": f"{folder}/{path}"})
        if "image_root" in reader.config_type.model_fields:
            check_absence(reader, {**keys, "image_root": f"{folder}/none"})


def check_rows(planned: PlannedInput, rows: int) -> None:
    """Check that each row is a sample with an id, and a place or bytes of its image, or an error that says where."""
    require(
        len(planned.rows) == rows, f"every row is answered once: {rows} rows, {len(planned.rows)} answers"
    )
    samples = planned.samples
    good = [sample for sample in samples if sample.error is None]
    require(0 < len(good) < len(samples), "give an input with good rows, and at least one that is bad")
    require(
        len({stable_id(sample.sample_id) for sample in samples}) == len(samples),
        "each sample has its own id",
    )
    for sample in good:
        has_one_place = (sample.image.url is None) != (sample.image.content is None)
        require(has_one_place, f"{sample.source}: an image has a url or its content, not both")
        require(sample.image.file_name, f"{sample.source}: an image has a file_name")
    for row in planned.rows:
        require(row.source, "each row says where it stands: source")
        if not isinstance(row, Sample):
            require(row.reason in ROW_ERRORS, f"{row.source}: {row.reason} is a reason")
        elif row.error is not None:
            starts = row.error.detail.startswith(f"{row.source}: ")
            require(starts, f"an error says where: RowFault(...).error.at({row.source!r})")
            require(Record.start(row).error == row.error, f"{row.source}: the error can be stored")


def check_limit(planned: PlannedInput, limit: int) -> None:
    """Check that `input.limit` keeps the first rows."""
    limited = planned.again(limit=limit)
    require(limited.rows == planned.rows[:limit], f"input.limit={limit} keeps the first rows")
    count = sum(piece.samples or 0 for piece in limited.pieces)
    require(
        count == min(limit, len(planned.rows)), "pieces of a limited input know their number of samples"
    )


def check_parts(
    planned: PlannedInput, parts: int, limit: int | None = None, most_difference: int | None = None
) -> None:
    """Check that parts share the input: in rows where the reader knows their number, else in whole pieces.

    `most_difference`: most rows that a part has more than another; by default 1 where it is known.
    """
    has_counts = limit is not None or all(piece.samples is not None for piece in planned.pieces)
    rows: list[InputRow] = []
    sizes = []
    for number in range(1, parts + 1):
        keys = {**planned.keys, "limit": limit, "part": f"{number}/{parts}"}
        config = planned.kind.config_type.model_validate(keys)
        reader = reader_for(planned.kind, config)
        part = [row for piece in config.take_part(reader.pieces()) for row in read_piece(reader, piece)]
        sizes.append(len(part))
        rows += part
    require(rows == planned.rows[:limit], f"{parts} parts hold each row once, in order")
    if has_counts or most_difference is not None:
        difference = 1 if most_difference is None else most_difference
        require(max(sizes) - min(sizes) <= difference, f"parts have the same number of rows: {sizes}")


def check_cuts(planned: PlannedInput, piece_size: int) -> None:
    """Check that the rows do not depend on where the input is cut, and that pieces know their number of rows."""
    cut = planned.again(piece_size=piece_size)
    require(cut.rows == planned.rows, f"input.piece_size={piece_size} changes no row")
    counts = [len(list(planned.reader.read(piece))) for piece in cut.pieces]
    require(counts == [piece.samples for piece in cut.pieces], "Piece.samples is the number of its rows")


def check_travel(planned: PlannedInput) -> None:
    """Check that pieces can be sent to other processes, and read there in any order, in any current folder."""
    sent = pickle.dumps((planned.reader, planned.pieces))
    reader, pieces = pickle.loads(sent)  # noqa: S301  what was pickled in the line above
    require(pieces == planned.pieces, "pieces can be pickled")
    with contextlib.chdir("/"):
        rows_of_pieces = [list(reader.read(piece)) for piece in reversed(pieces)]
    rows = [row for rows_of_piece in reversed(rows_of_pieces) for row in rows_of_piece]
    require(rows == planned.rows, "pieces are read in any order, in any current folder")


def check_plan(planned: PlannedInput) -> None:
    """Check that planning gives the same pieces again, and that pieces are small."""
    require(planned.reader.pieces() == planned.pieces, "planning gives the same pieces again")
    size = max(len(pickle.dumps(piece)) for piece in planned.pieces)
    require(size < MOST_BYTES, f"a piece of a small input is small: {size} bytes")


def check_stop(planned: PlannedInput) -> None:
    """Check that reading begins with the first row and can be stopped: `read` is a generator.

    An open file would be a ResourceWarning.
    """
    rows = planned.reader.read(planned.pieces[0])
    require(hasattr(rows, "close"), "read is a generator, which can be stopped")
    with closing(rows):  # type: ignore[type-var]  # the line above
        require(next(rows), "reading begins with the first row")


def check_url(planned: PlannedInput) -> None:
    """Check that an input behind a URL gives the same samples, with the same ids and images."""
    with _in_memory(Path(planned.keys["path"])) as url:
        remote = planned.again(path=url)
        require(len(remote.rows) == len(planned.rows), "an input behind a URL has the same rows")
        for row, other in zip(planned.rows, remote.rows, strict=True):
            if not (isinstance(row, Sample) and isinstance(other, Sample)):
                require(row == other, "an input behind a URL skips the same rows")
                continue
            nowhere = ImageRef()
            is_same = replace(row, image=nowhere) == replace(other, image=nowhere)
            require(is_same, f"{row.source}: an input behind a URL has the same samples, with the same ids")
            if row.image.url is not None and Path(row.image.url).is_file():
                image, remote_image = (load_image_bytes(one.image, DecodeLimits()) for one in (row, other))
                require(image == remote_image, f"{row.source}: an input behind a URL has the same images")


@contextmanager
def _in_memory(path: Path) -> Iterator[str]:
    """Yield a URL in the memory of this process with the content of a folder, or of a file and its folder."""
    folder = path if path.is_dir() else path.parent
    filesystem = fsspec.filesystem("memory")
    root = f"/{uuid4().hex}"
    for file in filter(Path.is_file, folder.rglob("*")):
        filesystem.pipe(f"{root}/{file.relative_to(folder)}", file.read_bytes())
    try:
        yield f"memory:/{root}" if path.is_dir() else f"memory:/{root}/{path.name}"
    finally:
        filesystem.rm(root, recursive=True)


def check_absence(reader: type[Reader], keys: Json) -> None:
    """Check that an input, or a folder of images, which is not there is refused as a whole."""
    config = reader.config_type.model_validate(keys)
    with expect_raised(f"what is not there is an InputError of `pieces`: {keys}", InputError):
        reader_for(reader, config).pieces()
