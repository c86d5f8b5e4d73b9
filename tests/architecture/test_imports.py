"""Which room may import which, and where each library is used. Read from the source, so that nothing is loaded."""

import ast
from collections.abc import Callable

import networkx as nx
import pytest

from tests.architecture.source import PACKAGES, ROOT, arrows, imports, modules, tracked

STEPS = ("read", "phrases", "prepare", "explain", "regions", "write")
"""The six steps under `stages/`, in order."""

ROOMS: dict[str, set[str]] = {
    "contract": set(),
    "files": {"contract"},
    "images": {"contract", "files"},
    "model": {"contract", "files"},
    "read": {"contract", "files"},
    "phrases": {"contract", "files"},
    "prepare": {"contract", "files", "images"},
    "scores": {"contract", "files", "phrases"},
    "explain": {"contract", "model", "scores"},
    "regions": {"contract", "images", "model", "phrases", "scores"},
    "write": {"contract", "files"},
    "explainers": {"contract", "model", "explain"},
    # Names of objects are compared with phrases.
    "truth": {"contract", "files", "phrases.filters"},
    "sources": {
        "contract",
        "images",
        "model",
        "phrases.groups",
        "regions.config",
        "scores",
        "truth",
        # Names of classes are compared with phrases, and boxes with the maps of objects.
        "phrases.languages",
        "phrases.nouns",
        "phrases.wording",
        "regions.maker",
    },
}
"""Room under `stages/` -> other rooms, or modules in them, that it may import."""

RUN = {"config", "dataset", "output", "terminal"}
"""What a run stands on."""

PIPELINE: dict[str, set[str]] = {
    "config": set(),
    "terminal": set(),
    "pictures": set(),
    "demo": {"terminal"},
    "dataset": {"config"},
    "load": {"config", "dataset"},
    "export": {"config", "dataset"},
    "output": {"config", "dataset", "terminal"},
    "run": RUN,
    "located": {"dataset", "pictures", "terminal"},
    "locator": {*RUN, "run", "located", "pictures"},
    "annotate": {*RUN, "run", "pictures"},
    "evaluate": {*RUN, "run", "demo"},
    "calibrate": {*RUN, "run", "evaluate"},
    "viewer": {"config", "dataset", "run", "evaluate", "pictures", "terminal"},
    "commands": {
        *RUN,
        "run",
        "calibrate",
        "demo",
        "evaluate",
        "export",
        "locator",
        "pictures",
        "viewer",
    },
    "research": {
        *RUN,
        "run",
        "commands",
        "evaluate",
        "load",
        "pictures",
        "viewer",
    },
}
"""Room under `pipeline/` -> other rooms that it may import."""

LIBRARIES: dict[str, set[str]] = {
    "ray": {"pipeline/run/engines/ray_"},  # files whose names begin so
    "torch": {
        "stages/model/",
        "stages/images/decode.py",
        "stages/explain/",
        "stages/explainers/",
        "stages/sources/",
        "pipeline/load/",
        "pipeline/calibrate/",
        "pipeline/research/",
    },
    "torchvision": {"stages/model/", "pipeline/research/finetune/", "pipeline/calibrate/box_fit.py"},
    "huggingface_hub": {"stages/model/hub.py", "pipeline/export/push.py"},
    "safetensors": {"stages/model/", "pipeline/research/"},
    "timm": {"stages/model/"},
    "open_clip": {
        "stages/model/",
        "pipeline/commands/models.py",
    },
    "spacy": {"stages/phrases/pipelines.py"},
    "typer": {"pipeline/commands/", "pipeline/research/"},
    "rich": {"pipeline/"},
    "cv2": {
        "stages/regions/",
        "stages/sources/",
        "stages/contract/masks.py",
        "pipeline/pictures.py",
        "stages/truth/",
        "pipeline/evaluate/",
        "pipeline/research/",
        "pipeline/demo/scenes/",
    },
    "pycocotools": {"stages/contract/masks.py"},
    "PIL": {
        "stages/images/",
        "pipeline/commands/demo.py",
        "pipeline/commands/explain.py",
        "pipeline/located.py",
        "pipeline/locator.py",
        "pipeline/pictures.py",
    },
    "fsspec": {"stages/files/storage.py"},
    "scipy": {
        "stages/explainers/attention.py",
        "pipeline/calibrate/",
        "pipeline/evaluate/",
        "pipeline/research/",
        "pipeline/run/exponent.py",
    },
    "yaml": {"pipeline/config/text.py", "stages/write.py"},
    "pyarrow": {
        "pipeline/",
        "stages/read/",
        "stages/write.py",
        "stages/contract/",
        "stages/files/lifted_shards.py",
        "stages/files/parquet.py",
        "stages/files/shards.py",
        "stages/files/storage.py",
    },
    "pandas": set(),
    "datasets": set(),
    "transformers": {
        f"stages/model/{name}.py"
        for name in ("detector", "dual_encoder", "hugging_face", "segmenter", "tokenizer")
    },
    "duckdb": {"pipeline/dataset/"},
    "supervision": {"pipeline/dataset/rows.py"},
    "starlette": {"pipeline/viewer/app.py", "pipeline/viewer/guard.py"},
    "uvicorn": {"pipeline/viewer/app.py"},
    "jinja2": {"pipeline/viewer/pages.py"},
}
"""Library -> the files or folders that may import it."""


Offenders = dict[str, list[str]]
"""File -> what it imports and should not."""


def parts(path: str) -> list[str]:
    """["stages", "model", "text"] of "stages/model/text.py"; the folder for its `__init__`."""
    names = path.removesuffix(".py").split("/")
    return names[:-1] if names[-1] == "__init__" else names


