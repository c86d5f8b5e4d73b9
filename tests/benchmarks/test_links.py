"""Links between phrases beside those of the ground truth."""

import math
import tarfile
from pathlib import Path
from typing import Any

import pytest

from benchmarks.photos.links import (
    Grouping,
    b_cubed,
    grouping_of,
    link_counts,
    pair_f1,
    read_chained_phrases,
)
from benchmarks.photos.measure import Photographs
from tests.build.datasets import Json, rows_of


def totals_of(*links: tuple[int, str]) -> Any:
    return link_counts([Grouping(image=1, links=links)]).sum(axis=0)


def test_pairs_and_b_cubed_by_hand() -> None:
    """Groups {a a b} and {b}: pairs 3 linked, 2 true (aa, bb), 1 both. B-cubed: precision (2/3 + 2/3 + 1/3 + 1) / 4,
    recall (1 + 1 + 1/2 + 1/2) / 4."""
    totals = totals_of((0, "a"), (0, "a"), (0, "b"), (1, "b"))
    assert pair_f1(totals) == pytest.approx(2 * 1 / (3 + 2))
    assert b_cubed(totals) == pytest.approx(2 * (2 / 3) * (3 / 4) / (2 / 3 + 3 / 4))
    assert math.isnan(pair_f1(totals_of((0, "a"), (1, "b"))))


def region(caption: int, start: int, phrase: str, group: int | None) -> Json:
    span = [start, start + len(phrase)]
    return {"caption_index": caption, "span": span, "phrase": phrase, "group": group}


def test_phrases_are_matched_by_caption_text_and_order(tmp_path: Path) -> None:
    regions = [
        region(0, 2, "boy", 0),
        region(0, 2, "boy", 0),  # a second region of the phrase
        region(0, 12, "boy", 1),
        region(0, 18, "hat", None),
        region(1, 2, "child", 0),
        region(1, 9, "it", 3),
    ]
    row = {"captions": ["A boy and a boy's hat.", "a child, it rains"], "annotations": regions}
    (tmp_path / "Sentences").mkdir()
    (tmp_path / "Sentences" / "1.txt").write_text(
        "[/EN#7/people A boy] and [/EN#8/people a boy] 's hat .\n"
        "[/EN#7/people a child] , [/EN#0/notvisual it] rains\n"
        "another [/EN#9/clothing hat]"
    )
    chained_phrases = read_chained_phrases(tmp_path, "1.jpg")
    assert grouping_of(5, row, chained_phrases).links == ((0, "7"), (1, "8"), (0, "7"))
    fewer = {**row, "annotations": [entry for entry in regions if entry["span"][0] != 12]}
    assert grouping_of(5, fewer, chained_phrases).links == ((0, "7"),)


def test_links_are_measured_from_an_archive_of_marked_captions(
    inline_dataset: Path, tmp_path: Path
) -> None:
    """As the folder of photographs holds them. All phrases of a scene name one thing there, and none do here."""
    entities = tmp_path / "entities"
    for folder in ("Sentences", "Annotations"):
        (entities / folder).mkdir(parents=True)
    for row in rows_of(inline_dataset):
        line = row["captions"][0]
        for start, end in sorted({tuple(entry["span"]) for entry in row["annotations"]}, reverse=True):
            line = f"{line[:start]}[/EN#1/other {line[start:end]}]{line[end:]}"
        stem = Path(row["file_name"]).stem
        (entities / "Sentences" / f"{stem}.txt").write_text(line)
        size = f"<size><width>{row['width']}</width><height>{row['height']}</height></size>"
        (entities / "Annotations" / f"{stem}.xml").write_text(f"<annotation>{size}</annotation>")
    (tmp_path / "flickr8k").mkdir()
    with tarfile.open(tmp_path / "flickr8k/dev.entities.tar.gz", "w:gz") as archive:
        for folder in ("Sentences", "Annotations"):
            archive.add(entities / folder, folder)
    made = tmp_path / "out/datasets/flickr8k/dev"
    made.mkdir(parents=True)
    (made / "photos").symlink_to(inline_dataset)
    pairs, b_cubed_figure = Photographs(tmp_path, tmp_path / "out").links("flickr8k/dev", "photos")
    assert pairs.value == 0
    assert 0 < b_cubed_figure.value < 1
