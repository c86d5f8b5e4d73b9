"""Size and time of the files of an input, by which a run notices that one changes while it is read.

Planning takes the stamp of a file before it looks into it. On the same machine a reader compares
it after each row that it has read, so that no row comes from other bytes than those of the plan.
Files behind URLs are compared by their size, when their piece has been read: each look is a
request.
"""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from dataclasses import dataclass

from phrasebox.stages.contract.errors import InputError
from phrasebox.stages.files.storage import is_local, network_errors, resolve


@dataclass(frozen=True, slots=True)
class Stamp:
    """What tells two states of a file apart.

    Attributes:
        size: Bytes.
        time_ns: Time of the last change; 0 for a file behind a URL.
        machine: The machine that has looked: copies on others have other times.
    """

    size: int
    time_ns: int = 0
    machine: str = ""


def stamp_of(url: str, listed: str = "") -> Stamp | None:
    """Return the stamp of a file; None if it is not known.

    listed: `SourceFile.stamp` of a file behind a URL. Raise InputError if a local file is gone.
    """
    if is_local(url):
        return _local_stamp(url)
    size = listed.partition(" ")[0]
    return Stamp(int(size)) if size.isdecimal() else None


def check_row(url: str, stamp: Stamp | None, place: str) -> None:
    """Raise InputError if a local file is no longer what its stamp says.

    place: The last row before, for people.
    """
    if stamp is not None and is_local(url):
        _compare(url, stamp, _local_stamp(url), place)


def check_end(url: str, stamp: Stamp | None, place: str) -> None:
    """Raise InputError as `check_row`, also for a file behind a URL, when a piece has been read."""
    check_row(url, stamp, place)
    if stamp is not None and not is_local(url):
        filesystem, path = resolve(url)
        with suppress(*network_errors()):  # the content has arrived: no answer is no change
            size = filesystem.info(path).get("size")
            _compare(url, stamp, Stamp(size) if isinstance(size, int) else stamp, place)


def _local_stamp(url: str) -> Stamp:
    try:
        status = os.stat(url)
    except OSError as error:
        raise InputError(f"cannot look into {url}: {error.strerror or error}") from error
    return Stamp(status.st_size, status.st_mtime_ns, platform.node())


def _compare(url: str, planned: Stamp, now: Stamp, place: str) -> None:
    has_other_time = planned.machine == now.machine and planned.time_ns != now.time_ns
    if planned.size != now.size or has_other_time:
        sizes = f"{planned.size:,} bytes before, {now.size:,} now"
        raise InputError(
            f"{url} has changed while it was read, noticed after {place} ({sizes}): no later row was taken. When "
            "nothing writes to the file any more, run the same command again: it compares the file with the rows"
        )
