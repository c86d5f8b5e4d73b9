"""Tars of every bad kind: file name -> its bytes, and what each of its rows must say, in order.

"good" stands for a row that is as it would be alone. A new case is one line in `TARS`.
"""

import gzip
import io
import json
import tarfile
from typing import Any

from tests.corpus.goods import good
from tests.corpus.pictures import ANNOTATED, cut, noise, put

Member = tuple[str, bytes] | tarfile.TarInfo


def tar(*parts: Member | list[Member], format: int = tarfile.USTAR_FORMAT) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=format, encoding="utf-8", errors="surrogateescape") as archive:
        for part in parts:
            for member in part if isinstance(part, list) else [part]:
                if isinstance(member, tarfile.TarInfo):
                    archive.addfile(member)
                else:
                    info = tarfile.TarInfo(member[0])
                    info.size = len(member[1])
                    archive.addfile(info, io.BytesIO(member[1]))
    return stream.getvalue()


def sample(number: int, key: str = "") -> list[Member]:
    """A good sample as img2dataset writes it."""
    key = key or f"{number:05d}"
    facts = {"caption": good(number).caption, "key": key, "status": "success"}
    members = {"jpg": good(number).image, "json": json.dumps(facts).encode(), "txt": good(number).caption.encode()}
    return [(f"{key}.{kind}", content) for kind, content in members.items()]


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


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
TWO, THREE = tar(sample(0), sample(1)), tar(sample(0), sample(1), sample(2))
SECOND = member_at(THREE, "00001.jpg")
CUT = "bad_row: the tar is damaged or cut off"


def _wrong_checksum(content: bytes, name: str) -> bytes:
    return put(content, member_at(content, name) + 148, b"000000")


def _with_size(content: bytes, name: str, size: bytes) -> bytes:
    """Another size in a header, with the right checksum."""
    at = member_at(content, name)
    header = content[at : at + 124] + size.ljust(12, b"\0") + content[at + 136 : at + 148] + b" " * 8
    header += content[at + 156 : at + 512]
    return put(content, at, header[:148] + b"%06o\0 " % sum(header) + header[156:])


