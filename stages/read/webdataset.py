"""WebDataset tars, as img2dataset writes them: `KEY.jpg`, `KEY.txt`, `KEY.json` for each sample.

A key is a member's path up to the first dot of its name, and a sample is a run of neighbouring members with the same
key; both are webdataset's rules. The captions are the `txt` member or else `caption` of the `json` member. The id of a
sample is "TAR/KEY".

Nothing is extracted. For a local tar, a sample has the place of its image in the file. Compressed tars and tars behind
a URL are read once from front to back, and samples carry the bytes.

If a `json` member has the status of a failed download, the sample is skipped and counted. Python's tarfile parses
headers, but ends silently at a damaged or missing one: here every end without the format's end mark is a member with an
`error`.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import IO, Any, ClassVar, Final, Literal, TypeVar, cast

from pydantic import Field

from stages.contract.errors import RowError, RowFault
from stages.contract.records import NO_IMAGE, ImageRef, Sample, storable
from stages.read.base import IMAGE_EXTENSIONS, MAX_TEXT_BYTES, Reader, Shard, SkippedRow, SourceConfig
from stages.read.find import find_files
from stages.read.rows import captions_of, decode_text, json_object, shorten
from stages.read.streams import Forward, Stream, is_compressed, open_plain
from stages.shared.storage import is_local

MAX_INLINE_BYTES: Final = 256 * 1024 * 1024  # Of an image from a tar that is read in order; larger ones are faults


class WebdatasetInput(SourceConfig):
    """Keys of `input` for `kind: webdataset`."""

    kind: Literal["webdataset"] = "webdataset"
    image: str | None = Field(
        None,
        description="Extension of the image member, such as `jpg` or `input.png`; by default the first of `jpg`, "
        "`jpeg`, `png`, `webp`, `gif`, `bmp`, `tif`, `tiff` that a sample has.",
    )
    caption: str | tuple[str, ...] | None = Field(
        None,
        description="Extension of a text member or else a key of the json member, or several that are all taken, in "
        "order; by default `txt`, else the key `caption`, `captions` or `text`.",
    )


@dataclass(slots=True)
class _Group:
    """The members of one sample that have been read so far."""

    key: str
    offset: int  # of its first member in the tar
    images: dict[str, ImageRef] = field(default_factory=dict)
    texts: dict[str, bytes] = field(default_factory=dict)
    faults: list[RowFault] = field(default_factory=list)
    has_other: bool = False  # whether an image was left out because its name has more than one dot
    damage: str = ""  # why the tar cannot be read from `offset` on; such a group is the last, and empty


class WebdatasetReader(Reader):
    """Reads `kind: webdataset`: one shard for each tar."""

    config_type: ClassVar = WebdatasetInput
    suffixes: ClassVar = (".tar", ".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz")

    def __init__(self, config: WebdatasetInput) -> None:
        self.config = config
        names = config.caption
        self._images = IMAGE_EXTENSIONS if config.image is None else (config.image.lower(),)
        self._captions = ("txt",) if names is None else (names,) if isinstance(names, str) else names
        self._texts = {"json", *(name.lower() for name in self._captions)}

    def shards(self) -> list[Shard]:
        """List the tars. Reading, not planning, finds damaged ones."""
        files = find_files(self.config.path, self.suffixes)
        return [Shard(url=file.url, name=file.name) for file in files]

    def read(self, shard: Shard) -> Iterator[Sample | SkippedRow]:
        """Yield the rows of a shard. A damaged tar ends with one sample with the error bad_row."""
        keys: set[str] = set()
        name = storable(shard.name)
        with open_plain(shard.url) as stream:
            for group in self._groups(stream, shard):
                if group.damage:
                    place = f"{name}:{group.offset}"
                    detail = f"{name}, byte {group.offset}: {group.damage}; the rest is not read"
                    yield Sample(sample_id=place, source=place, error=RowError(reason="bad_row", detail=detail))
                elif group.images or group.texts or group.faults or group.has_other:
                    yield self._sample(group, shard, keys)

    @staticmethod
    def _is_inline(shard: Shard) -> bool:
        """Whether the tar is read from front to back, so that samples carry their images."""
        return is_compressed(shard.url) or not is_local(shard.url)

    def _groups(self, stream: Stream, shard: Shard) -> Iterator[_Group]:
        is_inline = self._is_inline(shard)

        def wants(member: Member) -> bool:
            _, extension = _split(member.name)
            if extension in self._texts:
                return member.size <= MAX_TEXT_BYTES
            return is_inline and extension in self._images and member.size <= MAX_INLINE_BYTES

        group = _Group("", 0)
        for member in iter_members(stream, can_seek=not is_inline, wants=wants):
            if member.damage:
                is_whole = group.images and self._has_caption(group)
                if is_whole:
                    yield group
                note = "" if is_whole or not group.key else f"; the sample {shorten(group.key)} is incomplete"
                yield _Group("", member.offset, damage=member.damage + note)
                return
            key, extension = _split(member.name)
            if key and group.key != key:
                yield group
                group = _Group(key, member.offset)
            self._add(group, extension, member, shard)
        yield group

    def _add(self, group: _Group, extension: str, member: Member, shard: Shard) -> None:
        is_image = extension in self._images
        is_text = extension in self._texts
        if not is_image and not is_text:
            group.has_other |= extension.rpartition(".")[2] in self._images
            return
        if not member.is_file:
            detail = f"{shorten(member.name)} is {member.kind} in the tar; only plain files are read"
            group.faults.append(RowFault("bad_location", detail))
        elif member.content is not None and is_text:
            group.texts[extension] = member.content
        elif member.content is not None:
            group.images[extension] = ImageRef(file_name=storable(member.name), content=member.content)
        elif is_text or self._is_inline(shard):
            limit = MAX_TEXT_BYTES if is_text else MAX_INLINE_BYTES
            detail = f"{shorten(member.name)} has {member.size} bytes, at most {limit} are read"
            group.faults.append(RowFault("bad_row" if is_text else "image_too_large", detail))
        else:
            group.images[extension] = ImageRef(
                file_name=storable(member.name), url=shard.url, offset=member.data_offset, size=member.size
            )

    def _sample(self, group: _Group, shard: Shard, keys: set[str]) -> Sample | SkippedRow:
        place = storable(f"{shard.name}/{group.key}")
        faults = list(group.faults)
        row: dict[str, Any] = {}
        captions: tuple[str, ...] = ()
        try:
            row = _json_of(group)
            if row.get("status") not in (None, "success"):
                keys.add(group.key)
                return SkippedRow(reason="failed_download", source=place)
            captions = self._captions_of(group, row)
        except RowFault as fault:
            faults.append(fault)
        if group.key.startswith("/") or ".." in group.key.split("/"):
            faults.insert(0, RowFault("bad_location", f"the name {shorten(group.key)} leaves the tar"))
        extension = next((extension for extension in self._images if extension in group.images), None)
        if extension is None:
            expected = " or ".join(f".{extension}" for extension in self._images)
            faults.append(RowFault("missing_image", f"no {expected} beside the other members of this name"))
        sample_id = place
        if group.key in keys:
            sample_id = f"{place}#{group.offset}"
            detail = "the name came before in this tar; members of a sample must be neighbours (tar --sort=name)"
            faults.insert(0, RowFault("duplicate_id", detail))
        keys.add(group.key)
        image = NO_IMAGE if extension is None else group.images[extension]
        error = faults[0].error.at(place) if faults else None
        return Sample(sample_id=sample_id, source=place, captions=captions, image=image, error=error)

    def _captions_of(self, group: _Group, row: dict[str, Any]) -> tuple[str, ...]:
        captions: list[str] = []
        for name in self._captions:
            if name.lower() in group.texts and name.lower() != "json":
                captions.append(decode_text(group.texts[name.lower()], f"{group.key}.{name}"))
            else:
                keys = ("caption", "captions", "text") if self.config.caption is None else (name,)
                captions += captions_of(row, keys, first_only=True)
        return tuple(captions)

    def _has_caption(self, group: _Group) -> bool:
        try:
            return bool(self._captions_of(group, _json_of(group)))
        except RowFault:
            return False


def _split(name: str) -> tuple[str, str]:
    """Key and extension of a member; both are empty for names without a dot, hidden files and macOS's forks."""
    folder, slash, base = name.rpartition("/")
    stem, dot, extension = base.partition(".")
    if not stem or not dot or "__MACOSX" in folder.split("/"):
        return "", ""
    return f"{folder}{slash}{stem}", extension.lower()


