"""Samples -> a batch."""

from pathlib import Path

import torch

from phrasebox.pipeline.load import Contents, RegionStream, collate_regions
from tests.pipeline.load.conftest import letters


def test_regions_stand_one_after_the_other(with_images: Path) -> None:
    contents = Contents(square_px=32, masks="full", grid_hw=(4, 4), tokenizer=letters)
    samples = list(RegionStream(with_images, contents))[:7]
    batch = collate_regions(samples)

    def joined(key: str) -> torch.Tensor:
        return torch.cat([sample[key] for sample in samples])

    assert torch.equal(batch["images"], torch.stack([sample["image"] for sample in samples]))
    for key, name in (("ids", "id"), ("sample_ids", "sample_id"), ("captions", "captions")):
        assert list(batch[key]) == [sample[name] for sample in samples]
    assert batch["heads"] == [head for sample in samples for head in sample["heads"]]
    for key in ("scores", "spans", "masks", "grid_masks"):
        assert torch.equal(batch[key], joined(key)), key
    assert torch.equal(batch["rois"][:, 1:], joined("boxes_xyxy_px"))
    images = [number for number, sample in enumerate(samples) for _ in sample["scores"]]
    assert batch["batch_indices"].tolist() == batch["rois"][:, 0].tolist() == images
    assert batch["region_counts"].tolist() == [len(sample["scores"]) for sample in samples]
    phrases = [phrase for sample in samples for phrase in sample["phrases"]]
    assert [batch["phrases"][number] for number in batch["phrase_indices"]] == phrases
    assert torch.equal(batch["tokens"][batch["phrase_indices"]], joined("tokens"))
    assert len(set(phrases)) == len(batch["phrases"]) == len(batch["tokens"])


def test_images_of_different_sizes_images_without_regions_and_batches_without_images(
    folder, with_images
) -> None:
    samples = list(RegionStream(with_images, Contents(masks="full")))[:6]
    batch = collate_regions(samples)
    assert [image.shape for image in batch["images"]] == [sample["image"].shape for sample in samples]
    assert [len(masks) for masks in batch["masks"]] == batch["region_counts"].tolist()
    contents = Contents(images=False, grid_hw=(2, 2), tokenizer=letters)
    empty = [s for s in RegionStream(folder, contents, keep_empty=True) if not len(s["scores"])][:3]
    batch = collate_regions(empty)
    assert batch["rois"].shape == (0, 5)
    assert batch["grid_masks"].shape == (0, 2, 2)
    assert batch["tokens"].shape[0] == 0
    assert batch["region_counts"].tolist() == [0, 0, 0]
    assert collate_regions([])["rois"].shape == (0, 5)
