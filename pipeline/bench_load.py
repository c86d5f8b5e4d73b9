"""Figures of the loaders for training, part of `make bench`: images per second of CPU time of one process.

Only in a checkout: the dataset is a synthetic one of the tests, with three regions an image on average.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch.utils.data import DataLoader

from stages.dataset.load import Contents, RegionDataset, RegionStream, collate_regions

BATCH = 64


def loaders(rows: int = 6000, images: int = 300) -> list[dict[str, Any]]:
    """Annotations without images, by CPU time of one process; decoding against a bare loop over the same bytes."""
    from tests.synthetic import write_synthetic

    torch.set_num_threads(1)  # as in a worker of DataLoader
    cpu = f"one core, {_cpu()}"
    with tempfile.TemporaryDirectory() as name:
        folder = write_synthetic(Path(name) / "rows", rows, rows_per_file=1000)
        cases = {
            "loader_annotations": Contents(images=False),
            "loader_annotations_with_grid_masks": Contents(images=False, grid_hw=(14, 14)),
            "loader_annotations_with_full_masks": Contents(images=False, masks="full"),
        }
        lines = [
            _line(name, _speed(RegionStream(folder, contents)), "images/s", cpu) for name, contents in cases.items()
        ]
        tokens = RegionStream(folder, Contents(images=False, tokenizer="dataset"))
        known = f"phrases known, as after the first steps, {cpu}"
        lines.append(_line("loader_annotations_with_tokens", _speed(tokens), "images/s", known))
        plain = RegionStream(folder, cases["loader_annotations"], count=True)
        speed = _speed(DataLoader(plain, BATCH, collate_fn=collate_regions)) * BATCH
        lines.append(_line("loader_annotations_collated", speed, "images/s", f"batches of {BATCH}, {cpu}"))
        indexed = RegionDataset(folder, cases["loader_annotations"], cached_rows=2000)
        in_order = DataLoader(indexed, BATCH, collate_fn=list)
        lines.append(_line("loader_by_number_in_order", _speed(in_order) * BATCH, "images/s", cpu))
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
    return [_line("loader_decoding_vs_bare_loop", _speed_over(stream, bare), "of its speed", against)]


def _speed_over(ours: Iterable[Any], bare: Callable[[], Iterator[Any]], rounds: int = 11) -> float:
    """The bare time over ours, each the least of many rounds, the two taken in turn, for the same number of items.

    Other programs on the machine only ever add to a time.
    """
    found = [(_seconds(bare()), _seconds(ours)) for _ in range(rounds)]
    if any(without[1] != with_[1] for without, with_ in found):
        raise ValueError("the two sides decode different images")
    return min(without[0] for without, _ in found) / min(with_[0] for _, with_ in found)


def _seconds(items: Iterable[Any]) -> tuple[float, int]:
    """CPU time to go through the items, and how many there are."""
    start = time.process_time()
    count = sum(1 for _ in items)
    return time.process_time() - start, count


def _line(name: str, value: float, unit: str, against: str) -> dict[str, Any]:
    return {"name": name, "value": round(value, 3), "unit": unit, "against": against}


def _speed(items: Iterable[Any], rounds: int = 3) -> float:
    """Items per second, the best of some rounds after one that warms up."""
    found = [_seconds(items) for _ in range(rounds + 1)]
    return max(count / seconds for seconds, count in found[1:])


def _cpu() -> str:
    """The processor's name, where the system tells."""
    try:
        described = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return "unknown CPU"
    names = [text.partition(":")[2].strip() for text in described.splitlines() if text.startswith("model name")]
    return f"{names[0]} CPU" if names else "unknown CPU"
