"""WebDataset tars, as img2dataset writes them: `KEY.jpg`, `KEY.txt`, `KEY.json` for each sample.

A key is a member's path up to the first dot of its name, and a sample is a run of neighbouring
members with the same key; both are webdataset's rules. The captions are the `txt` member or
else `caption` of the `json` member. The id of a sample is "TAR/KEY".

Nothing is extracted. For a local tar, a sample has the place of its image in the file.
Compressed tars and tars behind a URL are read once from front to back, and samples carry the
bytes.

If a `json` member has the status of a failed download, the sample is skipped and counted.
Python's tarfile parses headers, but ends silently at a damaged or missing one: here every end
without the format's end mark is a member with an `error`.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any, Final, Literal, TypeVar, cast

from pydantic import Field

from phrasebox.stages.contract.errors import RowError, RowFault
from phrasebox.stages.contract.records import NO_IMAGE, ImageRef, Sample, storable
from phrasebox.stages.contract.values import Json
from phrasebox.stages.files.storage import is_local
from phrasebox.stages.read.base import (
    IMAGE_EXTENSIONS,
    MAX_TEXT_BYTES,
    InputRow,
    Piece,
    Reader,
    ReaderConfig,
    SkippedRow,
)
from phrasebox.stages.read.find import find_files
from phrasebox.stages.read.rows import captions_of, decode_text, first_field, json_object, shorten
from phrasebox.stages.read.stamps import stamp_of
from phrasebox.stages.read.streams import Forward, Stream, is_compressed, open_plain
from phrasebox.stages.read.turns import TURN_FIELDS

MAX_INLINE_BYTES: Final = (
    256 * 1024 * 1024
)  # Of an image from a tar that is read in order; larger ones are faults


class WebdatasetInput(ReaderConfig):
    """Keys of `input` for `kind: webdataset`."""

    images_are_files = False
    kind: Literal["webdataset"] = "webdataset"
    image: str | None = Field(
        None,
        description="Extension of the image member, such as `jpg` or `input.png`; by default "
        "the first of `jpg`, `jpeg`, `png`, `webp`, `gif`, `bmp`, `tif`, `tiff` that a sample "
        "has.",
    )
    caption: str | tuple[str, ...] | None = Field(
        None,
        description="Extension of a text member or else a key of the json member, or several "
        "that are all taken, in order; by default `txt`, else the key `caption`, `captions`, "
        "`text`, `conversations` or `messages`, of which the assistant's turns are captions.",
    )


@dataclass(slots=True)
class _Group:
    """The members of one sample that have been read so far.

    Attributes:
        key: The common part of their names.
        offset: First byte of the first member in the tar.
        images, texts: The members by extension.
        faults: The faults of members.
        has_other: Whether an image was left out because its name has more than one dot.
    """

    key: str = ""
    offset: int = 0
    images: dict[str, ImageRef] = field(default_factory=dict)
    texts: dict[str, bytes] = field(default_factory=dict)
    faults: list[RowFault] = field(default_factory=list)
    has_other: bool = False

    def add_image(self, extension: str, image: ImageRef, order: Sequence[str]) -> None:
        """Add an image; of several only the first by the order of extensions stays, since each may hold its bytes."""
        self.images[extension] = image
        first = min(self.images, key=order.index)
        self.images = {first: self.images[first]}

    @property
    def is_sample(self) -> bool:
        """True if a member says something about an image or a caption."""
        return bool(self.images or self.texts or self.faults or self.has_other)


class WebdatasetReader(Reader):
    """Reads `kind: webdataset`: one piece for each tar."""

    config_type = WebdatasetInput
    suffixes = (".tar", ".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz")

    def __init__(self, config: WebdatasetInput) -> None:
        self.config = config
        names = config.caption
        self._images = IMAGE_EXTENSIONS if config.image is None else (config.image.lower(),)
        self._captions = ("txt",) if names is None else (names,) if isinstance(names, str) else names
        self._texts = {"json", *(name.lower() for name in self._captions)}

    def pieces(self) -> list[Piece]:
        """List the tars. Reading, not planning, finds damaged ones."""
        files = find_files(self.config.path, self.suffixes)
        return [Piece(url=file.url, name=file.name, stamp=stamp_of(file.url, file.stamp)) for file in files]

    def read(self, piece: Piece) -> Iterator[InputRow]:
        """Yield the rows of a piece.

        A damaged tar ends with one sample with the error bad_row.
        """
        keys: set[str] = set()
        group = _Group()
        # Read from front to back, so that samples carry their images.
        is_inline = is_compressed(piece.url) or not is_local(piece.url)
        limits = dict.fromkeys(self._images, MAX_INLINE_BYTES if is_inline else -1)
        limits |= dict.fromkeys(self._texts, MAX_TEXT_BYTES)
        try:
            with open_plain(piece.url) as stream:
                for header, content in iter_members(stream, limits, can_seek=not is_inline):
                    key, extension = _split(header.name)
                    if key and group.key != key:
                        if group.is_sample:
                            yield self._sample(group, piece, keys)
                        group = _Group(key, header.offset)
                    limit = limits.get(extension)
                    if limit is None:
                        group.has_other |= extension.rpartition(".")[2] in self._images
                    elif not _is_file(header):
                        detail = f"{shorten(header.name)} is a link or device in the tar; only plain files are read"
                        group.faults.append(RowFault("bad_location", detail))
                    elif header.size > limit >= 0:
                        detail = f"{shorten(header.name)} has {header.size} bytes, at most {limit} are read"
                        is_text = extension in self._texts
                        group.faults.append(RowFault("bad_row" if is_text else "image_too_large", detail))
                    elif extension in self._texts:
                        group.texts[extension] = content or b""
                    else:
                        group.add_image(extension, _image_ref(header, content, piece.url), self._images)
        except TarDamage as damage:
            note = f"; the sample {shorten(group.key)} is incomplete" if group.key else ""
            if group.images and group.texts:
                yield self._sample(group, piece, keys)
                note = ""
            name = storable(piece.name)
            place = f"{name}:{damage.offset}"
            detail = f"{name}, byte {damage.offset}: {damage}{note}; the rest is not read"
            yield Sample(sample_id=place, source=place, error=RowError(reason="bad_row", detail=detail))
            return
        if group.is_sample:
            yield self._sample(group, piece, keys)

    def _sample(self, group: _Group, piece: Piece, keys: set[str]) -> InputRow:
        place = storable(f"{piece.name}/{group.key}")
        sample_id = place
        faults: list[RowFault] = []
        if group.key in keys:
            sample_id = f"{place}#{group.offset}"
            detail = (
                "the name came before in this tar; members of a sample must be neighbours (tar --sort=name)"
            )
            faults.append(RowFault("duplicate_id", detail))
        keys.add(group.key)
        if group.key.startswith("/") or ".." in group.key.split("/"):
            faults.append(RowFault("bad_location", f"the name {shorten(group.key)} leaves the tar"))
        faults += group.faults
        captions: tuple[str, ...] = ()
        try:
            row = _json_of(group)
            if row.get("status") not in (None, "success"):
                return SkippedRow(reason="failed_download", source=place)
            captions = self._captions_of(group, row)
        except RowFault as fault:
            faults.append(fault)
        image = next(
            (group.images[extension] for extension in self._images if extension in group.images), None
        )
        if image is None:
            expected = " or ".join(f".{extension}" for extension in self._images)
            faults.append(RowFault("missing_image", f"no {expected} beside the other members of this name"))
        return Sample(
            sample_id=sample_id,
            source=place,
            captions=captions,
            image=image or NO_IMAGE,
            error=faults[0].error.at(place) if faults else None,
        )

    def _captions_of(self, group: _Group, row: Json) -> tuple[str, ...]:
        captions: list[str] = []
        for name in self._captions:
            if name.lower() in group.texts and name.lower() != "json":
                captions.append(decode_text(group.texts[name.lower()], f"{group.key}.{name}"))
            else:
                keys = (
                    ("caption", "captions", "text", *TURN_FIELDS)
                    if self.config.caption is None
                    else (name,)
                )
                captions += captions_of(row, first_field(row, keys)[0])
        return tuple(captions)


def _split(name: str) -> tuple[str, str]:
    """Key and extension of a member; both are empty for names without a dot, hidden files and macOS's forks."""
    folder, slash, base = name.rpartition("/")
    stem, dot, extension = base.partition(".")
    if not stem or not dot or "__MACOSX" in folder.split("/"):
        return "", ""
    return f"{folder}{slash}{stem}", extension.lower()


