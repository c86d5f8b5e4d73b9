"""Broken and missing images while training."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader

from phrasebox.pipeline.load import Contents, RegionDataset, RegionStream, collate_regions
from phrasebox.stages.contract.errors import InputError
from tests.messages import expect_error
from tests.pipeline.load.conftest import NO_IMAGES, Json, changed, names

SMALL = Contents(square_px=8)


@pytest.fixture(scope="module")
def damaged(with_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every third image is cut off."""

    def change(number: int, row: Json) -> None:
        if number % 3 == 0 and row["image"] is not None:
            row["image"]["bytes"] = row["image"]["bytes"][:300]

    return changed(shutil.copytree(with_images, tmp_path_factory.mktemp("damaged") / "dataset"), change, 8)


def good(folder: Path) -> list[str]:
    return [name for name in names(RegionStream(folder, NO_IMAGES, shuffle=False)) if int(name[1:]) % 3]


def test_they_stop_the_training_and_say_where(damaged: Path) -> None:
    for loader in (RegionStream, RegionDataset):
        with expect_error(InputError):
            list(DataLoader(loader(damaged, SMALL), batch_size=4, collate_fn=list))


def test_missing_ones_too_and_they_have_no_neighbours(inline_dataset: Path, tmp_path: Path) -> None:
    gone = Contents(image_root=str(tmp_path))
    with expect_error(InputError):
        next(iter(RegionStream(inline_dataset, gone)))
    stream = RegionStream(inline_dataset, gone, on_bad_image="skip", even="drop", rank=0, world_size=2)
    with pytest.warns(RuntimeWarning, match="skipped"), expect_error(InputError):
        list(stream)


def test_or_are_skipped_and_counted(damaged: Path) -> None:
    stream = RegionStream(damaged, SMALL, on_bad_image="skip")
    with pytest.warns(RuntimeWarning) as caught:
        sample_names = names(stream)
    assert sorted(sample_names) == good(damaged)
    skipped = len(names(RegionStream(damaged, NO_IMAGES))) - len(sample_names)
    assert stream.bad_images.count == skipped >= 10
    told = [str(warning.message).partition(":")[0] for warning in caught]
    assert told == ["an image is skipped", "10 images skipped so far, the last"]
    with expect_error(InputError):
        list(RegionDataset(damaged, SMALL, on_bad_image="skip"))  # a single sample still raises


@pytest.mark.filterwarnings("ignore:.*skipped:RuntimeWarning")
@pytest.mark.parametrize("loader", [RegionStream, RegionDataset])
def test_the_count_comes_from_the_workers(loader: Any, damaged: Path) -> None:
    dataset = loader(damaged, SMALL, on_bad_image="skip")
    batches = list(DataLoader(dataset, batch_size=3, num_workers=2, collate_fn=collate_regions))
    assert sorted(name for batch in batches for name in batch["sample_ids"]) == good(damaged)
    assert dataset.bad_images.count == len(names(RegionStream(damaged, NO_IMAGES))) - len(good(damaged))


@pytest.mark.filterwarnings("ignore:.*skipped:RuntimeWarning")
def test_even_ranks_stay_even(damaged: Path) -> None:
    """A neighbour comes in their place."""
    for rank in range(3):
        stream = RegionStream(damaged, SMALL, on_bad_image="skip", even="drop", rank=rank, world_size=3)
        sample_names = names(stream)
        assert len(sample_names) == len(stream)
        assert stream.bad_images.count == len(sample_names) - len(set(sample_names)) > 0
        assert set(sample_names) <= set(good(damaged))
