"""What people say of a dataset, a line of JSON each, in files beside its shards that are only ever appended to.

Several processes may write at a time, and a line is on disk before `append_lines` returns. Lines
that cannot be read, such as one torn by a crash, are skipped and counted.

Files in object storage cannot be appended to, so each process writes a separate one,
`LOG-NAME.jsonl`. All `LOG*.jsonl` are read together: lines from other machines count once their
file is in the folder.
"""

from __future__ import annotations

import fcntl
import io
import os
import stat
import threading
import uuid
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from operator import itemgetter
from pathlib import Path
from typing import IO, Any, ClassVar, Final, TypeVar

from pydantic import AwareDatetime, BaseModel, Field
from pydantic_core import from_json, to_json

from phrasebox.stages.contract.errors import InputError, one_line
from phrasebox.stages.contract.values import Json
from phrasebox.stages.contract.versions import StoredFormat
from phrasebox.stages.files.storage import AnyPath, ObjectPath, found_in

LONGEST_LINE: Final = 16_384  # bytes
LONGEST_TEXT: Final = LONGEST_LINE // 8  # letters of a text in a line, some of which take six bytes
MOST_BYTES: Final = 256 << 20  # of a file: about a million lines

VERSION: Final = "version"
"""The key of a line for the version of its other values."""

FIRST_VERSION: Final = 1  # of lines that do not say theirs

_SAFELY: Final = (
    os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
)  # no link to elsewhere, and no pipe that hangs
_LOCK: Final = threading.Lock()
_NAME: Final = uuid.uuid4().hex[:12]  # of this process's objects
_CONTENTS: Final[dict[str, bytes]] = {}  # object of this process -> its content


class LogLine(BaseModel, frozen=True):
    """A line of a log, as this version of phrasebox has it.

    Attributes:
        form: The versions of the line's values in JSON, of which `version` is one; a line without it has the version 1.
    """

    form: ClassVar[StoredFormat[Json]]

    time: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC))


LineT = TypeVar("LineT", bound=LogLine)


def log_files(dataset: AnyPath, log: str) -> list[AnyPath]:
    """Return the files of a log, as "reviews", by name."""
    return found_in(dataset, f"{log}*.jsonl")


def read_log(dataset: AnyPath, log: str, kind: type[LineT]) -> tuple[list[LineT], int]:
    """Return the lines of all files of a log, the earliest first, and the number of those that cannot be read.

    Lines of an older version are lifted. Raise InputError for a file that is unreadable, or a link, or has lines of
    a newer version.
    """
    timed_lines: list[tuple[datetime, LineT]] = []
    unreadable_lines = 0
    try:
        for path in log_files(dataset, log):
            latest = datetime.min.replace(tzinfo=UTC)
            for content in lines_of(path):
                try:
                    line = _line_of(content, kind, path)
                except ValueError:
                    unreadable_lines += 1
                    continue
                latest = max(
                    latest, line.time
                )  # clocks are set back, so the lines of a file keep their order
                timed_lines.append((latest, line))
    except OSError as error:
        raise InputError(f"the {log} of {dataset} cannot be read: {one_line(error)}") from error
    return [line for _, line in sorted(timed_lines, key=itemgetter(0))], unreadable_lines


def _line_of(content: bytes, kind: type[LineT], path: AnyPath) -> LineT:
    """Return a line. Raise InputError for one of a newer version, and ValueError for one that cannot be read."""
    values = from_json(content)
    if not isinstance(values, dict):
        raise ValueError("expected an object")
    version: Any = values.pop(VERSION, FIRST_VERSION)
    if fault := kind.form.find_fault(version):
        if isinstance(version, int) and version > kind.form.current:
            raise InputError(f"{path}: {fault}")
        raise ValueError(fault)
    return kind.model_validate(kind.form.lift(values, version))


def append_lines(dataset: AnyPath, log: str, lines: Sequence[LogLine]) -> None:
    """Add lines to a log. They are on disk when this returns.

    Raise OSError if they cannot be written.
    """
    content = b"".join(map(_content_of, lines))
    if isinstance(dataset, ObjectPath):
        path = dataset / f"{log}-{_NAME}.jsonl"
        with _LOCK:
            content = _CONTENTS.get(str(path), b"") + content
            path.write_bytes(content)
            _CONTENTS[str(path)] = content
        return
    descriptor = os.open(dataset / f"{log}.jsonl", os.O_RDWR | os.O_APPEND | os.O_CREAT | _SAFELY, 0o666)
    with os.fdopen(descriptor, "r+b", buffering=0) as file:
        _check_regular(file)
        fcntl.flock(file, fcntl.LOCK_EX)  # several servers may write
        end = file.seek(0, os.SEEK_END)
        if end and os.pread(descriptor, 1, end - 1) != b"\n":
            content = b"\n" + content  # behind a line that a crash has torn
        while content:
            content = content[file.write(content) :]
        os.fsync(descriptor)
    folder = os.open(dataset, os.O_RDONLY)
    os.fsync(folder)  # the file may be new
    os.close(folder)


def _content_of(line: LogLine) -> bytes:
    values = {VERSION: line.form.current, **line.model_dump(mode="json", exclude_none=True)}
    return to_json(values) + b"\n"


def lines_of(path: AnyPath) -> Iterator[bytes]:
    """Yield the lines that are not empty.

    A line over `LONGEST_LINE` comes in parts, and no part is valid JSON.
    """
    if isinstance(path, ObjectPath):
        file: IO[bytes] = io.BytesIO(path.open().read(MOST_BYTES + 1))
    else:
        file = os.fdopen(os.open(path, os.O_RDONLY | _SAFELY), "rb")
    with file:
        if isinstance(path, Path):
            _check_regular(file)
        for line in iter(lambda: file.readline(LONGEST_LINE), b""):
            if file.tell() > MOST_BYTES:
                raise InputError(f"{path} is larger than {MOST_BYTES >> 20} MB")
            if line.strip():
                yield line


def _check_regular(file: IO[bytes]) -> None:
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        raise OSError("not a regular file")
