"""Tars of every bad kind: file name -> its bytes, and what each of its rows must say, in order.

"good" stands for a row that is as it would be alone. A new case is one line in `TARS`.
"""

import gzip
import io
import tarfile
from typing import Any

from tests.corpus.goods import good
from tests.corpus.pictures import put
from tests.stages.read.inputs import Member, special, tar_bytes, tar_sample


def tar(*parts: Member | list[Member], format: int = tarfile.USTAR_FORMAT) -> bytes:
    members = (member for part in parts for member in (part if isinstance(part, list) else [part]))
    return tar_bytes(members, format=format)


def sample(number: int, key: str = "") -> list[Member]:
    return tar_sample(key or f"{number:05d}", good(number).caption, good(number).image)


def text(caption: bytes, key: str = "x") -> Member:
    return (f"{key}.txt", caption)


def between(*members: Member, **options: Any) -> bytes:
    """The members between two good samples."""
    return tar(sample(0), list(members), sample(1), **options)


def case(outcome: str, *members: Member, **options: Any) -> tuple[bytes, list[str]]:
    return between(*members, **options), ["good", outcome, "good"]


def pair(key: str) -> list[Member]:
    return [(f"{key}.jpg", good(2).image), text(b"a cat", key)]


def member_at(content: bytes, name: str) -> int:
    """The place of the header of a member."""
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        return archive.getmember(name).offset


IMAGE: Member = ("x.jpg", good(2).image)
CAPTION = text(b"a red square")
TWO = tar(sample(0), sample(1))
THREE = tar(sample(0), sample(1), sample(2))
SECOND = member_at(THREE, "00001.jpg")


def _wrong_checksum(content: bytes, name: str) -> bytes:
    return put(content, member_at(content, name) + 148, b"000000")


TARS: dict[str, tuple[bytes, list[str]]] = {
    "whole.tar": (THREE, ["good", "good", "good"]),
    "no bytes.tar": (b"", ["bad_row"]),
    "html.tar": (b"<html>404</html>" * 100, ["bad_row"]),
    "wrong checksum.tar": (_wrong_checksum(THREE, "00001.jpg"), ["good", "bad_row"]),
    "zeros in its headers.tar": (
        put(THREE, SECOND, b"\0" * 512),
        ["good", "bad_row"],
    ),
    "joined.tar": (TWO + TWO, ["good", "good", "bad_row"]),
    "no caption.tar": case("no_caption", IMAGE),
    "no image.tar": case("missing_image", CAPTION),
    "empty image.tar": case("bad_image", ("x.jpg", b""), CAPTION),
    "empty caption.tar": case("no_caption", IMAGE, text(b"")),
    "caption in Latin-1.tar": case("bad_caption", IMAGE, text(b"caf\xe9")),
    "caption with a byte order mark.tar": case("annotated", IMAGE, text(b"\xef\xbb\xbfa red cat")),
    "caption of 17 MB.tar": case("bad_row", IMAGE, text(b"a " * 8_500_000)),
    "broken json.tar": case("bad_row", IMAGE, ("x.json", b"{")),
    "json a list.tar": case("bad_row", IMAGE, ("x.json", b"[]")),
    "caption a number.tar": case("bad_caption", IMAGE, ("x.json", b'{"caption": 5}')),
    "failed download.tar": (between(("x.json", b'{"status": "failed_to_download"}')), ["good", "good"]),
    "symbolic link.tar": case(
        "bad_location",
        special("x.jpg", tarfile.SYMTYPE, "/etc/passwd"),
        CAPTION,
    ),
    "pipe.tar": case("bad_location", special("x.jpg", tarfile.FIFOTYPE), CAPTION),
    "caption a link.tar": case("bad_location", IMAGE, special("x.txt", tarfile.SYMTYPE, "/etc/passwd")),
    "above the tar.tar": case("bad_location", *pair("../x")),
    "absolute.tar": case("bad_location", *pair("/etc/x")),
    "the same name again.tar": (
        tar(sample(0), sample(1), sample(2, "00000")),
        ["good", "good", "duplicate_id"],
    ),
    "members apart.tar": (
        tar(sample(0)[:1], sample(1), sample(0)[2:]),
        ["no_caption", "good", "duplicate_id"],
    ),
    "of a Mac.tar": (
        between(("__MACOSX/x.jpg", b"?"), ("._00001.jpg", b"?"), (".hidden.jpg", b"?")),
        ["good", "good"],
    ),
    "name that is not UTF-8.tar": case("annotated", *pair("a\udcffb"), format=tarfile.GNU_FORMAT),
    "pax name.tar": case("annotated", *pair("\u732b"), format=tarfile.PAX_FORMAT),
    "whole.tar.gz": (gzip.compress(TWO), ["good", "good"]),
    "not gzip.tar.gz": (TWO, ["bad_row"]),
    "damaged tail.tar.gz": (put(gzip.compress(TWO), -8, b"\0\0\0\0"), ["good", "good", "bad_row"]),
    "something after it.tar.gz": (gzip.compress(TWO) + b"<html>", ["good", "good", "bad_row"]),
    "a bomb.tar.gz": (
        gzip.compress(between(("x.jpg", bytes(2**28 + 1)), CAPTION), 1),
        ["good", "image_too_large", "good"],
    ),
}
