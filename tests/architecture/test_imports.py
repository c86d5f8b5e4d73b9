"""Who may import whom, and which library stands where. Read from the source, so that nothing is loaded."""

from __future__ import annotations

import ast
from collections.abc import Callable

import pytest

from tests.architecture.source import PACKAGES, imports, modules

BASE = {"base", "errors", "records", "schema", "geometry", "masks", "images", "files", "pictures"}
"""Modules under `stages/` that every stage may use."""

STAGES: dict[str, set[str]] = {
    "read": set(),
    "phrases": set(),
    "prepare": set(),
    "explain": {"clip"},
    "regions": set(),
    "write": {"phrases.filters"},  # `validate` asks what the text of a span is
    "evaluate": {"phrases.filters"},  # names of the truth are compared with phrases
    "scenes": set(),
    "dataset": {"write.atomic"},
    "load": {"clip", "dataset"},  # of clip the tokenizer, when it is asked for
    # clipself alone needs the model, and imports it when it is asked for
    "export": {"clip", "dataset", "write.atomic", "write.parquet", "write.tally"},
    "clip": {"weights"},
    "weights": set(),
    "train": {"clip", "scenes", "weights"},
}
"""Folder under `stages/` -> other folders, or modules in them, that it may import. Siblings do not know each other."""

BASE_MODULES: dict[str, set[str]] = {
    "errors": set(),
    "geometry": set(),
    "records": {"errors"},
    "base": {"records"},
    "files": {"errors"},
    "schema": {"errors", "records"},
    "masks": {"geometry", "records"},
    "images": {"errors", "files", "records"},
    "pictures": {"images", "masks", "records"},
}
"""Module under `stages/` -> modules below it that it may import; no stage."""

LIBRARIES: dict[str, set[str]] = {
    "ray": {"pipeline/engines/ray_"},  # files whose names begin so
    "torch": {
        "stages/clip/",
        "stages/explain/",
        "stages/load/",
        "stages/train/",
        "pipeline/bench.py",
        "pipeline/bench_load.py",
    },
    "safetensors": {"stages/clip/", "stages/train/"},
    "open_clip": {"stages/clip/", "stages/train/", "pipeline/bench.py"},
    "spacy": {"stages/phrases/noun_phrases.py"},
    "typer": {"pipeline/cli.py", "pipeline/options.py"},
    "rich": {"pipeline/"},
    "cv2": {
        "stages/evaluate/",
        "stages/regions/",
        "stages/scenes/",
        "stages/train/",
        "stages/masks.py",
        "stages/pictures.py",
    },
    "pycocotools": {"stages/masks.py", "stages/evaluate/coco_ap.py"},
    "PIL": {
        "stages/images.py",
        "stages/pictures.py",
        "pipeline/bench_load.py",
        "pipeline/demo.py",
        "pipeline/explain.py",
    },
    "fsspec": {"stages/files.py"},
    "yaml": {"pipeline/config.py", "stages/write/card.py"},
    "pyarrow": {
        "pipeline/",
        "stages/dataset/",
        "stages/load/",
        "stages/export/",
        "stages/read/",
        "stages/write/",
        "stages/schema.py",
        "stages/files.py",
    },
    "pandas": set(),
    "datasets": set(),
    "transformers": set(),
    "duckdb": {"stages/dataset/selection.py", "stages/dataset/index.py"},
    "starlette": {"pipeline/viewer/app.py"},
    "uvicorn": {"pipeline/viewer/serve.py"},
    "jinja2": {"pipeline/viewer/pages.py"},
}
"""Library -> the files or folders that may import it."""

NOT_IN_RECORDS = ("pydantic", "torch", "pyarrow", "cv2")

Offenders = dict[str, list[str]]
"""File -> what it imports and should not."""


def parts(path: str) -> list[str]:
    """["stages", "clip", "base"] of "stages/clip/base.py"; the folder for its `__init__`."""
    names = path.removesuffix(".py").split("/")
    return names[:-1] if names[-1] == "__init__" else names


def is_below(name: str, allowed: set[str]) -> bool:
    return any(name == entry or name.startswith(f"{entry}.") for entry in allowed)


def test_every_module_has_a_place() -> None:
    """A new folder or module says here what it may import."""
    places = {parts(path)[1] for path in modules() if path.startswith("stages/") and len(parts(path)) > 1}
    assert places == set(STAGES) | set(BASE_MODULES)
    assert set(BASE_MODULES) == BASE


def offenders(folder: str, wrong: Callable[[str, str], bool]) -> Offenders:
    """Imports of the files below a folder for which `wrong(path, name)` holds."""
    found = {
        path: [name for name in imports(tree) if wrong(path, name)]
        for path, tree in modules().items()
        if path.startswith(folder)
    }
    return {path: names for path, names in found.items() if names}


def test_stages_never_import_the_pipeline() -> None:
    assert offenders("stages/", lambda _, name: name.split(".")[0] == "pipeline") == {}


def test_siblings_do_not_know_each_other() -> None:
    def is_stranger(path: str, name: str) -> bool:
        own = parts(path)[1]
        allowed = BASE_MODULES[own] if own in BASE_MODULES else BASE | {own} | STAGES[own]
        return name.startswith("stages.") and not is_below(name.removeprefix("stages."), allowed)

    assert offenders("stages/", lambda path, name: len(parts(path)) > 1 and is_stranger(path, name)) == {}


def test_engines_know_no_single_stage() -> None:
    """They run a graph: which stages stand in it, and how a stage works, is none of their business."""
    allowed = {f"stages.{name}" for name in ("base", "errors", "files", "read", "records", "schema")}
    allowed |= {"stages.write.parquet", "stages.write.places"}
    strangers = offenders(
        "pipeline/engines/", lambda _, name: name.startswith("stages.") and not is_below(name, allowed)
    )
    assert strangers == {}


def test_imports_are_absolute() -> None:
    assert offenders("", lambda _, name: name.startswith(".")) == {}


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_stands_only_in_its_place(library: str) -> None:
    users = {path for path, tree in modules().items() if any(n.split(".")[0] == library for n in imports(tree))}
    strangers = {path for path in users if not any(path.startswith(place) for place in LIBRARIES[library])}
    assert strangers == set()
    unused = {place for place in LIBRARIES[library] if not any(path.startswith(place) for path in users)}
    assert unused == set(), "take it off the list"


@pytest.mark.parametrize("path", ["stages/records.py", "stages/errors.py", "stages/geometry.py", "stages/base.py"])
def test_the_ground_floor_is_light(path: str) -> None:
    assert not {name.split(".")[0] for name in imports(modules()[path])} & set(NOT_IN_RECORDS)


@pytest.mark.parametrize("path", ["stages/clip/config.py", "stages/explain/config.py"])
def test_settings_need_no_torch(path: str) -> None:
    """The driver and `--help` read them."""
    assert "torch" not in {name.split(".")[0] for name in imports(modules()[path])}


@pytest.mark.parametrize("package", PACKAGES)
def test_the_packages_themselves_import_nothing(package: str) -> None:
    assert list(imports(modules()[f"{package}/__init__.py"])) == []


def test_every_module_says_what_it_is_for() -> None:
    assert [path for path, tree in modules().items() if not ast.get_docstring(tree)] == []
