"""The list of shards in `dataset.json`: what belongs to a dataset, and whether it is still as it was written.

Everything that reads a finished dataset opens the shards of this list, and no other file of
`data/`. Datasets of versions before the list have none: then every Parquet file in `data/`
belongs to the dataset.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import cache
from typing import Final

from phrasebox.stages.contract.errors import InputError
from phrasebox.stages.contract.values import Json
from phrasebox.stages.files.shards import ShardFile, footer_sha256_of, sha256_of
from phrasebox.stages.files.storage import AnyPath, found_in, write_text

SHARDS: Final = "shards"
"""The key of `dataset.json` for the list."""

DAMAGED_FILE: Final = ".phrasebox/damaged.json"
"""Names of shards that a check of whole files has found damaged: the next run looks at all of them."""

REMEDY: Final = "run its command again, and only their rows are made anew"

_MOST_NAMES: Final = 3  # of files that a line names
_THREADS: Final = 32  # Files opened at once
_FIELDS: Final = {"name": str, "rows": int, "size_bytes": int, "sha256": str, "footer_sha256": str}

_logger: Final = logging.getLogger("phrasebox")


def listed_shards(manifest: Json, path: object) -> tuple[ShardFile, ...] | None:
    """Return the shards that a manifest lists, by name; None if it was written before there was a list.

    path: That of the manifest. Raise InputError for a list that is damaged, or names files elsewhere.
    """
    entries = manifest.get(SHARDS)
    if entries is None:
        return None
    if not isinstance(entries, list) or not all(map(_is_shard, entries)):
        raise InputError(f"{path} is damaged: its list of shards cannot be read")
    return tuple(sorted((ShardFile(**entry) for entry in entries), key=lambda shard: shard.name))


def _is_shard(entry: object) -> bool:
    return (
        isinstance(entry, dict)
        and entry.keys() == _FIELDS.keys()
        and all(type(entry[name]) is kind for name, kind in _FIELDS.items())
        and entry["name"].endswith(".parquet")
        and not entry["name"].startswith(".")
        and not {"/", "\\", "\0"} & set(entry["name"])
    )


def shards_of(folder: AnyPath, manifest: Json | None, location: str) -> tuple[AnyPath, ...]:
    """Return the paths of the shards of a dataset by name, and note what else lies beside them.

    manifest: None if its run has not finished. location: The dataset as the user wrote it. Raise InputError for a
    list that is damaged, or names files that are gone.
    """
    data = folder / "data"
    paths = {path.name: path for path in found_in(data, "*.parquet")}
    if manifest is None:
        return tuple(paths.values())
    shards = listed_shards(manifest, folder / "dataset.json")
    if shards is None:
        note_once(
            f"{location} was made before dataset.json listed its shards: every file in {data} is read. phrasebox "
            "validate --repair adds the list"
        )
        return tuple(paths.values())
    names = [shard.name for shard in shards]
    if missing := set(names) - paths.keys():
        raise InputError(f"{location} lacks shards ({names_in_words(missing)}): {REMEDY}")
    if unlisted := paths.keys() - set(names):
        note_once(unlisted_in_words(data, unlisted))
    return tuple(paths[name] for name in names)


def manifest_text(manifest: Json) -> str:
    """Return the text of `dataset.json`, with one line for each shard of its list."""
    shards = manifest.get(SHARDS)
    values = {key: value for key, value in manifest.items() if key != SHARDS}
    text = json.dumps(values, indent=2, ensure_ascii=False)
    if shards is None:
        return text + "\n"
    lines = ",".join(f"\n    {json.dumps(entry, ensure_ascii=False)}" for entry in shards)
    return f'{text[:-2]},\n  "{SHARDS}": [{lines}\n  ]\n}}\n'


def list_entries(shards: Iterable[ShardFile]) -> list[Json]:
    """Return the list of a manifest, by name."""
    return [asdict(shard) for shard in sorted(shards, key=lambda shard: shard.name)]


def names_in_words(names: Iterable[str]) -> str:
    """Return the first names of some files for a line."""
    ordered = sorted(names)
    return ", ".join([*ordered[:_MOST_NAMES], *(["..."] if len(ordered) > _MOST_NAMES else [])])


def unlisted_in_words(data: AnyPath, names: Iterable[str]) -> str:
    """Return the line about files of `data/` that are not in the list."""
    return f"{data} holds files that dataset.json does not list, and that are not read: {names_in_words(names)}"


@cache
def note_once(line: str) -> None:
    """Say a line to people, once in a process: on standard error, unless the program logs in another way."""
    _logger.warning("%s", line)


def find_changed(
    data: AnyPath, shards: Sequence[ShardFile], sizes: Mapping[str, int], suspects: Iterable[str] = ()
) -> list[str]:
    """Return the names of listed shards that are gone, or are not as they were written: by size and footer.

    sizes: Those of the files in the folder, by name. suspects: Names of shards that are read whole.
    """
    whole_names = set(suspects)

    def is_changed(shard: ShardFile) -> bool:
        if sizes.get(shard.name) != shard.size_bytes:
            return True
        path = data / shard.name
        try:
            if shard.name in whole_names and sha256_of(path) != shard.sha256:
                return True
            return footer_sha256_of(path) != shard.footer_sha256
        except OSError:
            return True

    with ThreadPoolExecutor(_THREADS) as pool:
        changes = pool.map(is_changed, shards, chunksize=1)
        return [shard.name for shard, change in zip(shards, changes, strict=True) if change]


def store_damaged(dataset: AnyPath, names: Iterable[str]) -> None:
    """Leave the names of damaged shards for the next run. Raise OSError."""
    path = dataset / DAMAGED_FILE
    path.parent.mkdir(exist_ok=True)
    write_text(path, json.dumps(sorted(names)) + "\n")


def read_damaged(dataset: AnyPath) -> list[str]:
    """Return the names that `store_damaged` has left."""
    try:
        names = json.loads((dataset / DAMAGED_FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return []
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
