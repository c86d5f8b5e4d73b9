"""Sizes and names of files, and what stands at the top of the repository."""

import re

import pytest

from tests.architecture.source import PACKAGES, ROOT, classes, modules, nodes, tracked

MOST_LINES = {"pipeline": 430, "stages": 430, "tests": 660}
"""Folder -> the most lines of a file in it."""

TOP_LEVEL = {
    "benchmarks",
    "pipeline",
    "stages",
    "configs",
    "docs",
    "tests",
    "phrasebox",
    "pyproject.toml",
    "Makefile",
}
TOP_LEVEL |= {"README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "Dockerfile"}
"""And files and folders whose names begin with a dot."""

HIDING_NAMES = {
    "utils",
    "util",
    "helpers",
    "helper",
    "common",
    "misc",
    "manager",
    "handler",
    "processor",
    "wrapper",
}
HIDING_NAMES |= {"service", "core", "lib", "tools", "types"}
"""Names that hide what is inside."""


def test_no_file_is_too_long() -> None:
    lines = {
        path.relative_to(ROOT).as_posix(): path.read_text().count("\n")
        for folder, most in MOST_LINES.items()
        for path in (ROOT / folder).rglob("*.py")
        if path.read_text().count("\n") > most
    }
    assert lines == {}


def test_names_say_what_is_inside() -> None:
    for path in modules():
        for part in path.removesuffix(".py").split("/"):
            assert not set(part.lower().split("_")) & HIDING_NAMES, path
    endings = tuple(name.capitalize() for name in HIDING_NAMES)
    assert [name for name in classes() if name.endswith(endings)] == []


def test_a_class_name_means_one_thing() -> None:
    assert {name: files for name, files in classes().items() if len(files) > 1} == {}


def test_the_top_level_is_a_closed_list() -> None:
    top = {path.split("/")[0] for path in tracked()}
    assert {name for name in top if not name.startswith(".")} <= TOP_LEVEL


def test_nothing_large_or_generated_is_tracked() -> None:
    for path in tracked():
        assert not path.endswith((".pyc", ".egg-info", ".orig", ".rej")), path
        assert (ROOT / path).stat().st_size < 20_000_000, path


def test_no_loose_ends_and_no_foreign_machines() -> None:
    for path in modules():
        text = (ROOT / path).read_text()
        for words in ("TO" + "DO", "FIX" + "ME", "X" * 3, "/home/", "/work/", "/root/"):
            assert words not in text, path


@pytest.mark.parametrize("package", PACKAGES)
def test_what_a_readme_names_is_there(package: str) -> None:
    """A function or class in brackets stands in the file before it."""
    text = (ROOT / package / "README.md").read_text(encoding="utf-8")
    places = re.findall(r"`([\w/]+\.py)`(?: \(`(\w+)`\))?", text)
    assert len(places) > 10
    trees = modules()
    for path, name in places:
        tree = trees.get(f"{package}/{path}") or trees[path]
        names = {getattr(node, "name", getattr(node, "id", "")) for node in nodes(tree)}
        assert not name or name in names, f"{path} has no {name}"
