"""What a sample holds, against the row it is of."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from phrasebox.pipeline.dataset.folder import open_dataset
from phrasebox.pipeline.load import Contents, RegionDataset, RegionStream, collate_regions
from phrasebox.stages.contract.errors import ConfigError, InputError, SchemaError
from phrasebox.stages.contract.masks import decode_mask
from phrasebox.stages.contract.records import Rle
from tests.build.datasets import change_manifest, copy_of
from tests.messages import expect_error
from tests.pipeline.load.conftest import NO_IMAGES, Json, changed, expected, letters
from tests.synthetic import write_synthetic


def pairs(folder: Path, contents: Contents, **options: Any) -> list[tuple[Json, Json]]:
    """Samples with their rows."""
    rows = {row["sample_id"]: row for row in open_dataset(folder).rows(open_dataset(folder).columns)}
    return [(sample, rows[sample["sample_id"]]) for sample in RegionStream(folder, contents, **options)]


def mask_of(region: Json) -> np.ndarray:
    height, width = region["segmentation"]["size"]
    return decode_mask(Rle(size_hw=(height, width), counts=region["segmentation"]["counts"]))


def test_it_is_the_row(folder: Path) -> None:
    row_pairs = pairs(folder, NO_IMAGES)
    assert len(row_pairs) > 150
    for sample, row in row_pairs:
        regions = row["annotations"]
        for name in ("id", "file_name", "captions"):
            assert sample[name] == row[name]
        assert sample["original_hw"] == sample["size_hw"] == (row["height"], row["width"])
        x, y, w, h = np.array([region["bbox"] for region in regions], np.float32).T
        np.testing.assert_array_equal(sample["boxes_xyxy_px"], np.stack([x, y, x + w, y + h], axis=1))
        wholes = {"region_ids": "id", "spans": "span", "caption_indices": "caption_index"}
        for key, name in {**wholes, "scores": "score", "similarities": "similarity"}.items():
            np.testing.assert_array_equal(sample[key], [region[name] for region in regions])
            assert sample[key].dtype == (torch.int64 if key in wholes else torch.float32)
        for key, name in (("phrases", "phrase"), ("heads", "head")):
            assert sample[key] == [region[name] for region in regions]


def test_absent_phrases_are_in_samples_and_batches(tmp_path: Path) -> None:
    """Each once, though several captions may say it."""
    entry = {"head": "cow", "caption_index": 0, "span": [0, 1], "presence": 0.25, "similarity": 0.2}

    def add(number: int, row: Json) -> None:
        row["absent"] = [{**entry, "phrase": phrase} for phrase in ("cow", "goat", "cow")[: number % 4]]

    dataset = changed(write_synthetic(tmp_path / "dataset", 12), add)
    samples = list(RegionStream(dataset, NO_IMAGES))
    names = [["cow", "goat"][: int(sample["sample_id"][1:]) % 4] for sample in samples]
    assert [sample["absent"] for sample in samples] == collate_regions(samples)["absent"] == names


def test_boxes_and_masks_follow_the_square(with_images: Path) -> None:
    grid = (4, 4)
    for sample, row in pairs(with_images, Contents(square_px=64, masks="full", grid_hw=grid)):
        assert sample["image"].shape == (3, 64, 64)
        assert sample["size_hw"] == (64, 64)
        assert sample["original_hw"] == (row["height"], row["width"])
        for number, region in enumerate(row["annotations"]):
            x, y, w, h = region["bbox"]
            wanted = np.array([x, y, x + w, y + h]) * 64 / ([row["width"], row["height"]] * 2)
            np.testing.assert_allclose(sample["boxes_xyxy_px"][number], wanted, rtol=1e-5)
            # By Pillow: its nearest neighbour also takes what lies at the centres.
            stretched = Image.fromarray(mask_of(region)).resize((64, 64), Image.Resampling.NEAREST)
            assert (sample["masks"][number].numpy() == np.asarray(stretched)).mean() > 0.999
            stretched = Image.fromarray(mask_of(region).astype(np.float32)).resize(
                grid, Image.Resampling.BOX
            )
            np.testing.assert_allclose(sample["grid_masks"][number], np.asarray(stretched), atol=0.02)


def test_each_phrase_is_tokenised_once(folder: Path) -> None:
    requests: list[str] = []

    def counting(texts: list[str]) -> Any:
        requests.extend(texts)
        return letters(texts).numpy()  # arrays go too

    stream = RegionStream(folder, Contents(images=False, tokenizer=counting))
    phrases = {phrase for sample in [*stream, *stream] for phrase in sample["phrases"]}
    assert sorted(requests) == sorted(phrases)
    floats = Contents(images=False, tokenizer=lambda texts: torch.zeros(len(texts), 3))
    with expect_error(ConfigError, key="tokenizer"):
        next(iter(RegionStream(folder, floats)))


def test_a_transform_decides_what_is_given(with_images: Path) -> None:
    contents = Contents(square_px=16, transform=lambda sample: sample["sample_id"])
    assert set(RegionStream(with_images, contents)) == set(expected(with_images))


def test_images_from_the_image_root(inline_dataset: Path, scenes_folder: Path) -> None:
    for sample, row in pairs(inline_dataset, Contents()):
        rgb = np.asarray(Image.open(scenes_folder / "images" / row["file_name"]))
        np.testing.assert_array_equal(sample["image"], rgb.transpose(2, 0, 1))


def test_a_strangers_dataset_decides_no_folder(
    inline_dataset: Path, scenes_folder: Path, tmp_path: Path
) -> None:
    dataset = copy_of(inline_dataset, tmp_path)
    change_manifest(
        dataset, lambda m: m["config"]["model"].update(name="hf-hub:evil/model", pretrained="x")
    )
    root = str(scenes_folder / "images")
    for loader in (RegionDataset, RegionStream):
        with expect_error(ConfigError, key="image_root"):
            loader(dataset, on_bad_image="skip")
        sample = next(iter(loader(dataset, Contents(image_root=root))))
        assert sample["image"].shape[0] == 3


@pytest.mark.parametrize(
    "damage", [{"score": None}, {"bbox": [1.0, 2.0, 3.0]}, {"segmentation": None}], ids=str
)
def test_a_damaged_row_is_named(damage: Json, folder: Path, tmp_path: Path) -> None:
    def change(number: int, row: Json) -> None:
        for region in row["annotations"][:1]:
            region.update(damage)

    damaged = changed(copy_of(folder, tmp_path), change)
    with expect_error(SchemaError):
        list(RegionStream(damaged, Contents(images=False, grid_hw=(2, 2)), shuffle=False, keep_empty=True))


def test_an_image_of_another_size_is_a_fault(inline_dataset: Path, tmp_path: Path) -> None:
    """Its boxes would be elsewhere."""
    for row in open_dataset(inline_dataset).rows():
        Image.new("RGB", (50, 40)).save(tmp_path / row["file_name"])
    with expect_error(InputError):
        next(iter(RegionStream(inline_dataset, Contents(image_root=str(tmp_path)))))


@pytest.mark.parametrize(
    "options",
    [
        {"square_px": 0},
        {"grid_hw": (0, 3)},
        {"masks": "half"},
        {"tokenizer": "clip"},
    ],
)
def test_contents_that_cannot_be(options: Json) -> None:
    with expect_error(ConfigError, key=("grid_hw.0", *options)):
        Contents(**options)
