"""A folder of images with their captions beside them: `cats/1.jpg` and `cats/1.txt`.

A text has a caption on each line; blank lines do not count. Every image is a sample. An image
without a text has no captions; the phrases stage reports it. A text without an image is the
error missing_image. Images that differ only in their extension share a text. The id of a sample
is the path of its image in the folder.

A link may lead to a text in the input's folder, or to one beside the file that the image is a
link to: so folders of links can be read, and no other text of this machine becomes a caption.

Planning lists the folder once; each piece carries the names of its files, compressed.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from operator import itemgetter
from typing import Final, Literal

from phrasebox.stages.contract.errors import InputError, RowFault
from phrasebox.stages.contract.records import NO_IMAGE, ImageRef, Sample, stable_key
from phrasebox.stages.files.storage import is_local, parent
from phrasebox.stages.read.base import IMAGE_EXTENSIONS, MAX_TEXT_BYTES, InputRow, Piece, Reader
from phrasebox.stages.read.find import SourceFile, find_files, root_of
from phrasebox.stages.read.plan import CarriedInput, carried_rows, mark_repeats, plan_rows, unique_samples
from phrasebox.stages.read.rows import decode_text, shorten
from phrasebox.stages.read.streams import is_special, open_plain

IMAGE_SUFFIXES: Final = tuple(f".{extension}" for extension in IMAGE_EXTENSIONS)
TEXT_SUFFIX: Final = ".txt"

_FETCH_THREADS: Final = 16

NamedPair = tuple[str, str | None, str | None]
"""The sample's id, and the locations of its image and of its text."""


class FolderInput(CarriedInput):
    """Keys of `input` for `kind: folder`."""

    kind: Literal["folder"] = "folder"


class FolderReader(Reader):
    """Reads `kind: folder`."""

    config_type = FolderInput
    suffixes = IMAGE_SUFFIXES
    suffixes_beside = (TEXT_SUFFIX,)

    def __init__(self, config: FolderInput) -> None:
        self.config = config
        paths = (config.path,) if isinstance(config.path, str) else config.path
        self._roots = tuple(os.path.realpath(root) for root in map(root_of, paths) if is_local(root))

    def pieces(self) -> list[Piece]:
        """Plan the input. Raise InputError if no image of a folder has a text."""
        rows = _pair_files(find_files(self.config.path, (*IMAGE_SUFFIXES, TEXT_SUFFIX)))
        if not any(image and text for _, image, text in rows):
            raise InputError(
                f"{self.config.path}: none of its images has a text of the same name beside it, such as 1.jpg and "
                f"1.txt; images are {', '.join(IMAGE_SUFFIXES)}",
                key="input.path",
            )
        _, image, text = rows[0]
        folder = parent(image or text or "")
        pieces = list(plan_rows(folder, rows[0][0], rows, self.config.piece_size))
        return mark_repeats(pieces, array("q", (stable_key(name) for name, _, _ in rows)))

    def read(self, piece: Piece) -> Iterator[InputRow]:
        """Yield the samples of a piece."""
        rows: list[NamedPair] = carried_rows(piece)
        return unique_samples(map(_sample, rows, self._captions_of_all(rows)), piece)

    def _captions_of_all(self, rows: Sequence[NamedPair]) -> Iterator[tuple[str, ...] | RowFault]:
        """The captions of each row; texts behind URLs are fetched several at a time."""
        if all(text is None or is_local(text) for _, _, text in rows):
            yield from map(self._captions_of, rows)
            return
        with ThreadPoolExecutor(_FETCH_THREADS, thread_name_prefix="fetch") as pool:
            yield from pool.map(self._captions_of, rows)

    def _captions_of(self, row: NamedPair) -> tuple[str, ...] | RowFault:
        _, image, text = row
        if text is None:
            return ()
        name = shorten(text.rpartition("/")[2])
        try:
            if is_local(text):
                self._check_place(text, image, name)
            with open_plain(text) as stream:
                content = stream.read(MAX_TEXT_BYTES + 1)
            if len(content) > MAX_TEXT_BYTES:
                raise RowFault("bad_caption", f"{name} has more than {MAX_TEXT_BYTES} bytes")
            lines = decode_text(content, text.rpartition("/")[2]).split("\n")
        except RowFault as fault:
            return fault
        return tuple(line for line in (line.rstrip("\r") for line in lines) if line.strip())

    def _check_place(self, text: str, image: str | None, name: str) -> None:
        """Raise RowFault for a text that is no plain file, or that lies elsewhere (see the module)."""
        if is_special(text):
            raise RowFault("bad_caption", f"{name} is no plain file")
        folder = _folder_of(text)
        if image is not None and is_local(image) and folder == _folder_of(image):
            return
        if not any(os.path.commonpath([root, folder]) == root for root in self._roots):
            raise RowFault(
                "bad_location",
                f"{name} is a link, or lies behind one, to a text outside of the input's folder",
            )


def _folder_of(path: str) -> str:
    """The folder of the file that a path leads to."""
    if os.path.islink(path):
        path = os.path.realpath(path)
    return _real_folder(os.path.dirname(path))


@lru_cache(maxsize=4096)
def _real_folder(path: str) -> str:
    return os.path.realpath(path)


def _sample(pair: NamedPair, captions: tuple[str, ...] | RowFault) -> Sample:
    name, image, _ = pair
    fault = captions if isinstance(captions, RowFault) else None
    if image is None:
        fault = RowFault(
            "missing_image",
            f"no {' or '.join(IMAGE_SUFFIXES)} of this name beside it",
        )
    return Sample(
        sample_id=name,
        source=name,
        captions=() if isinstance(captions, RowFault) else captions,
        image=NO_IMAGE if image is None else ImageRef(file_name=name, url=image),
        error=None if fault is None else fault.error.at(name),
    )


def _pair_files(files: Sequence[SourceFile]) -> list[NamedPair]:
    """A row for each image and for each text without one, in the order of their names."""
    images: list[tuple[SourceFile, str]] = []
    texts: dict[str, SourceFile] = {}
    for file in files:
        stem, _, extension = file.name.rpartition(".")
        if f".{extension.lower()}" == TEXT_SUFFIX:
            texts[stem] = file
        else:
            images.append((file, stem))
    urls = {stem: file.url for stem, file in texts.items()}
    rows: list[NamedPair] = [(file.name, file.url, urls.get(stem)) for file, stem in images]
    rows += [(texts[stem].name, None, urls[stem]) for stem in urls.keys() - {stem for _, stem in images}]
    return sorted(rows, key=itemgetter(0))
