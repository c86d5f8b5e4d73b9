"""The members of a tar, from front to back, and where and why it breaks off.

Headers are parsed by Python's tarfile, which ends silently at a damaged or missing header. Here every end other than
the format's own end mark gives a member with an `error`.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import IO, Any, Final, TypeVar, cast

from stages.contract.errors import RowError, RowFault
from stages.read.streams import Forward, Stream

_READ_BYTES: Final = 1024 * 1024
_LOOK_AHEAD_BYTES: Final = 64 * 1024

# Broken numbers and names in headers raise these; tarfile does not turn them into errors of its own.
_HEADER_ERRORS: Final = (tarfile.TarError, ValueError, OverflowError, KeyError, IndexError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """An entry of a tar.

    Attributes:
        name: Without a leading "./"; may hold lone surrogates.
        kind: "a file", or what else it is, for messages.
        offset: Of its header.
        data_offset: Of its content, which has `size` bytes.
        content: None unless it was asked for.
        error: Why the tar cannot be read any further from `offset` on; then nothing else is set.
    """

    name: str = ""
    kind: str = ""
    offset: int
    data_offset: int = 0
    size: int = 0
    content: bytes | None = None
    error: RowError | None = None

    @property
    def is_file(self) -> bool:
        """Whether it is a plain file."""
        return self.kind == "a file"


def iter_members(stream: Stream, *, can_seek: bool, wants: Callable[[Member], bool]) -> Iterator[Member]:
    """Members in order, without folders; one with an `error` is always the last.

    Args:
        stream: Newly opened.
        can_seek: Whether the stream may be entered anywhere; otherwise it is read from front to back only.
        wants: Whether the content of a file is to be read.
    """
    total = stream.seek(0, 2) if can_seek else None
    stream.seek(0)
    source = stream if can_seek or isinstance(stream, Forward) else Forward(stream.read)
    end = 0
    try:
        archive = _parsed(lambda: tarfile.TarFile(fileobj=cast(IO[bytes], source)))
        while (header := _parsed(archive.next)) is not None:
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
        mark, beyond = _read_up_to(source, tarfile.BLOCKSIZE), _read_up_to(source, _LOOK_AHEAD_BYTES)
        if not mark:
            raise RowFault("bad_row", "it ends without its end mark")
        if any(mark):
            raise RowFault("bad_row", "no member begins here")
    except RowFault as fault:
        detail = f"the tar is damaged or cut off: {fault.error.detail}"
        yield Member(offset=end, error=RowError(reason="bad_row", detail=detail))
        return
    if any(beyond):
        detail = "the tar goes on after its end mark, as joined tars do"
        yield Member(offset=end, error=RowError(reason="bad_row", detail=detail))


Answer = TypeVar("Answer")


def _parsed(step: Callable[[], Answer]) -> Answer:
    """The answer of a step of tarfile. Raises RowFault for a header that tarfile cannot parse."""
    try:
        return step()
    except _HEADER_ERRORS as error:
        raise RowFault("bad_row", str(error)) from error


def _read_up_to(stream: Stream, size: int) -> bytes:
    """`size` bytes, or fewer if the stream ends; never allocates more than the stream holds."""
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
