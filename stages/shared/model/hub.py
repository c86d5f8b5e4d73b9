"""Files of open_clip's tags, from the Hugging Face hub into its cache, by the hub's own client.

A file that is in the cache is used without a request. Another is announced with its size, and its SHA-256 is compared
with the one that the hub states. The client shows the progress and resumes interrupted downloads. `HF_ENDPOINT`,
`HF_HOME`, `HF_TOKEN` and `HF_HUB_OFFLINE` mean what they mean to the client.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import huggingface_hub
import open_clip
from huggingface_hub import constants, errors

from stages.contract.errors import WeightsError, one_line
from stages.shared.model.catalog import sha256_of

Say = Callable[[str], None]  # takes a line for the user

_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_log = logging.getLogger(__name__)


def fetch(name: str, tag: str, say: Say = _log.info) -> Path:
    """Find the weights of one of open_clip's tags in the cache, or download them; `say` announces a download.

    Raise WeightsError, which says what to do, if that fails or the file's SHA-256 is not the hub's.
    """
    repository, _, file = open_clip.get_pretrained_cfg(name, tag)["hf_hub"].rpartition("/")
    candidates = ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]  # as open_clip looks for them
    if file:
        stem, _, end = file.rpartition(".")
        candidates = [f"{stem}.safetensors", file] if end in ("bin", "pth") else [file]
    try:
        path = _fetch(repository, candidates, say)
        if path is not None:
            return path
        raise WeightsError(
            f"the repository {repository} holds neither {' nor '.join(candidates)}: update open_clip_torch"
        )
    except Exception as error:  # which kind depends on the client's version and its HTTP library's
        raise WeightsError(
            f"could not get {name}/{tag}: {_explain_error(error, repository)}, or download the file where you can, and "
            f"use --model {name} --weights FILE"
        ) from error


def _find_in_cache(repository: str, file: str) -> Path | None:
    path = huggingface_hub.try_to_load_from_cache(repository, file)
    return Path(path) if isinstance(path, str) else None


def _fetch(repository: str, candidates: Sequence[str], say: Say) -> Path | None:
    """Return the first candidate in the cache, or else the first in the repository; None if neither has one."""
    for file in candidates:
        if (path := _find_in_cache(repository, file)) is not None:
            return path
    for file in candidates:
        try:
            metadata = huggingface_hub.get_hf_file_metadata(huggingface_hub.hf_hub_url(repository, file))
        except errors.EntryNotFoundError:
            continue
        size = "" if metadata.size is None else f" ({metadata.size / 1e6:,.0f} MB)"
        say(f"downloading {file}{size} of {repository} from {constants.ENDPOINT} to {constants.HF_HUB_CACHE}")
        path = Path(huggingface_hub.hf_hub_download(repository, file, library_name="phrasebox"))
        if metadata.etag and _SHA256.fullmatch(metadata.etag) and (digest := sha256_of(path)) != metadata.etag:
            path.resolve().unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            raise WeightsError(
                f"{file} arrived damaged (SHA-256 {digest} instead of {metadata.etag}) and was deleted: try again"
            )
        return path
    return None


def damage_of(path: Path) -> str:
    """Return the fault of a cached file that cannot be loaded, and the remedy."""
    blob = path.resolve()  # the cache calls a large file by its SHA-256
    differs = _SHA256.fullmatch(blob.name) is not None and sha256_of(blob) != blob.name
    fault = "it is not what was downloaded (its SHA-256 differs)" if differs else "it holds something else"
    return f"{fault}: delete {blob}, and it is downloaded again"


_LOG_IN: Final = "log in (hf auth login, or HF_TOKEN)"

_NOT_THERE: Final = f"{{hub}} has no repository {{repository}}, or not for you: update open_clip_torch, {_LOG_IN}"

_ADVICE: Final[dict[type[Exception], str]] = {
    errors.GatedRepoError: (
        f"the repository {{repository}} is gated: accept its terms on {{hub}}/{{repository}} and {_LOG_IN}"
    ),
    errors.OfflineModeIsEnabled: "it is not in {cache}, and HF_HUB_OFFLINE forbids to download it: unset that",
    errors.RepositoryNotFoundError: _NOT_THERE,
    errors.RevisionNotFoundError: _NOT_THERE,
    errors.HfHubHTTPError: "{hub} rejects {repository} ({error}): look at your token, or try again later",
    errors.FileMetadataError: "{hub} answers as no hub does: look at HF_ENDPOINT and at proxies",
}
"""Error of the client -> what happened and what to do about it. The first that fits counts."""


def _explain_error(error: BaseException, repository: str) -> str:
    if isinstance(error, WeightsError):
        return str(error)
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    places = {"hub": constants.ENDPOINT, "cache": constants.HF_HUB_CACHE, "repository": repository}
    for kind, advice in _ADVICE.items():
        for link in chain:
            if isinstance(link, kind):
                return advice.format(**places, error=one_line(link))
    # The innermost error speaks of sockets; that of the HTTP library says in its name that it could not connect.
    if any("Connect" in type(link).__name__ or isinstance(link, ConnectionError | TimeoutError) for link in chain):
        return f"no connection to {constants.ENDPOINT} ({one_line(chain[-1])}): try again with a network"
    return f"the download to {constants.HF_HUB_CACHE} failed ({type(error).__name__}: {one_line(error)})"
