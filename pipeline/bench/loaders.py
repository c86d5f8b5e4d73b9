"""The loaders for training."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch.utils.data import DataLoader

from pipeline.bench.timing import line, processor, speed_of, speed_over
from pipeline.load import Contents, RegionDataset, RegionStream, collate_regions

LOADER_BATCH: Final = 64


def loaders(rows: int = 6000, images: int = 300) -> list[dict[str, Any]]:
    """Images per second of the loaders for training: annotations alone, and decoding against a bare loop.

    By CPU time of one process. Only in a checkout: the dataset is a synthetic one of the tests, with three regions an
    image on average.
    """
    from tests.synthetic import write_synthetic

    torch.set_num_threads(1)  # as in a worker of DataLoader
    cpu = f"one core, {processor()}"
    with tempfile.TemporaryDirectory() as name:
        folder = write_synthetic(Path(name) / "rows", rows, rows_per_file=1000)
        cases = {
            "loader_annotations": Contents(images=False),
            "loader_annotations_with_grid_masks": Contents(images=False, grid_hw=(14, 14)),
            "loader_annotations_with_full_masks": Contents(images=False, masks="full"),
        }
        lines = [
            line(name, speed_of(RegionStream(folder, contents)), "images/s", cpu) for name, contents in cases.items()
        ]
        tokens = RegionStream(folder, Contents(images=False, tokenizer="dataset"))
        known = f"phrases known, as after the first steps, {cpu}"
        lines.append(line("loader_annotations_with_tokens", speed_of(tokens), "images/s", known))
        plain = RegionStream(folder, cases["loader_annotations"], count=True)
        speed = speed_of(DataLoader(plain, LOADER_BATCH, collate_fn=collate_regions)) * LOADER_BATCH
        lines.append(line("loader_annotations_collated", speed, "images/s", f"batches of {LOADER_BATCH}, {cpu}"))
        indexed = RegionDataset(folder, cases["loader_annotations"], cached_rows=2000)
        in_order = DataLoader(indexed, LOADER_BATCH, collate_fn=list)
        lines.append(line("loader_by_number_in_order", speed_of(in_order) * LOADER_BATCH, "images/s", cpu))
        lines += _decoding(write_synthetic(Path(name) / "images", images, embed_images=True, rows_per_file=100), cpu)
    return lines


def _decoding(folder: Path, cpu: str) -> list[dict[str, Any]]:
    """The images with their annotations in original size, over reading the same column and decoding with Pillow."""
    stream = RegionStream(folder, Contents(), keep_empty=True)

    def bare() -> Iterator[Any]:
        for path in sorted((folder / "data").glob("*.parquet")):
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(batch_size=32, columns=["image.bytes"], use_threads=False):
                    for image in batch.column("image").to_pylist():
                        if image is not None:
                            yield torch.from_numpy(np.array(Image.open(BytesIO(image["bytes"])).convert("RGB")))

    against = f"reading the same Parquet column and Pillow's decoding to an RGB tensor, {cpu}"
    return [line("loader_decoding_vs_bare_loop", speed_over(stream, bare), "of its speed", against)]