def _json_of(group: _Group) -> dict[str, Any]:
    """The json member's object, empty if there is none. Raise RowFault (bad_row)."""
    if "json" not in group.texts:
        return {}
    try:
        return json_object(group.texts["json"], at_start=True)
    except RowFault as fault:
        raise RowFault("bad_row", f"the json member cannot be read: {fault.error.detail}") from fault


_READ_BYTES: Final = 1024 * 1024
_LOOK_AHEAD_BYTES: Final = 64 * 1024

# Broken numbers and names in headers raise these; tarfile does not turn them into its own errors.
_HEADER_ERRORS: Final = (tarfile.TarError, ValueError, OverflowError, KeyError, IndexError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """An entry of a tar."""

    name: str = ""  # its path in the tar without a leading "./"; may hold lone surrogates
    kind: str = ""  # "a file", or the words for another kind, for messages
    offset: int  # first byte of its header
    data_offset: int = 0  # first byte of its content
    size: int = 0  # of its content, bytes
    content: bytes | None = None  # None if it was not read
    damage: str = ""  # why the tar cannot be read from `offset` on; then no other field is set

    @property
    def is_file(self) -> bool:
        """True for a plain file."""
        return self.kind == "a file"


def iter_members(stream: Stream, *, can_seek: bool, wants: Callable[[Member], bool]) -> Iterator[Member]:
    """Yield the members in order, without folders. A member with `damage` is always the last.

    The stream is newly opened; unless it `can_seek`, it is read from front to back only. `wants` chooses the files to
    read.
    """
    total = stream.seek(0, 2) if can_seek else None
    stream.seek(0)
    source = stream if can_seek or isinstance(stream, Forward) else Forward(stream.read)
    end = 0
    try:
        archive = _parse(lambda: tarfile.TarFile(fileobj=cast(IO[bytes], source)))
        while (header := _parse(archive.next)) is not None:
            cast(Any, archive).members.clear()  # it would keep every header until the end
            member = Member(
                name=header.name.removeprefix("./"),
                kind=_kind(header),
                offset=header.offset,
                data_offset=header.offset_data,
                size=header.size,
            )
            if member.size < 0:
                raise RowFault("bad_row", f"{member.name!r} has {member.size} bytes")
            if member.is_file and total is not None and member.data_offset + member.size > total:
                raise RowFault("bad_row", f"it ends within {member.name!r}")
            if member.is_file and wants(member):
                source.seek(member.data_offset)
                content = _read_up_to(source, member.size)
                if len(content) < member.size:
                    raise RowFault("bad_row", f"it ends within {member.name!r}")
                member = replace(member, content=content)
            end = archive.offset
            if member.kind != "a folder":
                yield member
        source.seek(end)
        mark = _read_up_to(source, tarfile.BLOCKSIZE)
        tail = _read_up_to(source, _LOOK_AHEAD_BYTES)
        if not mark:
            raise RowFault("bad_row", "it ends without its end mark")
        if any(mark):
            raise RowFault("bad_row", "no member begins here")
    except RowFault as fault:
        yield Member(offset=end, damage=f"the tar is damaged or cut off: {fault.error.detail}")
        return
    if any(tail):
        yield Member(offset=end, damage="the tar goes on after its end mark, as joined tars do")


Value = TypeVar("Value")


def _parse(step: Callable[[], Value]) -> Value:
    """Run a step of tarfile. Raise RowFault for a header that tarfile cannot parse."""
    try:
        return step()
    except _HEADER_ERRORS as error:
        raise RowFault("bad_row", str(error)) from error


def _read_up_to(stream: Stream, size: int) -> bytes:
    """Read `size` bytes, or fewer if the stream ends. Memory grows with the stream, not with `size`."""
    blocks = []
    while size > 0 and (block := stream.read(min(size, _READ_BYTES))):
        blocks.append(block)
        size -= len(block)
    return b"".join(blocks)


def _kind(header: tarfile.TarInfo) -> str:
    if header.issparse():
        return "a sparse file"
    if header.isreg():
        return "a file"
    if header.isdir():
        return "a folder"
    return "a link" if header.issym() or header.islnk() else "a device or pipe"
