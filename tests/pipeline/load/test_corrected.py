"""What people have deleted or drawn is what training gets."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from phrasebox.pipeline.dataset.corrected import replace_box
from phrasebox.pipeline.dataset.folder import open_dataset
from phrasebox.pipeline.dataset.reviews import RegionKey, Review, append_review
from phrasebox.pipeline.load import Contents, RegionDataset, RegionStream
from tests.pipeline.load.conftest import NO_IMAGES, expected, given

BOX = (1.0, 2.0, 9.0, 7.0)


@pytest.fixture
def reviewed(folder: Path, tmp_path: Path) -> tuple[Path, set[int], dict[int, Any]]:
    """A dataset whose first regions were deleted, moved, or only answered; the ids of deleted ones, and the moved."""
    copy = Path(shutil.copytree(folder, tmp_path / "dataset"))
    deleted: set[int] = set()
    moved: dict[int, Any] = {}
    rows = [row for row in open_dataset(copy).rows() if row["error"] is None and row["annotations"]]
    for number, row in enumerate(rows[:12]):
        regions = row["annotations"] if number % 4 == 0 else row["annotations"][:1]
        for region in regions:  # all of an image, the first, or none
            key = {**RegionKey.of(region)._asdict(), "reviewer": "ann"}
            if number % 4 < 2:
                append_review(copy, Review(**key, action="delete"))
                deleted.add(region["id"])
            elif number % 4 == 2:
                append_review(copy, Review(**key, action="box", box_xywh_px=BOX))
                moved[region["id"]] = replace_box(region, BOX)[0]
            else:
                append_review(copy, Review(**key, answer="wrong"))
                append_review(copy, Review(**key, action="delete"))
                append_review(copy, Review(**key, action="undone"))
    return copy, deleted, moved


LOADERS = (RegionDataset, RegionStream)


@pytest.mark.parametrize("loader", LOADERS)
def test_deleted_regions_are_left_out_and_drawn_boxes_are_taken(loader: Any, reviewed: Any) -> None:
    path, deleted, moved = reviewed
    wanted = expected(path, lambda region: region["id"] not in deleted)
    assert len(wanted) < len(expected(path)), "an image lost all of its regions"
    contents = Contents(images=False, grid_hw=(2, 2), masks="full")
    samples = list(loader(path, contents))
    assert given(samples) == wanted
    boxes = {}
    for sample in samples:
        for number, region in enumerate(sample["region_ids"].tolist()):
            if region in moved:
                boxes[region] = sample["boxes_xyxy_px"][number].tolist()
                assert sample["scores"][number] == 1.0
                assert sample["masks"][number].sum() == moved[region]["area"]
    x, y, w, h = BOX
    assert boxes == {number: [x, y, x + w, y + h] for number in moved}
    assert given(loader(path, NO_IMAGES, corrected=False)) == expected(path)


@pytest.mark.parametrize("loader", LOADERS)
def test_a_choice_is_one_of_corrected_regions(loader: Any, reviewed: Any) -> None:
    path, deleted, moved = reviewed
    wanted = expected(
        path,
        lambda region: region["id"] in moved or (region["score"] >= 0.6 and region["id"] not in deleted),
    )
    assert given(loader(path, NO_IMAGES, min_score=0.6)) == wanted
    assert set(given(loader(path, NO_IMAGES, where="w = 9 AND h = 7 AND score = 1"))) == {
        name for name, ids in wanted.items() if moved.keys() & set(ids)
    }


def test_an_even_stream_counts_the_samples_that_are_left(reviewed: Any) -> None:
    path, deleted, _ = reviewed
    wanted = expected(path, lambda region: region["id"] not in deleted)
    stream = RegionStream(path, NO_IMAGES, even="drop", shuffle=False)
    assert len(stream) == len(wanted)
    assert given(stream) == wanted
