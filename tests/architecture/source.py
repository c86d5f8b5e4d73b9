"""The repository's own files, for tests about how it is built."""

from __future__ import annotations

import ast
import subprocess
import tomllib
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("pipeline", "stages")
"""Folders at the top. The package phrasebox links to them: `pipeline/terminal.py` is `phrasebox.pipeline.terminal`."""


@cache
def modules() -> dict[str, ast.Module]:
    """Path from the root -> syntax tree of every source file of the two packages."""
    files = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    return {
        path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in files
    }


@cache
def nodes(tree: ast.AST) -> tuple[ast.AST, ...]:
    """All nodes of a tree."""
    return tuple(ast.walk(tree))


@cache
def imports(tree: ast.AST) -> tuple[str, ...]:
    """Full names of the modules and members that a file imports, also inside functions.

    A relative import begins with a dot.
    """
    names: list[str] = []
    for node in nodes(tree):
        if isinstance(node, ast.Import):
            names += (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names += ("." * node.level + f"{node.module}.{alias.name}" for alias in node.names)
    return tuple(names)


def arrows() -> list[tuple[str, str]]:
    """Pairs of files, of which the first imports the second; not those that only a type checker imports."""
    known = {
        f"phrasebox.{path}".removesuffix(".py").removesuffix("/__init__").replace("/", "."): path
        for path in modules()
    }
    found = []
    for path, tree in modules().items():
        unseen = {
            child
            for node in nodes(tree)
            if isinstance(node, ast.If)
            and isinstance(node.test, ast.Name)
            and node.test.id == "TYPE_CHECKING"
            for child in nodes(node)
        }
        for node in nodes(tree):
            if isinstance(node, ast.ImportFrom) and node.module and node not in unseen:
                members = [f"{node.module}.{alias.name}" for alias in node.names]
                found += [
                    (path, known[name if name in known else node.module])
                    for name in members
                    if name in known or node.module in known
                ]
    return [(here, there) for here, there in found if here != there]


def classes() -> dict[str, list[str]]:
    """Name of a class -> the files that define one of this name."""
    found: dict[str, list[str]] = {}
    for path, tree in modules().items():
        for node in nodes(tree):
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, []).append(path)
    return found


def tracked() -> list[str]:
    """Paths that git tracks and that are there, from the root; of a source archive without git, all files."""
    try:
        listed = subprocess.run(
            ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
        names = listed.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return []
    return [name for name in names if (ROOT / name).exists()]


def entry_points() -> dict[str, dict[str, str]]:
    """Group -> name -> place of our kinds and verbs, as pyproject.toml has them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups: dict[str, dict[str, str]] = project["entry-points"]
    return groups


def declare(folder: Path, package: str, groups: dict[str, dict[str, str]]) -> None:
    """Write the metadata of an installed package into a folder: its name and its entry points."""
    place = folder / f"{package.replace('-', '_')}-0.1.dist-info"
    place.mkdir(parents=True)
    (place / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 0.1\n")
    lines = [
        f"[{group}]\n" + "".join(f"{n} = {at}\n" for n, at in names.items())
        for group, names in groups.items()
    ]
    (place / "entry_points.txt").write_text("\n".join(lines))
