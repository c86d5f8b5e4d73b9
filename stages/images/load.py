"""Encoded images as bytes: from memory, from a file or a part of one, from a file system behind a URL."""

from __future__ import annotations

import os
import stat
import time
from typing import Final

from stages.contract.errors import RowFault
from stages.contract.records import ImageRef
from stages.images.faults import DecodeLimits, check_bytes
from stages.storage import is_local, open_file

_NAME_CHARS: Final = 200
"""Longest part of a file's name in a message."""

_TRIES: Final = 3
_FIRST_PAUSE_S: Final = 0.5


def load_image_bytes(image: ImageRef, limits: DecodeLimits) -> bytes:
    """The encoded image. A symbolic link is followed; a pipe or device is not opened.

    Raises:
        RowFault: missing_image, bad_location, image_too_large, or bad_image if the file is too short.
    """
    if image.content is not None:
        check_bytes(len(image.content), limits)
        return image.content
    if image.url is None:
        raise RowFault("missing_image", "the row names no image")
    name = repr(image.file_name if len(image.file_name) <= _NAME_CHARS else image.file_name[:_NAME_CHARS] + "…")
    try:
        read = _read_local if is_local(image.url) else _read_remote
        content = read(image.url, image.offset, image.size, limits)
    except FileNotFoundError as error:
        is_link = is_local(image.url) and os.path.islink(image.url)
        what = "is a link to a file that does not exist" if is_link else "does not exist below the image root"
        raise RowFault("missing_image", f"{name} {what}") from error
    except OSError as error:
        raise RowFault("missing_image", f"{name} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise RowFault("bad_location", f"{name} cannot be the name of a file: {error}") from error
    if len(content) < image.size:
        missing = f"{len(content)} of the image's {image.size} bytes"
        raise RowFault("bad_image", f"{name}: the file holds only {missing}")
    return content


def _read_local(path: str, offset: int, size: int, limits: DecodeLimits) -> bytes:
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise OSError("it is a folder" if stat.S_ISDIR(status.st_mode) else "it is not a plain file")
    wanted = size if size >= 0 else max(0, status.st_size - offset)
    check_bytes(wanted, limits)
    with open(path, "rb", buffering=0) as file:
        file.seek(offset)
        return file.read(wanted)


def _read_remote(url: str, offset: int, size: int, limits: DecodeLimits) -> bytes:
    """Like `_read_local`; tries again where the network may be at fault."""
    check_bytes(size, limits)
    wanted = size if size >= 0 else limits.max_bytes + 1
    pause_s = _FIRST_PAUSE_S
    for attempt in range(1, _TRIES + 1):
        try:
            with open_file(url) as file:
                file.seek(offset)
                content = file.read(wanted)
            break
        except (FileNotFoundError, PermissionError, IsADirectoryError):
            raise
        except OSError as error:
            if attempt == _TRIES:
                raise OSError(f"{error} ({_TRIES} tries)") from error
            time.sleep(pause_s)
            pause_s *= 4
    check_bytes(len(content), limits)
    return content
