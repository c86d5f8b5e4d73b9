"""Files of a web server, whole or not at all: what was interrupted goes on where it stopped."""

from __future__ import annotations

import hashlib
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import IO, Final

from phrasebox.stages.contract.errors import InputError, one_line

TRIES: Final = 4
PAUSE_SECONDS: Final = 1.0  # before the second try; each further one waits twice as long

_TIMEOUT_SECONDS: Final = 60
_CHUNK_BYTES: Final = 1 << 20

OnBytes = Callable[[int], None]
"""Hears how many bytes of a file there are."""


def download(
    url: str,
    path: Path,
    *,
    size: int | None = None,
    md5: str | None = None,
    on_bytes: OnBytes = lambda _: None,
) -> None:
    """Download a file, unless it is there; a part of it that an earlier try left is not fetched again.

    Args:
        url: The file, by http or https.
        path: Where to put it. The part of a file lies beside it, with `.part` behind its name.
        size: Its bytes, if they are known.
        md5: Its MD5 in hex, as its publisher states it.
        on_bytes: Hears how many bytes there are.

    Raises:
        InputError: The server does not answer, has no such file, or its file is another.
    """
    if path.exists():
        return
    part = path.with_name(f"{path.name}.part")
    for number in range(TRIES):
        try:
            _fetch(url, part, on_bytes)
            break
        except urllib.error.HTTPError as error:
            error.close()
            if error.code < 500 and error.code != 429:
                raise InputError(f"{url}: {error.code} {error.reason}") from error
            fault: Exception = error
        except (OSError, HTTPException) as error:
            fault = error
        if number + 1 < TRIES:
            time.sleep(PAUSE_SECONDS * 2**number)
    else:
        raise InputError(f"{url} cannot be fetched: {one_line(fault)}. The same command goes on") from fault
    _check(url, part, size, md5)
    part.rename(path)


def _fetch(url: str, part: Path, on_bytes: OnBytes) -> None:
    """Append what is missing to the part of a file. Raise OSError or HTTPException."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})  # noqa: S310  http by `_checked`
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as answer:  # noqa: S310
            goes_on = answer.status == 206
            have = have if goes_on else 0
            length = answer.headers.get("Content-Length")
            with part.open("ab" if goes_on else "wb") as file:
                done = _copy(answer, file, have, on_bytes)
    except urllib.error.HTTPError as error:
        if not (have and error.code == 416):  # nothing is missing
            raise
        error.close()
        return
    if length is not None and done < have + int(length):
        raise ConnectionError(f"the connection ended after {done:,} bytes")


def _copy(answer: IO[bytes], file: IO[bytes], done: int, on_bytes: OnBytes) -> int:
    """Copy an answer behind the bytes that are done; return how many are done then."""
    while chunk := answer.read(_CHUNK_BYTES):
        file.write(chunk)
        done += len(chunk)
        on_bytes(done)
    return done


def _check(url: str, part: Path, size: int | None, md5: str | None) -> None:
    """Raise InputError, and delete the part, if it is not the file that was asked for."""
    length = part.stat().st_size
    fault = "" if size in (None, length) else f"it has {length:,} bytes, and should have {size:,}"
    if not fault and md5 is not None:
        with part.open("rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        fault = "" if digest == md5 else f"its MD5 is {digest}, and should be {md5}"
    if fault:
        part.unlink()
        raise InputError(f"{url} is another file: {fault}")
