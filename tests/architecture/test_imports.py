"""Who may import whom, and which library stands where. Read from the source, so that nothing is loaded."""

from __future__ import annotations

import ast
from collections.abc import Callable

import pytest

from tests.architecture.source import PACKAGES, imports, modules

ROOMS: dict[str, set[str]] = {
    "contract": set(),
    "storage": {"contract"},
    "images": {"contract", "storage"},
    "read": {"contract", "storage"},
    "phrases": {"contract"},
    "prepare": {"contract", "storage", "images"},
    "model": {"contract"},
    "model.scenes": {"contract"},
    "model.train": {"contract", "model", "phrases"},  # the photograph model learns the phrases that a run finds
    "explain": {"contract", "model"},
    "regions": {"contract", "images"},
    # The rivals of heat maps. `boxes` matches phrases with a truth as `eval` does.
    "sources": {"contract", "images.crops", "model", "phrases.filters", "dataset.evaluate"},
    "finetune": {"contract", "model", "dataset.load"},
    "write": {"contract", "storage", "phrases.filters"},  # `validate` asks what a span's text is
    # `origin` knows the names of what comes with phrasebox.
    "dataset": {"contract", "storage", "images", "model.config", "phrases.stage"},
    "dataset.evaluate": {"contract", "storage", "phrases.filters"},  # names of the truth are compared with phrases
    # Of the model the tokenizer, when it is asked for.
    "dataset.load": {"contract", "storage", "images", "dataset", "model"},
    # Masks at grid size are the loaders' own; figures are means with the intervals of `eval`.
    "probe": {"contract", "images", "model", "dataset.evaluate", "dataset.load.region_masks"},
    # clipself alone needs the model, and imports it when it is asked for.
    "dataset.export": {"contract", "images", "dataset", "model", "storage", "write.parquet", "write.tally"},
}
"""Room under `stages/` -> other rooms, or modules in them, that it may import. The steps do not know each other."""

CONTRACT: dict[str, set[str]] = {
    "errors": set(),
    "geometry": set(),
    "levels": set(),
    "records": {"errors"},
    "stage": {"records"},
    "schema": {"errors", "levels", "records"},
    "versions": {"schema"},
    "masks": {"geometry", "records"},
}
"""Module of `stages/contract/` -> modules beside it that it may import."""

LIBRARIES: dict[str, set[str]] = {
    "ray": {"pipeline/engines/ray_"},  # files whose names begin so
    "torch": {
        "stages/model/",
        "stages/explain/",
        "stages/sources/",
        "stages/dataset/load/",
        "stages/dataset/evaluate/cut_fit.py",  # its optimiser
        "stages/probe/embed.py",
        "stages/finetune/",
        "pipeline/bench/",
    },
    "torchvision": {"stages/model/deferred.py"},  # the others import it from `deferred`
    "huggingface_hub": {"stages/model/hub.py"},
    "safetensors": {"stages/model/", "stages/finetune/files.py", "pipeline/bench/"},
    "timm": {"stages/model/"},
    "tokenizers": {"stages/model/checkpoints/own_tokenizer.py", "stages/model/train/photo/teacher.py"},
    "sentencepiece": {"stages/model/checkpoints/own_tokenizer.py"},
    "open_clip": {"stages/model/deferred.py", "stages/model/train/"},  # the others import it from `deferred`
    "spacy": {"stages/phrases/parser.py"},
    "thinc": {"stages/phrases/parser.py"},
    "typer": {"pipeline/cli.py", "pipeline/commands/"},
    "rich": {"pipeline/"},
    "cv2": {
        "stages/dataset/evaluate/",
        "stages/regions/",
        "stages/sources/",
        "stages/model/scenes/",
        "stages/model/train/",
        "stages/contract/masks.py",
        "stages/images/pictures.py",
    },
    "pycocotools": {"stages/contract/masks.py", "stages/dataset/evaluate/scores.py"},
    "PIL": {
        "stages/images/crops.py",
        "stages/images/decode.py",
        "stages/images/faults.py",
        "stages/images/pictures.py",
        "pipeline/bench/",
        "pipeline/commands/demo.py",
        "pipeline/commands/explain.py",
        "pipeline/commands/models.py",
        "pipeline/notebook.py",
    },
    "fsspec": {"stages/storage.py"},
    "skimage": {"stages/sources/selective_search.py"},
    "scipy": {"stages/explain/attention/attention_flow.py"},
    "yaml": {"pipeline/config.py", "stages/write/tally.py"},
    "pyarrow": {
        "pipeline/",
        "stages/dataset/",
        "stages/dataset/load/",
        "stages/dataset/export/",
        "stages/read/",
        "stages/write/",
        "stages/contract/schema.py",
        "stages/contract/versions.py",
        "stages/storage.py",
    },
    "pandas": set(),
    "datasets": set(),
    "transformers": set(),
    "duckdb": {"stages/dataset/selection.py", "stages/dataset/index.py"},
    "starlette": {"pipeline/viewer/app.py"},
    "uvicorn": {"pipeline/viewer/app.py"},
    "jinja2": {"pipeline/viewer/pages.py", "pipeline/compare/page.py"},
}
"""Library -> the files or folders that may import it."""

