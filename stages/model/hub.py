"""Files of open_clip's tags, from the Hugging Face hub into its cache, by the hub's own client.

A file that is in the cache is used without a request. Another is announced with its size, and
its SHA-256 is compared with the one that the hub states. The client shows the progress and
resumes interrupted downloads. `HF_ENDPOINT`, `HF_HOME`, `HF_TOKEN` and `HF_HUB_OFFLINE` mean
what they mean to the client.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

import huggingface_hub
import open_clip
from huggingface_hub import constants, errors

from phrasebox.stages.contract.errors import WeightsError, with_type
from phrasebox.stages.model.catalog import sha256_of

Say = Callable[[str], None]  # takes a line for the user

_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_log = logging.getLogger(__name__)


def fetch(name: str, tag: str, say: Say = _log.info) -> Path:
    """Find the weights of one of open_clip's tags in the cache, or download them; `say` announces a download.

    Raise WeightsError, which says what to do, if that fails or the file's SHA-256 is not the hub's.
    """
    repository, _, file = open_clip.get_pretrained_cfg(name, tag)["hf_hub"].rpartition("/")
    candidates = [
        "open_clip_model.safetensors",
        "open_clip_pytorch_model.bin",
    ]  # as open_clip looks for them
    if file:
        stem, _, end = file.rpartition(".")
        candidates = [f"{stem}.safetensors", file] if end in ("bin", "pth") else [file]
    for candidate in candidates:
        cached_file = huggingface_hub.try_to_load_from_cache(repository, candidate)
        if isinstance(cached_file, str):
            return Path(cached_file)
    try:
        return _download(repository, candidates, say)
    except Exception as error:  # which kind depends on the client's version and its HTTP library's
        raise WeightsError(
            f"could not get {name}/{tag}: {_explain_error(error, repository)}, or download the file where you can, and "
            f"use --model {name} --weights FILE"
        ) from error


def _download(repository: str, candidates: list[str], say: Say) -> Path:
    """Download the first of the files that the repository has."""
    for file in candidates:
        try:
            metadata = huggingface_hub.get_hf_file_metadata(huggingface_hub.hf_hub_url(repository, file))
        except errors.EntryNotFoundError:
            continue
        size = "" if metadata.size is None else f" ({metadata.size / 1e6:,.0f} MB)"
        say(
            f"downloading {file}{size} of {repository} from {constants.ENDPOINT} to {constants.HF_HUB_CACHE}"
        )
        path = Path(huggingface_hub.hf_hub_download(repository, file, library_name="phrasebox"))
        if metadata.etag and _SHA256.fullmatch(metadata.etag) and sha256_of(path) != metadata.etag:
            path.resolve().unlink()
            path.unlink()
            raise WeightsError(f"{file} arrived damaged (its SHA-256 differs) and was deleted: try again")
        return path
    raise WeightsError(
        f"the repository {repository} has none of {', '.join(candidates)}: update open_clip_torch"
    )


_LOG_IN: Final = "log in (hf auth login, or HF_TOKEN)"

_ADVICE: Final[dict[type[Exception], str]] = {
    errors.GatedRepoError: f"{{repository}} is gated: accept its terms on {{hub}}/{{repository}} and {_LOG_IN}",
    errors.RepositoryNotFoundError: f"{{hub}} has no {{repository}}, or not for you: update open_clip_torch, {_LOG_IN}",
    errors.OfflineModeIsEnabled: "it is not in {cache}, and HF_HUB_OFFLINE forbids to download it: unset that",
}
"""Error of the client -> what happened and what to do about it. The first that fits counts."""


def _explain_error(error: Exception, repository: str) -> str:
    if isinstance(error, WeightsError):
        return str(error)
    advice = next((advice for kind, advice in _ADVICE.items() if isinstance(error, kind)), None)
    if advice is None:
        place = f"from {constants.ENDPOINT} to {constants.HF_HUB_CACHE}"
        return f"the download {place} failed ({with_type(error)}): try again"
    return advice.format(repository=repository, hub=constants.ENDPOINT, cache=constants.HF_HUB_CACHE)
