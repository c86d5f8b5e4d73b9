"""Paths of users: the same file may be written in many ways, also from another folder."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, get_args

from phrasebox.stages.contract.errors import ConfigError
from phrasebox.stages.contract.kinds import KindTable
from phrasebox.stages.contract.values import Json
from phrasebox.stages.explain import EXPLAINERS
from phrasebox.stages.files.storage import AnyPath, ObjectPath, absolute, place_of, write_text
from phrasebox.stages.read import READERS
from phrasebox.stages.sources.source import SOURCES

LOCATIONS: Final[dict[str, tuple[str | None, ...]]] = {
    "input.path": (),
    "input.image_root": (None,),
    "input.phrases": (None,),
    "regions.calibration": (None, "auto", "none", "generic"),
}
"""Keys that name files and folders to read -> the values that name none. Kinds add theirs, see
`locations_of_kinds`."""

_KINDS: Final[dict[str, KindTable[Any]]] = {"input": READERS, "explain": EXPLAINERS, "source": SOURCES}

MODEL_FILES: Final = ("model.checkpoint", "model.weights", "model.config")
"""Keys that name the files of a model."""


def as_written(path: AnyPath | str) -> str:
    """Return a path as the user wrote it, or a URL: of its two slashes, pathlib keeps only one."""
    place = place_of(path)
    return str(place if isinstance(place, ObjectPath) else path)


def locations_of_kinds(
    config: Mapping[str, Any], sections: Iterable[str] = _KINDS
) -> dict[str, tuple[Any, ...]]:
    """Return `LOCATIONS` of the kinds in plain sections: their settings of type `Path`, also of other packages' kinds.

    An unknown kind has none. Raise PluginError for one that does not load.

    >>> locations_of_kinds({"source": {"kind": "boxes"}})
    {'source.truth': (None,), 'source.detections': (None,)}
    """
    locations: dict[str, tuple[Any, ...]] = {}
    for section in sections:
        values = config.get(section)
        kind = values.get("kind") if isinstance(values, dict) else None
        if not isinstance(kind, str) or kind not in _KINDS[section]:
            continue
        for name, field in _KINDS[section].config_type(kind).model_fields.items():
            types = [*types_in(field.annotation)]
            if Path in types:
                locations[f"{section}.{name}"] = (None, *(word for word in types if isinstance(word, str)))
    return locations


def types_in(annotation: Any) -> Iterator[Any]:
    """Yield a type, the types that it is made of, and the values of literals."""
    yield annotation
    for argument in get_args(annotation):
        yield from types_in(argument)


def with_absolute_paths(plain: Mapping[str, Any]) -> Json:
    """Return values of `RunConfig.rows_depend_on` with the same path for the same file, however it was written."""
    values = dict(plain)
    for key, words in {**LOCATIONS, **locations_of_kinds(plain), **dict.fromkeys(MODEL_FILES, ())}.items():
        section, _, name = key.partition(".")
        value = (plain.get(section) or {}).get(name)
        if value is not None and value not in words:
            path = absolute(value) if isinstance(value, str) else [absolute(item) for item in value]
            values[section] = {**values[section], name: path}
    return values


def check_writable(key: str, path: Path) -> None:
    """Raise ConfigError, which has the key, if a local file cannot be written; its folder need not exist yet."""
    message = f"cannot write {path}"
    try:
        if path.is_dir():
            raise ConfigError(f"{message}: it is a folder; give the name of a file in it", key=key)
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        if not folder.is_dir():
            raise ConfigError(f"{message}: {folder} is a file", key=key)
        tempfile.TemporaryFile(dir=folder).close()  # os.access says yes to root even where nobody can
    except OSError as error:
        raise ConfigError(f"{message}: {error.strerror}", key=key) from error


def write_file(key: str, path: Path, text: str) -> None:
    """Write a text file, and the folders that it needs. Raise ConfigError, which has the key, if that fails."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}", key=key) from error
