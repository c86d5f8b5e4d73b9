"""`phrasebox pool` on real captions, parsed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.pipeline.commands.evaluated import called


def test_a_pool_is_written_from_one_corpus_and_measured_on_another(tmp_path: Path) -> None:
    rows = ["A red car beside two dogs", "the red car and a house", "a Red Car at night"]
    lines = (json.dumps({"image": f"{number}.jpg", "caption": text}) for number, text in enumerate(rows))
    (tmp_path / "train.jsonl").write_text("\n".join(lines))  # no image is needed
    pool = tmp_path / "pool.txt"
    assert called("pool", tmp_path / "train.jsonl", "--out", pool)[0] == 0
    assert pool.read_text().splitlines()[0] == "red car\t3\tcar"
    assert "two dogs\t1\tdog" in pool.read_text().splitlines()
    few = tmp_path / "few.txt"
    assert "1 concepts" in called("pool", tmp_path / "train.jsonl", "--out", few, "--at-least", 2)[1]
    (tmp_path / "other.txt").write_text("A red car and a dog\n\na red car\n")
    figures = json.loads(called("pool", tmp_path / "other.txt", "--covered-by", few, "--json")[1])
    assert figures == {
        "concepts": 1,
        "mentions": 3,
        "mentions_named": 2,
        "mentions_share": 0.6667,
        "texts": 2,
        "texts_named": 1,
        "texts_share": 0.5,
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.txt"], "say either --out FILE"),
        (["a.txt", "--out", "p.txt", "--covered-by", "p.txt"], "say either --out FILE"),
        (["none.txt", "--out", "p.txt"], "cannot read none.txt"),
        (["a.txt", "--out", "p.txt", "--at-least", "9"], "no phrase occurs in its captions 9 times or more"),
        (["a.txt", "--covered-by", "a.jpg"], "a.jpg cannot be read"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("a dog\n")
    code, out, err = called("pool", *arguments)
    assert (code, out) == (2, "")
    assert message in err