NOT_IN_RECORDS = ("pydantic", "torch", "pyarrow", "cv2")

Offenders = dict[str, list[str]]
"""File -> what it imports and should not."""


def parts(path: str) -> list[str]:
    """["stages", "model", "text"] of "stages/model/text.py"; the folder for its `__init__`."""
    names = path.removesuffix(".py").split("/")
    return names[:-1] if names[-1] == "__init__" else names


def is_below(name: str, allowed: set[str]) -> bool:
    return any(name == entry or name.startswith(f"{entry}.") for entry in allowed)


def room(path: str) -> str:
    """The innermost room that a file under `stages/` stands in."""
    name = ".".join(parts(path)[1:])
    return max((entry for entry in ROOMS if is_below(name, {entry})), key=len, default="")


def test_every_module_has_a_place() -> None:
    """A new folder or module says here what it may import."""
    placed = {path: room(path) for path in modules() if path.startswith("stages/") and len(parts(path)) > 1}
    assert [path for path, name in placed.items() if not name] == []
    assert set(placed.values()) == set(ROOMS)
    assert {parts(path)[-1] for path in placed if path.startswith("stages/contract/")} - {"contract"} == set(CONTRACT)


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


def test_rooms_know_only_what_they_need() -> None:
    def is_stranger(path: str, name: str) -> bool:
        own = room(path)
        return name.startswith("stages.") and not is_below(name.removeprefix("stages."), ROOMS[own] | {own})

    assert offenders("stages/", lambda path, name: len(parts(path)) > 1 and is_stranger(path, name)) == {}


def test_the_contract_has_floors() -> None:
    def is_stranger(path: str, name: str) -> bool:
        beside = CONTRACT.get(parts(path)[-1], set()) | {parts(path)[-1]}
        return name.startswith("stages.contract.") and not is_below(name.removeprefix("stages.contract."), beside)

    assert offenders("stages/contract/", is_stranger) == {}


def test_engines_know_no_single_stage() -> None:
    """They run a graph: which stages stand in it, and how a stage works, is none of their business."""
    allowed = {f"stages.{name}" for name in ("contract", "storage", "read")}
    allowed |= {"stages.write.parquet"}
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


@pytest.mark.parametrize("name", ["records", "errors", "geometry", "stage"])
def test_the_ground_floor_is_light(name: str) -> None:
    assert not {name.split(".")[0] for name in imports(modules()[f"stages/contract/{name}.py"])} & set(NOT_IN_RECORDS)


@pytest.mark.parametrize("path", ["stages/model/config.py", "stages/explain/config.py"])
def test_settings_need_no_torch(path: str) -> None:
    """The driver and `--help` read them."""
    assert "torch" not in {name.split(".")[0] for name in imports(modules()[path])}


@pytest.mark.parametrize("package", PACKAGES)
def test_the_packages_themselves_import_nothing(package: str) -> None:
    assert imports(modules()[f"{package}/__init__.py"]) == ()


def test_every_module_says_what_it_is_for() -> None:
    assert [path for path, tree in modules().items() if not ast.get_docstring(tree)] == []
