"""An export of the format `hf` as a dataset repository of the Hugging Face hub.

`HF_ENDPOINT` and `HF_TOKEN` mean what they mean to the client, and the token is its own (`hf auth
login`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Final

from huggingface_hub import HfApi, constants, errors

from phrasebox.pipeline.export.files import MARK
from phrasebox.stages.contract.errors import ConfigError, OutputError, PhraseboxError, one_line
from phrasebox.stages.contract.values import Json

OF_THE_HUB: Final = frozenset({".gitattributes", "README.md"})  # files of a new repository
KIND: Final = "dataset"


def open_repository(name: str, *, public: bool, overwrite: bool) -> None:
    """Create the dataset repository OWNER/NAME, or check that an export may go to the existing one.

    A new repository is private unless `public`. An existing one must be empty or, with
    `overwrite`, hold another export; it is not changed.

    Raise ConfigError if the name is invalid, if the repository holds anything else, or if it is
    public without `public`; OutputError if the hub cannot be reached or does not let this user
    write.
    """
    if name.count("/") != 1:
        raise ConfigError(f"expected OWNER/NAME, got {name!r}", key="push")
    with _hub_errors(name):
        api = HfApi(library_name="phrasebox")
        api.create_repo(name, repo_type=KIND, private=not public, exist_ok=True)
        repository = api.dataset_info(name)
    files = {file.rfilename for file in repository.siblings or ()} - OF_THE_HUB
    if files and MARK not in files:
        raise ConfigError(
            f"{name} holds files that no export wrote ({min(files)}): give another name", key="push"
        )
    if files and not overwrite:
        raise ConfigError(
            f"{name} holds an export; give another name, or --overwrite to replace it", key="push"
        )
    if not (repository.private or public):
        raise ConfigError(
            f"{name} is public, and everybody could see the images: add --public if they may", key="push"
        )


def push(folder: Path, name: str) -> str:
    """Upload an export into its repository, in place of an older export, and return its URL.

    Raise OutputError if the upload fails; the local export stays, and can be uploaded again.
    """
    try:
        with _hub_errors(name):
            api = HfApi(library_name="phrasebox")
            target: Json = {"repo_id": name, "repo_type": KIND}
            api.upload_folder(folder_path=folder, commit_message="phrasebox export", **target)
            # Last: the client may delete in the first of several commits, and a later one may fail.
            files = [file for file in api.list_repo_files(**target) if fnmatch(file, "data/*.parquet")]
            if stale := [file for file in files if not (folder / file).exists()]:
                api.delete_files(
                    delete_patterns=stale,
                    commit_message="phrasebox export: the one before",
                    **target,
                )
    except OutputError as error:
        command = f"hf upload {name} {folder} --repo-type dataset"
        message = f"{error.args[0]}. The export is in {folder}; upload it with: {command}"
        raise OutputError(message, key=error.key) from error
    return f"{constants.ENDPOINT}/datasets/{name}"


@contextmanager
def _hub_errors(name: str) -> Iterator[None]:
    try:
        yield
    except PhraseboxError:
        raise
    except errors.HFValidationError as error:
        raise ConfigError(one_line(error), key="push") from error
    except Exception as error:  # which kind depends on the client's version and its HTTP library's
        status = getattr(getattr(error, "response", None), "status_code", None)
        advice = (
            "log in with a token that may write (hf auth login, or HF_TOKEN): "
            if status in (401, 403)
            else ""
        )
        cause = f" ({one_line(error.__cause__)})" if error.__cause__ else ""
        reason = f"{advice}{one_line(error).rstrip('.')}{cause}"
        raise OutputError(f"cannot write {name} at {constants.ENDPOINT}: {reason}", key="push") from error
