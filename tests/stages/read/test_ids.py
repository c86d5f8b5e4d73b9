from __future__ import annotations

from stages.read import ids
from stages.read.base import Shard
from stages.read.ids import IdLog, with_renamed


def renamed(rows: list[str]) -> dict[int, tuple[str, bool]]:
    log = IdLog()
    for row in rows:
        log.add(row)
    found = log.renamed(lambda: ((row, f"p{index}") for index, row in enumerate(rows)))
    return {ordinal: (item.sample_id, item.duplicate) for ordinal, item in found.items()}


def test_no_second_look_without_need() -> None:
    log = IdLog()
    assert log.renamed(lambda: 1 / 0) == {}  # type: ignore[arg-type, return-value]
    log.add("a")
    log.add("b")
    assert log.renamed(lambda: 1 / 0) == {}  # type: ignore[arg-type, return-value]


def test_all_but_the_first_are_renamed() -> None:
    assert renamed(["a", "b", "a", "a"]) == {2: ("a#p2", True), 3: ("a#p3", True)}
    assert renamed(["a", "a", "a#p1", "a#p1#"]) == {1: ("a#p1##", True)}
    assert renamed(["a#p2", "a", "a", "a#p2"]) == {2: ("a#p2#", True), 3: ("a#p2#p3", True)}


def test_different_ids_with_one_hash_are_told_apart(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(ids, "stable_id", lambda text: 1 + sum(map(ord, text)))
    assert renamed(["ab", "ba", "c", "ab"]) == {1: ("ba#p1", False), 3: ("ab#p3", True)}


def test_shards_get_their_own() -> None:
    log = IdLog()
    rows = ["a", "a", "b", "c", "a"]
    for row in rows:
        log.add(row)
    found = log.renamed(lambda: ((row, "p") for row in rows))
    shards = [
        Shard(url="u", name="n", samples=2),
        Shard(url="u", name="n", samples=2),
        Shard(url="u", name="n", samples=1),
    ]
    assert [[item.index for item in shard.renamed] for shard in with_renamed(shards, found)] == [[1], [], [0]]
