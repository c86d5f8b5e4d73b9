"""Names are nouns of the field; a participle, a pronoun or a determiner names nothing."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import PurePosixPath

import pytest

from tests.architecture.source import ROOT, modules, nodes

pytestmark = pytest.mark.taste

EMPTY_NAMES = {
    "alone",
    "asked",
    "each",
    "found",
    "kept",
    "known",
    "one",
    "others",
    "own",
    "said",
    "seen",
    "there",
}

FOREIGN: dict[str, set[str]] = {}
"""File -> names of that kind which a library or a stored format gives."""

PROGRAMS = ("benchmarks", "configs")
EXEMPT = {"benchmarks/photos/reviews.py", "benchmarks/proof/prove.py"}

Comprehension = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp


def names_of(tree: ast.Module) -> Iterator[str]:
    """The names of classes, functions, parameters, variables and attributes that a file gives.

    Those of comprehensions and lambdas do not count: they live for one expression.
    """
    brief = {
        id(name)
        for node in nodes(tree)
        if isinstance(node, Comprehension)
        for generator in node.generators
        for name in ast.walk(generator.target)
    }
    brief |= {
        id(argument) for node in nodes(tree) if isinstance(node, ast.Lambda) for argument in node.args.args
    }
    for node in nodes(tree):
        if id(node) in brief:
            continue
        match node:
            case (
                ast.Name(id=name, ctx=ast.Store())
                | ast.Attribute(attr=name, ctx=ast.Store())
                | ast.arg(arg=name)
            ):
                yield name
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name


def empty_names(path: str, tree: ast.Module) -> list[str]:
    """The names of a file, and its own, that name nothing."""
    names = {*names_of(tree), PurePosixPath(path).stem} - FOREIGN.get(path, set())
    return sorted(name for name in names if name.strip("_").lower() in EMPTY_NAMES)


def programs() -> dict[str, ast.Module]:
    """Path from the root -> syntax tree of every program beside the packages."""
    files = [path for folder in PROGRAMS for path in sorted((ROOT / folder).rglob("*.py"))]
    trees = {
        path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in files
    }
    return {path: tree for path, tree in trees.items() if path not in EXEMPT}


def test_names_are_nouns() -> None:
    offenders = {path: empty_names(path, tree) for path, tree in (modules() | programs()).items()}
    assert {path: names for path, names in offenders.items() if names} == {}


def test_which_names_count() -> None:
    tree = ast.parse(
        "class Found: own = 1\n"
        "def said(each, *, one): kept: int = 1\n"
        "self.known, seen = pairs\n"
        "[there for there in places]; key = lambda others: others\n"
        "rows = found"
    )
    expected = ["Found", "alone", "each", "kept", "known", "one", "own", "said", "seen"]
    assert empty_names("stages/alone.py", tree) == expected


def test_assignments_are_not_packed() -> None:
    """A tuple on both sides is a swap or two statements in one line."""
    packed = {
        f"{path}:{node.lineno}": ast.unparse(node)
        for path, tree in modules().items()
        for node in nodes(tree)
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Tuple)
        and isinstance(node.value, ast.Tuple)
        if not is_swap(node.targets[0], node.value)
    }
    assert packed == {}


def is_swap(targets: ast.Tuple, values: ast.Tuple) -> bool:
    """Whether a value is read on the right that the same statement writes on the left."""
    written = {ast.unparse(target) for target in targets.elts}
    read = {ast.unparse(node) for value in values.elts for node in ast.walk(value)}
    return not written.isdisjoint(read)
