"""Tables of kinds: which entry points win, and in which order."""

from importlib import metadata

import pytest

from phrasebox.stages.contract.errors import PluginError
from phrasebox.stages.contract.plugins import PluginTable, entry_points_by_package
from tests.messages import expect_error

GROUP = "phrasebox.steps"


def declare(monkeypatch: pytest.MonkeyPatch, **packages: dict[str, str]) -> None:
    """Let packages declare places by name, and no others be installed."""
    points = {
        package: metadata.EntryPoints(
            metadata.EntryPoint(name, place, GROUP) for name, place in places.items()
        )
        for package, places in packages.items()
    }
    monkeypatch.setattr("phrasebox.stages.contract.plugins.entry_points_by_package", lambda: points)


def test_ours_come_first_in_their_order_and_win(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = {"last": "math:tau", "second": "math:e", "first": "math:pi"}
    declare(monkeypatch, other={"first": "nowhere:pi", "a": "math:inf"}, phrasebox=ours)
    table: PluginTable[float] = PluginTable(GROUP, order=("first", "absent"))
    assert [table.label(name) for name in table] == ["first", "second", "last", "a (other)"]
    assert table["first"] == pytest.approx(3.14159, abs=1e-5)
    assert table.module("first") == "math"
    assert "b" not in table
    with pytest.raises(KeyError):
        table["b"]


def test_a_tree_that_is_not_installed_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "distributions", list)
    with expect_error(PluginError):
        entry_points_by_package.__wrapped__()