def is_below(name: str, allowed: set[str]) -> bool:
    return any(name == entry or name.startswith(f"{entry}.") for entry in allowed)


def room(path: str) -> str:
    """The innermost room that a file stands in; "" for what stands in none."""
    name = ".".join(parts(path)[1:])
    rooms = ROOMS if path.startswith("stages/") else PIPELINE
    return max((entry for entry in rooms if is_below(name, {entry})), key=len, default="")


def offenders(folder: str, wrong: Callable[[str, str], bool]) -> Offenders:
    """Imports of the files below a folder for which `wrong(path, name)` holds."""
    found = {
        path: [name for name in imports(tree) if wrong(path, name)]
        for path, tree in modules().items()
        if path.startswith(folder)
    }
    return {path: names for path, names in found.items() if names}


def test_every_module_has_a_place() -> None:
    """A new room says here what it may import."""
    doors = {"stages/__init__.py", "pipeline/__init__.py"}
    placed = {path: room(path) for path in modules() if path not in doors}
    assert [path for path, name in placed.items() if not name] == []
    assert set(placed.values()) == set(ROOMS) | set(PIPELINE)


@pytest.mark.parametrize("rooms", [ROOMS, PIPELINE])
def test_rooms_stand_upon_each_other(rooms: dict[str, set[str]]) -> None:
    """No two rooms need each other, over whichever others."""
    allowed = [(name, other.partition(".")[0]) for name, others in rooms.items() for other in others]
    assert list(nx.simple_cycles(nx.DiGraph(allowed))) == []


def test_no_step_imports_a_later_one() -> None:
    graph = nx.DiGraph(
        (name, other.partition(".")[0]) for name, others in ROOMS.items() for other in others
    )
    later = {step: STEPS[place + 1 :] for place, step in enumerate(STEPS)}
    assert {step: [*nx.descendants(graph, step) & {*steps}] for step, steps in later.items()} == {
        step: [] for step in STEPS
    }


def test_stages_never_import_the_pipeline() -> None:
    assert offenders("stages/", lambda _, name: is_below(name, {"phrasebox.pipeline"})) == {}


@pytest.mark.parametrize("package", PACKAGES)
def test_rooms_know_only_what_they_need(package: str) -> None:
    rooms = ROOMS if package == "stages" else PIPELINE

    def is_stranger(path: str, name: str) -> bool:
        own = room(path)
        place = name.removeprefix(f"phrasebox.{package}.")
        inside = place != name and is_below(place, set(rooms))
        return bool(own) and inside and not is_below(place, rooms[own] | {own})

    assert offenders(f"{package}/", is_stranger) == {}


def test_the_product_never_imports_research() -> None:
    def wrong(path: str, name: str) -> bool:
        return not path.startswith("pipeline/research/") and is_below(name, {"phrasebox.pipeline.research"})

    assert offenders("", wrong) == {}


def test_the_packages_import_nothing_that_is_not_in_the_wheel() -> None:
    assert offenders("", lambda _, name: is_below(name, {"tests", "benchmarks"})) == {}


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Imports inside functions count; those that only a type checker makes do not."""
    graph = nx.DiGraph(arrows())
    assert (
        sorted(sorted(circle) for circle in nx.strongly_connected_components(graph) if len(circle) > 1)
        == []
    )


def test_engines_know_no_single_stage() -> None:
    """They run steps: which stages they are, and how a stage works, is none of their business."""
    allowed = {f"phrasebox.stages.{name}" for name in ("contract", "files", "read", "write")}
    strangers = offenders(
        "pipeline/run/engines/",
        lambda _, name: is_below(name, {"phrasebox.stages"}) and not is_below(name, allowed),
    )
    assert strangers == {}


@pytest.mark.taste
def test_a_module_of_ours_has_one_name() -> None:
    """Python may look in a checkout, where a module below `stages` alone would be a second one of its file."""
    files = [path for path in tracked() if path.endswith(".py")]
    assert {path.split("/")[0] for path in files} >= {*PACKAGES, "tests", "benchmarks"}
    names = {path: imports(ast.parse((ROOT / path).read_text(encoding="utf-8"))) for path in files}
    second = {path: [name for name in names[path] if is_below(name, set(PACKAGES))] for path in files}
    assert {path: name for path, name in second.items() if name} == {}


def test_the_packages_do_not_use_the_public_names() -> None:
    """They would load what they do not need, and import each other in a circle."""

    def is_public(_: str, name: str) -> bool:
        return is_below(name, {"phrasebox"}) and not is_below(name, {f"phrasebox.{p}" for p in PACKAGES})

    assert offenders("", is_public) == {"pipeline/run/engines/ray_cluster.py": ["phrasebox"]}, "its folder"


def test_imports_are_absolute() -> None:
    assert offenders("", lambda _, name: name.startswith(".")) == {}


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_stands_only_in_its_place(library: str) -> None:
    users = {
        path for path, tree in modules().items() if any(n.split(".")[0] == library for n in imports(tree))
    }
    strangers = {path for path in users if not any(path.startswith(place) for place in LIBRARIES[library])}
    assert strangers == set()
    unused = {place for place in LIBRARIES[library] if not any(path.startswith(place) for path in users)}
    assert unused == set(), "take it off the list"


@pytest.mark.parametrize("package", PACKAGES)
def test_the_packages_themselves_import_nothing(package: str) -> None:
    assert imports(modules()[f"{package}/__init__.py"]) == ()


def test_every_module_says_what_it_is_for() -> None:
    assert [path for path, tree in modules().items() if not ast.get_docstring(tree)] == []
