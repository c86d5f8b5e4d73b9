"""`phrasebox stats`: figures as JSON and as tables, and how it fails."""

import json
from pathlib import Path

import numpy as np
import pytest

from phrasebox.pipeline.dataset.folder import open_dataset
from phrasebox.pipeline.dataset.marks import append_marks
from phrasebox.pipeline.terminal import console
from tests.build.datasets import Json, change_manifest, change_rows, copy_of
from tests.messages import assert_message
from tests.pipeline.commands.evaluated import called, printed


def stats(*arguments: object) -> tuple[int, str, str]:
    """Exit code, output and errors of the verb."""
    return called("stats", *arguments, columns=120)


@pytest.fixture(scope="module")
def rows(synthetic_dataset: Path) -> list[Json]:
    return list(open_dataset(synthetic_dataset).rows())


@pytest.fixture
def copy(synthetic_dataset: Path, tmp_path: Path) -> Path:
    """A dataset to be changed."""
    return copy_of(synthetic_dataset, tmp_path)


def test_figures_as_json(synthetic_dataset: Path, rows: list[Json]) -> None:
    code, out, err = stats(synthetic_dataset, "--json")
    assert (code, err) == (0, "")
    figures = json.loads(out)
    counts = open_dataset(synthetic_dataset).manifest["counts"]
    assert (figures["dataset"], figures["finished"], figures["marks"]) == (str(synthetic_dataset), True, {})
    assert (figures["samples"]["all"], figures["samples"]["failed"]) == (500, counts["failed"])
    assert (figures["regions"], figures["phrases"]) == (counts["regions"], counts["categories"])
    assert {entry["reason"]: entry["count"] for entry in figures["errors"]} == counts["failed_by_reason"]
    assert len(figures["top_phrases"]) == len(figures["top_heads"]) == 15


def test_conditions(copy: Path, rows: list[Json]) -> None:
    """Regions that fulfil all, and the images that have such regions."""
    append_marks(copy, {row["sample_id"]: "bad" for row in rows[::2]})
    options = ("--where", "head = 'man' AND mark = 'bad' AND score >= 0.5 -- checked", "--top", 3)
    figures = json.loads(printed("stats", copy, "--json", *options))
    images = [
        sum(a["head"] == "man" and a["score"] >= np.float32(0.5) for a in row["annotations"])
        for row in rows[::2]
    ]
    assert 0 < figures["regions"] == sum(images)
    assert figures["marks"] == {"bad": figures["samples"]["all"]} == {"bad": sum(map(bool, images))}
    assert (len(figures["top_phrases"]), figures["heads"]) == (3, 1)


def test_figures_as_tables(copy: Path, rows: list[Json], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "width", 120)  # else cells are wrapped
    append_marks(copy, {rows[0]["sample_id"]: "good"})
    assert "scores only rank: --keep 0.3" in stats(copy)[1]
    change_manifest(copy, calibration="0" * 64)
    code, out, err = stats(copy)
    assert (code, err) == (0, "")
    figures = json.loads(stats(copy, "--json")[1])
    cells = [[cell.strip() for cell in line.strip("│┃ ").split("│")] for line in out.splitlines()]
    assert out.splitlines()[0] == str(copy)
    counts = {"images": 500, "regions": figures["regions"], "failed": figures["samples"]["failed"]}
    counts |= {"marked good": 1, **{error["reason"]: error["count"] for error in figures["errors"]}}
    assert all([name, f"{count:,}"] in cells for name, count in counts.items())
    for entry in figures["top_phrases"] + figures["top_heads"]:
        assert [entry["text"], str(entry["count"]), f"{entry['score']:.2f}"] in cells
    assert f"score: median {figures['score']['quantiles']['50']:.3f}, quartiles " in out
    assert figures["thresholds"]
    for threshold in figures["thresholds"]:
        (cell,) = [line for line in cells if line[0] == f"{threshold['precision']:g}"]
        assert cell[1] == f"{threshold['score']:.3f}"
    bars = [cell[2] for cell in cells if len(cell) == 3 and set(cell[2]) == {"█"}]
    assert max(map(len, bars)) == 30


@pytest.mark.parametrize("as_json", [False, True])
def test_nothing_found(as_json: bool, synthetic_dataset: Path) -> None:
    code, out, err = stats(synthetic_dataset, "--where", "score > 1", *(["--json"] if as_json else []))
    assert (code, err) == (0, "")
    if as_json:
        figures = json.loads(out)
        assert (figures["samples"], figures["regions"], figures["thresholds"]) == ({"all": 0}, 0, [])
    else:
        assert "median" not in out


def test_words_that_look_like_markup(copy: Path) -> None:
    def change(rows: list[Json]) -> None:
        for row in rows:
            for a in row["annotations"]:
                a["phrase"] = "[red]:dog: [/] 乌龟"

    change_rows(copy / "data" / "00000.parquet", change)
    assert "[red]:dog: [/] 乌龟" in printed("stats", copy, columns=120)


def test_an_unfinished_dataset(copy: Path) -> None:
    """What is there is counted; a shard that is being written is left out."""
    (copy / "dataset.json").unlink()
    (copy / "data" / "00002.parquet").write_bytes(b"PAR1 half")
    code, out, err = stats(copy)
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == f"{copy} (the run has not finished)"
    figures = json.loads(stats(copy, "--json")[1])
    assert figures["finished"] is False
    assert figures["samples"]["all"] == 360


def test_errors_are_one_line(copy: Path, tmp_path: Path) -> None:
    def assert_rejected(*arguments: object) -> None:
        code, out, err = stats(*arguments)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert_message(err)

    assert_rejected(tmp_path / "none")
    assert_rejected(tmp_path)
    for condition in ("colour = 'red'", "w >", "phrase = '\udcff'", "phrase::INTEGER > 3"):
        assert_rejected(copy, "--where", condition)
    (copy / "marks.json").write_text("{")
    assert_rejected(copy)
    (copy / "marks.json").unlink()
    (copy / "data" / "00001.parquet").write_bytes(b"PAR1 half")
    assert_rejected(copy)


@pytest.mark.parametrize("arguments", [["--top", "0"], ["--colour"]], ids=" ".join)
def test_wrong_usage(arguments: list[str], synthetic_dataset: Path) -> None:
    code, out, err = stats(synthetic_dataset, *arguments)
    assert (code, out) == (2, "")
    assert "Usage: " in err
