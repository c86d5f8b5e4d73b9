"""What open_clip knows by a tag, from the Hugging Face hub into its cache, by the hub's own client.

A file that is in the cache is used without a request. One that is not is announced with its size, compared with the
free space, fetched with a progress bar on the standard error (the client's), and its SHA-256 is compared with the one
that the hub states. A connection that breaks is taken up where it broke; a process that is killed begins again, as the
client keeps no part of a file (huggingface_hub 2). `HF_ENDPOINT`, `HF_HOME`, `HF_TOKEN` and `HF_HUB_OFFLINE` mean what
they mean to the client.
"""

from __future__ import annotations

import errno
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import huggingface_hub
from huggingface_hub import constants, errors

from stages.contract.errors import WeightsError, one_line
from stages.shared.model.catalog import sha256_of
from stages.shared.model.checkpoints.own_tokenizer import SETTINGS
from stages.shared.model.deferred import open_clip

Say = Callable[[str], None]
"""Takes a line for the user."""

_WEIGHTS: Final = "open_clip_pytorch_model.bin"
"""The file of a repository for which open_clip names none."""

_SAFE_WEIGHTS: Final = "open_clip_model.safetensors"
"""The same as safetensors, which open_clip prefers too."""

_SHA256: Final = re.compile(r"[0-9a-f]{64}")

_log = logging.getLogger(__name__)


def fetch(name: str, tag: str, say: Say = _log.info) -> Path:
    """Find the weights of a tag in the cache, or download them.

    Args:
        name: a model of open_clip.
        tag: its pretrained weights.
        say: told what is downloaded, before that.

    Returns:
        The file in the cache.

    Raises:
        WeightsError: the file cannot be had, or is not what the hub says; the message says what to do.
    """
    settings = open_clip.get_pretrained_cfg(name, tag)
    repository, _, file = settings.get("hf_hub", "").rpartition("/")
    candidates = _candidates(file)
    try:
        if not repository:  # no tag of open_clip 3.3
            return Path(open_clip.download_pretrained(settings))
        found = _fetch(repository, candidates, say)
        if found is None:
            neither = " nor ".join(candidates)
            raise WeightsError(f"the repository {repository} holds neither {neither}: update open_clip_torch")
    except Exception as error:  # what it raises depends on the client's version and its HTTP library's
        raise WeightsError(
            f"could not get {name}/{tag}: {_what_happened(error, repository)}, or download the file where you can, and "
            f"use --model {name} --weights FILE"
        ) from error
    return found


def fetch_tokenizer(repository: str, say: Say = _log.info) -> Path | None:
    """Find the vocabulary of a SigLIP in the cache, or download it, with the files beside it that describe it.

    Returns:
        Its `tokenizer.json`; None if the repository has none.

    Raises:
        WeightsError: it cannot be had; the message says what to do.
    """
    try:
        if (cached := _cached(repository, ("tokenizer.json",))) is not None:
            return cached
        # The vocabulary comes last: where it is in the cache, the others have been asked for.
        found = [_fetch(repository, (name,), say) for name in (*SETTINGS, "tokenizer.json")]
    except Exception as error:
        raise WeightsError(f"could not get the tokenizer {repository}: {_what_happened(error, repository)}") from error
    return found[-1]


def _candidates(file: str) -> tuple[str, ...]:
    """Names under which a repository may hold the weights, safetensors first, as open_clip looks for them."""
    if not file:
        return (_SAFE_WEIGHTS, _WEIGHTS)
    stem, _, end = file.rpartition(".")
    return (f"{stem}.safetensors", file) if end in ("bin", "pth") else (file,)


def _cached(repository: str, candidates: tuple[str, ...]) -> Path | None:
    """The first of some files of a repository that is in the cache."""
    paths = (huggingface_hub.try_to_load_from_cache(repository, file) for file in candidates)
    return next((Path(path) for path in paths if isinstance(path, str)), None)


def _fetch(repository: str, candidates: tuple[str, ...], say: Say) -> Path | None:
    """The first of some files that the cache or else the repository holds; None for none."""
    if (cached := _cached(repository, candidates)) is not None:
        return cached
    for file in candidates:
        try:
            found = huggingface_hub.get_hf_file_metadata(huggingface_hub.hf_hub_url(repository, file))
        except errors.EntryNotFoundError:
            continue
        _refuse_full_disk(found.size)
        size = "" if found.size is None else f" ({_megabytes(found.size)})"
        say(f"downloading {file}{size} of {repository} from {constants.ENDPOINT} to {constants.HF_HUB_CACHE}")
        path = Path(huggingface_hub.hf_hub_download(repository, file, library_name="phrasebox"))
        _verify(path, found.etag)
        return path
    return None


