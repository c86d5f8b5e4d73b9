"""The photographs and captions that the photograph model learns from, read where they lie. Boxes are not read."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from stages.contract.errors import InputError

SETS: Final = (("flickr8k/train.jsonl", "flickr8k/train.images.tar"), ("coco/people.jsonl", "coco/people.images.tar"))
"""Lists of photographs under the root, with the tars that hold them. The first gives the photographs held out."""


@dataclass(frozen=True, slots=True)
class Photograph:
    """One photograph with its captions.

    Attributes:
        tar: Archive that holds it.
        member: Its name in the archive.
        captions: Its captions, lower case, without the last full stop.
    """

    tar: Path
    member: str
    captions: tuple[str, ...]


def read_lists(root: Path, *, held_out: int) -> list[Photograph]:
    """The photographs to train on, in the order of the lists.

    Args:
        root: Folder with the lists of `SETS`: a JSON object a line, with `image` and `captions`.
        held_out: How many of the last photographs of the first list to leave out.

    Raises:
        InputError: A list or an archive is missing, a line is not such an object, or nothing is left to train on.
    """
    photographs: list[Photograph] = []
    for number, (list_name, tar_name) in enumerate(SETS):
        path, tar = root / list_name, root / tar_name
        if not path.is_file() or not tar.is_file():
            raise InputError(f"the photograph model is trained on {list_name} and {tar_name}, not both in {root}")
        lines = path.read_text("utf-8").splitlines()
        kept = lines[: len(lines) - held_out] if number == 0 else lines
        photographs += [_photograph(line, tar, f"{path}:{place}") for place, line in enumerate(kept, start=1)]
    if not photographs:
        raise InputError(f"no photograph is left in {root} after {held_out} are held out")
    return photographs


def _photograph(line: str, tar: Path, place: str) -> Photograph:
    try:
        row = json.loads(line)
        captions = tuple(str(caption).strip().rstrip(" .").strip().lower() for caption in row["captions"])
        member = str(row["image"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{place}: expected an object with image and captions: {error!r}") from error
    if not captions:
        raise InputError(f"{place}: {member} has no caption")
    return Photograph(tar, member, captions)


def read_pixels(photographs: Sequence[Photograph], side_px: int) -> Iterator[npt.NDArray[np.uint8]]:
    """The photographs' pixels in order, RGB uint8 (side, side, 3), the whole photograph squashed.

    Raises:
        InputError: An archive does not hold a photograph, or it cannot be decoded.
    """
    for tar, group in groupby(photographs, key=lambda photograph: photograph.tar):
        with tarfile.TarFile(tar) as archive:
            for photograph in group:
                yield _pixels(archive, photograph, side_px)


def _pixels(archive: tarfile.TarFile, photograph: Photograph, side_px: int) -> npt.NDArray[np.uint8]:
    try:
        file = archive.extractfile(photograph.member)
    except KeyError:
        file = None
    if file is None:
        raise InputError(f"{photograph.tar} does not hold {photograph.member}")
    decoded = cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_COLOR)
    if decoded is None:
        raise InputError(f"{photograph.member} in {photograph.tar} cannot be decoded")
    if decoded.shape[:2] != (side_px, side_px):
        decoded = cv2.resize(decoded, (side_px, side_px), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(decoded[:, :, ::-1], dtype=np.uint8)
