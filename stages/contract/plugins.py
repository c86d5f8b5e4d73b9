"""Kinds and verbs by name, as installed packages declare them by entry points: ours and those of other people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache, cached_property
from importlib import metadata
from typing import Final, Generic, TypeVar

from phrasebox.stages.contract.errors import PluginError, with_type

PACKAGE: Final = "phrasebox"
"""The package of our own kinds and verbs, which go before those that other packages give the same name."""

PluginT = TypeVar("PluginT")


@cache
def entry_points_by_package() -> dict[str, metadata.EntryPoints]:
    """Return the entry points of installed packages that have some for phrasebox. Metadata is read once a process.

    Raise PluginError where phrasebox itself has none.
    """
    packages: dict[str, metadata.EntryPoints] = {}
    for distribution in metadata.distributions():
        if f"[{PACKAGE}." in (distribution.read_text("entry_points.txt") or ""):
            packages.setdefault(distribution.name, distribution.entry_points)
    if PACKAGE not in packages:
        raise PluginError(
            "phrasebox is not installed, so its kinds and verbs are unknown: pip install -e ."
        )
    return packages


class PluginTable(Mapping[str, PluginT], Generic[PluginT]):
    """Name -> object that a package declares. It is imported when it is looked up, since many import torch.

    Our own names come first: those of `order`, then the others by module. Names of other packages follow.

    Args:
        group: Name of the entry points, such as `phrasebox.readers`.
        order: Some of our own names.
    """

    def __init__(self, group: str, order: Sequence[str] = ()) -> None:
        self.group = group
        self._order = order

    @cached_property
    def _entries(self) -> Mapping[str, Mapping[str, metadata.EntryPoint]]:
        """Name -> entry points by package: of one package, or of several between which nothing decides."""
        points = [
            (package, point)
            for package, points in entry_points_by_package().items()
            for point in points.select(group=self.group)
        ]
        entries: dict[str, dict[str, metadata.EntryPoint]] = {}
        for package, point in sorted(points, key=self._rank):
            packages = entries.setdefault(point.name, {})
            if PACKAGE not in packages:
                packages[package] = point
        return entries

    def _rank(self, entry: tuple[str, metadata.EntryPoint]) -> tuple[bool, int, str]:
        package, point = entry
        return package != PACKAGE, [*self._order, point.name].index(point.name), point.value

    def __getitem__(self, name: str) -> PluginT:
        """Import the object of a name. Raise PluginError if it cannot be, or if two packages have the name."""
        packages = self._entries[name]
        title = f"the {self.group.rpartition('.')[2].removesuffix('s')} {name}"
        if len(packages) > 1:
            raise PluginError(
                f"{title} is declared by {' and by '.join(packages)}: uninstall all of them but one"
            )
        [(package, point)] = packages.items()
        try:
            plugin: PluginT = point.load()
        except Exception as error:  # whatever the module of another package raises
            raise PluginError(
                f"{title} of the package {package} does not load ({with_type(error)})"
            ) from error
        return plugin

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def name_of(self, plugin: type) -> str:
        """Return the name under which a package declares a class; the class's own if none does."""
        place = f"{plugin.__module__}:{plugin.__qualname__}"
        names = (
            name
            for name, packages in self._entries.items()
            for point in packages.values()
            if point.value == place
        )
        return next(names, plugin.__name__)

    def module(self, name: str) -> str:
        """Return the module of a name, which is not imported."""
        return next(iter(self._entries[name].values())).module

    def label(self, name: str) -> str:
        """Return a name for a list; one of other packages with these behind it, in brackets."""
        packages = self._entries[name]
        return name if PACKAGE in packages else f"{name} ({' and '.join(packages)})"

    def load_all(self) -> tuple[dict[str, PluginT], list[str]]:
        """Import all objects. Return those that load, by name, and a message about each that does not."""
        plugins: dict[str, PluginT] = {}
        messages: list[str] = []
        for name in self:
            try:
                plugins[name] = self[name]
            except PluginError as error:
                messages.append(str(error))
        return plugins, messages
