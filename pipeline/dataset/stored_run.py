"""What a dataset's folder stores of its run, dataset.json and run.json, as this version of phrasebox has it."""

from __future__ import annotations

import json
from typing import Final

from phrasebox.pipeline.dataset.signature import is_own, sign
from phrasebox.stages.contract.errors import InputError
from phrasebox.stages.contract.schema_versions import VERSION, check_version, lift_manifest
from phrasebox.stages.contract.values import Json
from phrasebox.stages.files.storage import AnyPath

MADE_AGAIN: Final = "the command of its run makes it again, or phrasebox validate --repair"


def read_manifest(folder: AnyPath, location: str) -> Json | None:
    """Return the manifest, lifted from an older version; None if there is none.

    location: The dataset as the user wrote it. Raise InputError if it is damaged, and SchemaError if a newer phrasebox
    has written it.
    """
    path = folder / "dataset.json"
    try:
        stored = read_json(path)
    except InputError as error:
        raise InputError(f"{error}; {MADE_AGAIN}") from error
    if stored is None:
        return None
    if VERSION in stored:
        check_version(location, stored)
        manifest = lift_manifest(stored)
        if all(isinstance(manifest.get(name), dict) for name in ("config", "counts")):
            # A signature holds for the configuration as it was stored.
            return sign(manifest) if manifest is not stored and is_own(stored) else manifest
    raise InputError(f"{path} is not the manifest of a phrasebox dataset")


def read_unfinished(folder: AnyPath, location: str) -> Json:
    """Return what is stored of a run that has not finished; empty if nothing is. Raise as `read_manifest`."""
    run = read_json(folder / ".phrasebox" / "run.json") or {}
    if VERSION in run:
        check_version(location, run)
    return run


def read_json(path: AnyPath) -> Json | None:
    """Return the object in a file; None if the file does not exist.

    Raise InputError for anything else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is damaged: expected an object")
    return content