def _refuse_full_disk(size: int | None) -> None:
    """Raise WeightsError if the cache's disk has no room for a file, before hundreds of megabytes are fetched."""
    folder = Path(constants.HF_HUB_CACHE)
    place = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(place).free
    if size is not None and free < size:
        raise WeightsError(
            f"it takes {_megabytes(size)}, and the disk of {folder} has {_megabytes(free)} left: make room, set "
            "HF_HOME to a folder on another disk"
        )


def _verify(path: Path, etag: str | None) -> None:
    """Compare a file's SHA-256 with the hub's, which states it of all large files; a file that differs is deleted."""
    if etag is None or _SHA256.fullmatch(etag) is None:
        return
    found = sha256_of(path)
    if found != etag:
        path.resolve().unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        raise WeightsError(
            f"{path.name} arrived damaged (SHA-256 {found} instead of {etag}) and was deleted: try again"
        )


def damage_of(path: Path) -> str:
    """What is wrong with a file of the cache that cannot be loaded, and what to do.

    The cache calls a large file by its SHA-256.
    """
    blob = path.resolve()
    differs = _SHA256.fullmatch(blob.name) is not None and sha256_of(blob) != blob.name
    what = "it is not what was downloaded (its SHA-256 differs)" if differs else "it holds something else"
    return f"{what}: delete {blob}, and it is downloaded again"


def _what_happened(error: Exception, repository: str) -> str:
    """An error of the client in words, and what to do about it."""
    if isinstance(error, WeightsError):
        return str(error)
    chain = list(_causes(error))
    status = next((code for each in chain if (code := _status(each)) is not None), None)
    if any(isinstance(each, errors.GatedRepoError) for each in chain):
        return (
            f"the repository {repository} is gated: accept its terms on {constants.ENDPOINT}/{repository} and log in "
            "(hf auth login, or HF_TOKEN)"
        )
    if any(isinstance(each, errors.OfflineModeIsEnabled) for each in chain):
        return f"it is not in {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE forbids to download it: unset that"
    if any(isinstance(each, errors.RepositoryNotFoundError | errors.RevisionNotFoundError) for each in chain):
        return (
            f"{constants.ENDPOINT} has no repository {repository}, or not for you: update open_clip_torch, log in "
            "(hf auth login, or HF_TOKEN)"
        )
    if status in (401, 403):
        return f"{constants.ENDPOINT} refuses {repository} (HTTP {status}): look at your token (hf auth whoami)"
    if status is not None:
        return f"{constants.ENDPOINT} answers HTTP {status} for {repository}: try again later"
    for each in chain:
        if isinstance(each, OSError) and each.errno in (errno.ENOSPC, errno.EDQUOT):
            return f"the disk of {constants.HF_HUB_CACHE} is full: make room, set HF_HOME to a folder on another disk"
        if isinstance(each, OSError) and each.errno in (errno.EACCES, errno.EROFS):
            return f"{constants.HF_HUB_CACHE} cannot be written: set HF_HOME to a folder of yours"
        if "Consistency check failed" in str(each):
            return f"the file of {repository} arrived incomplete: try again"
        if isinstance(each, errors.FileMetadataError):
            return f"{constants.ENDPOINT} answers as no hub does: look at HF_ENDPOINT and at proxies"
    # The innermost speaks of sockets; that of the HTTP library says in its name that it could not connect.
    cut_off = any(
        "Connect" in type(each).__name__ or isinstance(each, ConnectionError | TimeoutError) for each in chain
    )
    what = "no connection to" if cut_off else "the download failed at"
    said = f"{type(chain[-1]).__name__}: {one_line(chain[-1])}"
    return f"{what} {constants.ENDPOINT} ({said}): try again with a network"


def _causes(error: BaseException | None) -> Any:
    """An error and what caused it, the outermost first."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _status(error: BaseException) -> int | None:
    """The HTTP status that an error stands for."""
    response = getattr(error, "response", None)
    code = getattr(response, "status_code", None)
    return code if isinstance(code, int) and code >= 400 else None


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"
