"""Plan an input: repeated ids, pieces that carry their rows, images that do not exist."""

from __future__ import annotations

import json
import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import islice
from typing import Any, Final

import numpy as np
from pydantic import Field

from phrasebox.stages.contract.errors import InputError, RowError, one_line
from phrasebox.stages.contract.records import ImageRef, Sample
from phrasebox.stages.files.storage import place_of
from phrasebox.stages.read.base import InputRow, Piece, Reader, ReaderConfig
from phrasebox.stages.read.rows import reject_repeat

_FIRST_IMAGES: Final = 20  # Images to check: at least one must exist
_FEWEST_FAULTS: Final = 10  # Rows without a usable image for which the whole input is rejected
_FIRST_ROWS: Final = 1000  # Rows to search for these


class CarriedInput(ReaderConfig):
    """The keys of `input` for files that cannot be read in parts, see `plan_rows`."""

    piece_size: int = Field(1000, ge=1, le=100_000, description="Images that one worker reads at once.")


def input_notes(pieces: Sequence[Piece], roles: Sequence[str]) -> Iterator[str]:
    """Yield sentences about an input whose captions are turns of `roles`, or that has several rows in one sample."""
    if fields := dict.fromkeys(repr(piece.turns) for piece in pieces if piece.turns):
        yield f"captions are the turns of {' or '.join(roles)} in {' or '.join(fields)} (input.turns)"
    counts = [
        (piece.rows, piece.samples)
        for piece in pieces
        if piece.rows is not None and piece.samples is not None
    ]
    rows, count = (sum(column) for column in zip(*counts, strict=True)) if counts else (0, 0)
    if rows != count:
        yield (
            f"{rows:,} rows were grouped into {count:,} samples, since rows of one image follow each other; "
            "--set input.group_rows=false keeps them apart"
        )


def plan_rows(url: str, name: str, rows: Sequence[Any], piece_size: int) -> Iterator[Piece]:
    """Cut a file that cannot be read in parts: pieces carry their rows, plain values, as compressed JSON."""
    for start in range(0, len(rows), piece_size):
        part = rows[start : start + piece_size]
        stop = start + len(part)
        payload = zlib.compress(json.dumps(part, separators=(",", ":")).encode())
        yield Piece(
            url=url,
            name=name,
            start=start,
            stop=stop,
            first_row=start,
            samples=len(part),
            payload=payload,
        )


def carried_rows(piece: Piece) -> list[Any]:
    """Return the rows that a piece carries."""
    rows: list[Any] = json.loads(zlib.decompress(piece.payload))
    return rows


def mark_repeats(pieces: Sequence[Piece], keys: array[int]) -> list[Piece]:
    """Return pieces that know which of their samples have the id of an earlier sample.

    Args:
        pieces: Pieces with `samples`.
        keys: The `stable_key` of every sample's id, in order. It takes 8 bytes of memory for
            each sample. A run tells samples apart by the same key.
    """
    all_keys = np.frombuffer(keys, np.int64)
    if len(np.unique(all_keys)) == len(all_keys):
        return list(pieces)
    is_repeat = np.ones(len(all_keys), np.bool_)
    is_repeat[np.unique(all_keys, return_index=True)[1]] = False
    stops = np.cumsum([piece.samples or 0 for piece in pieces])
    return [
        replace(piece, repeats=tuple(np.flatnonzero(is_repeats).tolist()))
        for piece, is_repeats in zip(pieces, np.split(is_repeat, stops[:-1]), strict=True)
    ]


def unique_samples(
    samples: Iterable[InputRow],
    piece: Piece,
) -> Iterator[InputRow]:
    """Yield the samples of a piece; those with the id of an earlier sample as errors with another id."""
    repeats = set(piece.repeats)
    for index, sample in enumerate(samples):
        if index in repeats and isinstance(sample, Sample):
            yield reject_repeat(sample)
        else:
            yield sample


def plan_pieces(reader: Reader) -> list[Piece]:
    """Plan an input, and check that at least one of its first image files exists.

    Raise InputError as `Reader.pieces` and `_first_images`, and if none of these images exists.
    """
    pieces = reader.pieces()
    images = _first_images(reader, pieces)
    why = ""
    for image in images:
        try:
            if place_of(image.url or "").is_file():
                return pieces
        except OSError as error:
            why = f" ({error.strerror or one_line(error)})"
    if not images:
        return pieces
    first = images[0]
    subject = (
        f"none of the first {len(images)} images exists"
        if len(images) > 1
        else "the only image does not exist"
    )
    folder = (first.url or "").removesuffix(first.file_name)
    raise InputError(
        f"{subject} in the folder {folder}; the first is {first.file_name!r}{why}. Give the folder that the paths of "
        "the images start from",
        key="input.image_root",
    )


def _first_images(reader: Reader, pieces: Iterable[Piece]) -> list[ImageRef]:
    """At most `_FIRST_IMAGES` images that are files; none if the input holds its images.

    Raise InputError.
    """
    images: list[ImageRef] = []
    faults: list[RowError] = []
    items = (item for piece in pieces for item in reader.read(piece))
    with closing(items):
        for item in islice(items, _FIRST_ROWS):
            if not isinstance(item, Sample):
                continue
            if item.error is not None:
                faults.append(item.error)
                continue
            if item.image.url is None or item.image.size >= 0:
                return []
            images.append(item.image)
            if len(images) == _FIRST_IMAGES:
                break
    if (
        len(faults) >= _FEWEST_FAULTS
        and not images
        and {fault.reason for fault in faults} == {"bad_location"}
    ):
        raise InputError(
            f"none of the first {len(faults)} rows names an image that can be read: {faults[0].detail}"
        )
    return images
