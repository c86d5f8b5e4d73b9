"""The synthetic datasets are datasets."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.dataset.folder import open_dataset
from pipeline.dataset.validate import validate
from stages.contract.masks import decode_mask, mask_outlines
from stages.contract.records import Rle
from tests.synthetic import write_synthetic


@pytest.mark.parametrize("embed_images", [False, True])
def test_they_are_valid(embed_images: bool, tmp_path: Path) -> None:
    folder = write_synthetic(tmp_path / "dataset", 700, rows_per_file=300, embed_images=embed_images)
    assert list(validate(folder)) == []
    dataset = open_dataset(folder)
    assert len(dataset.shards) == 3
    assert dataset.has_images is embed_images
    rows = list(dataset.rows())
    assert len(rows) == 700
    counts = dataset.manifest["counts"]
    assert counts["failed"] > 0
    assert counts["without_phrases"] > 0
    assert 2.7 < counts["regions"] / 700 < 3.1
    assert {len(row["captions"]) for row in rows} == {1, 2}


def test_same_arguments_same_bytes(tmp_path: Path) -> None:
    shards = [write_synthetic(tmp_path / str(n), 200, 2, seed=n // 2) / "data" / "00000.parquet" for n in range(3)]
    first, again, other = (shard.read_bytes() for shard in shards)
    assert first == again != other


def test_some_masks_have_holes_and_some_several_parts(tmp_path: Path) -> None:
    rows = open_dataset(write_synthetic(tmp_path / "dataset", 100)).rows()
    parts, filled = set(), 0
    for annotation in (annotation for row in rows for annotation in row["annotations"]):
        height, width = annotation["segmentation"]["size"]
        mask = decode_mask(Rle(size_hw=(height, width), counts=annotation["segmentation"]["counts"]))
        polygons, _ = mask_outlines(mask)
        parts.add(len(polygons))
        filled += len(polygons) == 1
    assert {1, 2} <= parts
    assert filled > 50