def _json_of(group: _Group) -> Json:
    """The json member's object, empty if there is none. Raise RowFault (bad_row)."""
    if "json" not in group.texts:
        return {}
    try:
        return json_object(group.texts["json"])
    except RowFault as fault:
        raise RowFault(
            "bad_row",
            f"the json member cannot be read: {fault.error.detail}",
        ) from fault


_READ_BYTES: Final = 1024 * 1024
_LOOK_AHEAD_BYTES: Final = 64 * 1024

# Broken numbers and names in headers raise these; tarfile does not turn them into its own errors.
_HEADER_ERRORS: Final = (tarfile.TarError, ValueError, OverflowError, KeyError, IndexError)


class _Headers:
    """The stream that tarfile reads headers from. Long names and attributes follow a header, and state their size."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self.tell = stream.tell
        self.seek = stream.seek

    def read(self, size: int) -> bytes:
        """Return at most `size` bytes. Raise RowFault for more than `MAX_TEXT_BYTES`."""
        if size > MAX_TEXT_BYTES:
            raise RowFault(
                "bad_row", f"a header states {size} bytes of names, at most {MAX_TEXT_BYTES} are read"
            )
        content: bytes = self._stream.read(size)
        return content


class TarDamage(Exception):
    """A tar that cannot be read from byte `offset` on."""

    def __init__(self, offset: int, problem: str) -> None:
        super().__init__(problem)
        self.offset = offset


def iter_members(
    stream: Stream,
    limits: Mapping[str, int],
    *,
    can_seek: bool,
) -> Iterator[tuple[tarfile.TarInfo, bytes | None]]:
    """Yield the headers of the members in order, without folders, and their content, None if it is not read.

    Raise TarDamage where the tar cannot be read on. The stream is newly opened; unless it
    `can_seek`, it is read from front to back only. `limits` has the most bytes to read of files with an extension.
    """
    total = stream.seek(0, 2) if can_seek else None
    stream.seek(0)
    source = stream if can_seek or isinstance(stream, Forward) else Forward(stream.read)
    end = 0
    try:
        archive = _parse(lambda: tarfile.TarFile(fileobj=cast(IO[bytes], _Headers(source))))
        while (header := _parse(archive.next)) is not None:
            cast(Any, archive).members.clear()  # it would keep every header until the end
            header.name = header.name.removeprefix("./")
            content = _read_member(source, header, limits.get(_split(header.name)[1], -1), total)
            end = archive.offset
            if not header.isdir():
                yield header, content
        source.seek(end)
        mark = _read_up_to(source, tarfile.BLOCKSIZE)
        tail = _read_up_to(source, _LOOK_AHEAD_BYTES)
        if not mark:
            raise RowFault("bad_row", "it ends without its end mark")
        if any(mark):
            raise RowFault("bad_row", "no member begins here")
    except RowFault as fault:
        raise TarDamage(end, f"the tar is damaged or cut off: {fault.error.detail}") from fault
    if any(tail):
        raise TarDamage(end, "the tar goes on after its end mark, as joined tars do")


def _is_file(header: tarfile.TarInfo) -> bool:
    return header.isreg() and not header.issparse()


def _read_member(source: Stream, header: tarfile.TarInfo, limit: int, total: int | None) -> bytes | None:
    """Return the content of a plain file of at most `limit` bytes; None for other members.

    Raise RowFault if the tar of `total` bytes ends within it.
    """
    if header.size < 0:
        raise RowFault("bad_row", f"{header.name!r} has {header.size} bytes")
    if not _is_file(header):
        return None
    content = None
    if header.size <= limit:
        source.seek(header.offset_data)
        content = _read_up_to(source, header.size)
    size = header.size if content is None else len(content)
    if size < header.size or (total is not None and header.offset_data + header.size > total):
        raise RowFault("bad_row", f"it ends within {header.name!r}")
    return content


def _image_ref(header: tarfile.TarInfo, content: bytes | None, url: str) -> ImageRef:
    name = storable(header.name)
    if content is not None:
        return ImageRef(file_name=name, content=content)
    return ImageRef(file_name=name, url=url, offset=header.offset_data, size=header.size)


Value = TypeVar("Value")


def _parse(step: Callable[[], Value]) -> Value:
    """Run a step of tarfile. Raise RowFault for a header that tarfile cannot parse."""
    try:
        return step()
    except _HEADER_ERRORS as error:
        raise RowFault("bad_row", str(error)) from error


def _read_up_to(stream: Stream, size: int) -> bytes:
    """Read `size` bytes, or fewer if the stream ends.

    Memory grows with the stream, not with `size`.
    """
    blocks = []
    while size > 0 and (block := stream.read(min(size, _READ_BYTES))):
        blocks.append(block)
        size -= len(block)
    return b"".join(blocks)