TARS: dict[str, tuple[bytes, list[str]]] = {
    "whole.tar": (THREE, ["good", "good", "good"]),
    "without end mark.tar": (THREE[: THREE.rindex(b"00002.txt") + 1024], ["good", "good", "good", CUT]),
    "empty.tar": (tar(), []),
    "no bytes.tar": (b"", [CUT]),
    "html.tar": (b"<html>404</html>" * 100, [CUT]),
    "zeros.tar": (b"\0" * 10_240, []),
    "noise.tar": (noise(10_240), [CUT]),
    "cut in a header.tar": (THREE[: SECOND + 100], ["good", CUT]),
    "cut in an image.tar": (THREE[: SECOND + 700], ["good", "bad_row: it ends within '00001.jpg'"]),
    "cut before a caption.tar": (THREE[: member_at(THREE, "00001.json")], ["good", CUT]),
    "cut after a caption.tar": (THREE[: member_at(THREE, "00002.jpg")], ["good", "good", CUT]),
    "wrong checksum.tar": (_wrong_checksum(THREE, "00001.jpg"), ["good", CUT]),
    "zeros in its headers.tar": (
        put(THREE, SECOND, b"\0" * 512),
        ["good", "bad_row: the tar goes on after its end mark"],
    ),
    "noise in an image.tar": (
        put(THREE, SECOND + 600, noise(1500)),
        ["good", "bad_image: no readable header of JPEG", "good"],
    ),
    "joined.tar": (TWO + TWO, ["good", "good", "bad_row: as joined tars do; the rest is not read"]),
    "larger than the file.tar": (_with_size(THREE, "00001.jpg", b"77777777777"), ["good", CUT]),
    "size of 8 exabytes.tar": (_with_size(THREE, "00001.jpg", b"\x80\0\0\0\x7f" + b"\xff" * 7), ["good", CUT]),
    "negative size.tar": (_with_size(THREE, "00001.jpg", b"\xff" * 12), ["good", CUT]),
    "size that is no number.tar": (_with_size(THREE, "00001.jpg", b"not a size"), ["good", CUT]),
    "no caption.tar": case("no_caption: the sample has no caption", IMAGE),
    "no image.tar": case("missing_image: no .jpg or .jpeg", CAPTION),
    "empty image.tar": case("bad_image: the file is empty", ("x.jpg", b""), CAPTION),
    "empty caption.tar": case("no_caption: all captions are empty", IMAGE, text(b"")),
    "html as image.tar": case("bad_image: a web page was saved", ("x.jpg", b"<html>"), CAPTION),
    "caption in Latin-1.tar": case("bad_caption: is not UTF-8", IMAGE, text(b"caf\xe9")),
    "caption in UTF-16.tar": case("bad_caption: is not UTF-8", IMAGE, text("a red cat".encode("utf-16"))),
    "caption with a byte order mark.tar": case(ANNOTATED, IMAGE, text(b"\xef\xbb\xbfa red cat")),
    "caption of NULs.tar": case("without phrases", IMAGE, text(b"\0" * 50)),
    "caption of 17 MB.tar": case("bad_row: at most 16777216", IMAGE, text(b"a " * 8_500_000)),
    "broken json.tar": case("bad_row: the json member cannot be read", IMAGE, ("x.json", b"{")),
    "json a list.tar": case("bad_row: expected a JSON object", IMAGE, ("x.json", b"[]")),
    "json too deep.tar": case("bad_row: the json member cannot be read", IMAGE, ("x.json", b"[" * 100_000)),
    "caption a number.tar": case("bad_caption: 'caption' holds a number", IMAGE, ("x.json", b'{"caption": 5}')),
    "caption a lone surrogate.tar": case(
        "bad_caption: half of a surrogate pair", IMAGE, ("x.json", b'{"caption": "\\ud800"}')
    ),
    "failed download.tar": (between(("x.json", b'{"status": "failed_to_download"}')), ["good", "good"]),
    "symbolic link.tar": case(
        "bad_location: 'x.jpg' is a link or device in the tar; only plain files are read",
        special("x.jpg", tarfile.SYMTYPE, "/etc/passwd"),
        CAPTION,
    ),
    "symbolic link to a good image.tar": case(
        "bad_location: is a link or device in the tar", special("x.jpg", tarfile.SYMTYPE, "00000.jpg"), CAPTION
    ),
    "hard link.tar": case(
        "bad_location: is a link or device in the tar", special("x.jpg", tarfile.LNKTYPE, "/etc/passwd"), CAPTION
    ),
    "device.tar": case("bad_location: is a link or device in the tar", special("x.jpg", tarfile.CHRTYPE), CAPTION),
    "pipe.tar": case("bad_location: is a link or device in the tar", special("x.jpg", tarfile.FIFOTYPE), CAPTION),
    "folder named like an image.tar": case("missing_image: no .jpg", special("x.jpg", tarfile.DIRTYPE), CAPTION),
    "caption a link.tar": case(
        "bad_location: 'x.txt' is a link or device in the tar", IMAGE, special("x.txt", tarfile.SYMTYPE, "/etc/passwd")
    ),
    "above the tar.tar": case("bad_location: the name '../x' leaves the tar", *pair("../x")),
    "above the tar in the middle.tar": case("bad_location: leaves the tar", *pair("a/../../x")),
    "absolute.tar": case("bad_location: the name '/etc/x' leaves the tar", *pair("/etc/x")),
    "the same name again.tar": (
        tar(sample(0), sample(1), sample(2, "00000")),
        ["good", "good", "duplicate_id: the name came before in this tar"],
    ),
    "members apart.tar": (
        tar(sample(0)[:1], sample(1), sample(0)[2:]),
        ["no_caption: the sample has no caption", "good", "duplicate_id: must be neighbours (tar --sort=name)"],
    ),
    "dots in names.tar": case("missing_image: no .jpg", ("x.2020.jpg", good(2).image), ("x.2020.txt", b"a cat")),
    "two images.tar": case(ANNOTATED, IMAGE, ("x.png", b"not looked at"), CAPTION),
    "other members.tar": (between(("x.mp3", b"?"), ("README", b"?"), (".x.jpg", b"?")), ["good", "good"]),
    "of a Mac.tar": (between(("__MACOSX/x.jpg", b"?"), ("._00001.jpg", b"?")), ["good", "good"]),
    "capital endings.tar": case(ANNOTATED, ("x.JPG", good(2).image), ("x.TXT", b"a cat")),
    "name with a line end.tar": case(ANNOTATED, *pair("a\nb")),
    "name that is not UTF-8.tar": case(ANNOTATED, *pair("a\udcffb"), format=tarfile.GNU_FORMAT),
    "name of 3000 letters.tar": case(ANNOTATED, *pair("n" * 3000), format=tarfile.GNU_FORMAT),
    "pax name.tar": case(ANNOTATED, *pair("\u732b"), format=tarfile.PAX_FORMAT),
    "whole.tar.gz": (gzip.compress(TWO), ["good", "good"]),
    "empty.tar.gz": (gzip.compress(tar()), []),
    "no bytes.tar.gz": (b"", [CUT]),
    "not gzip.tar.gz": (TWO, [CUT]),
    "cut.tar.gz": (cut(gzip.compress(THREE), 0.5), ["good", CUT]),
    "damaged tail.tar.gz": (put(gzip.compress(TWO), -8, b"\0\0\0\0"), ["good", "good", CUT]),
    "something after it.tar.gz": (gzip.compress(TWO) + b"<html>", ["good", "good", CUT]),
    "a bomb.tar.gz": (
        gzip.compress(between(("x.jpg", bytes(2**28 + 1)), CAPTION), 1),
        ["good", "image_too_large: at most 268435456 are read", "good"],
    ),
    "html.tgz": (b"<html>404</html>", [CUT]),
}
