"""Datasets of any size without a model, a million rows in minutes: for what must hold over millions of rows."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from phrasebox.pipeline import __version__
from phrasebox.pipeline.config.run_config import RunConfig
from phrasebox.pipeline.dataset.shard_list import SHARDS, list_entries, manifest_text
from phrasebox.pipeline.dataset.signature import sign
from phrasebox.pipeline.dataset.tally import rows_of, write_categories
from phrasebox.stages.contract.errors import ROW_ERRORS, RowError
from phrasebox.stages.contract.masks import encode_mask, rle_area_px, rle_box_xywh_px
from phrasebox.stages.contract.records import ImageRef, Phrase, Record, Region, Rle, Sample
from phrasebox.stages.contract.schema import SCHEMA_VERSION, records_to_rows
from phrasebox.stages.files.parquet import PARQUET_SETTINGS
from phrasebox.stages.files.shards import read_shard_file
from phrasebox.stages.files.storage import found_in, write_text
from phrasebox.stages.write import Tally
from tests.build.records import image_bytes

SIZES_WH = ((640, 480), (480, 640), (500, 375), (333, 500), (1024, 768), (427, 640))
MASKS_PER_SIZE = 12

COLOURS = (
    "",
    "",
    "",
    "",
    "red",
    "blue",
    "green",
    "black",
    "white",
    "brown",
    "grey",
    "yellow",
    "silver",
    "pale pink",
)
KINDS = (
    "",
    "",
    "",
    "",
    "",
    "old",
    "small",
    "large",
    "wooden",
    "young",
    "empty",
    "striped",
    "wet",
    "shiny",
    "broken",
)
NOUNS = (
    "man", "woman", "dog", "cat", "car", "tree", "table", "chair", "street", "house", "bird", "horse", "boat",
    "bicycle",
    "window", "door", "hat", "shirt", "ball", "child", "bus", "train", "bench", "sign", "bottle", "cup", "plate",
    "cake",
    "flower", "grass", "beach", "wave", "mountain", "road", "fence", "wall", "lamp", "clock", "book", "phone", "laptop",
    "umbrella", "bag", "kite", "sheep", "cow", "elephant", "giraffe", "zebra", "pizza", "sandwich", "café", "piñata",
    "jalapeño", "kimono", "tatami", "samovar", "gondola", "lighthouse", "windmill", "tractor", "ladder", "bridge",
)  # fmt: skip
PLURALS = (
    "dogs",
    "cats",
    "cars",
    "trees",
    "chairs",
    "birds",
    "horses",
    "boats",
    "bottles",
    "cups",
    "flowers",
    "books",
)
NUMBERS = ("two", "three", "several", "a few")
OPENINGS = ("", "A photo of ", "Here is ", "🙂 ", "In the evening: ")
LINKS = (" beside ", " and ", ", near ", " in front of ", " with ", " under ")
NO_PHRASES = ("beautiful!", "so very nice", "IMG_0042", "", "wow… really?")
"""Captions that name nothing."""

REASONS = tuple(ROW_ERRORS)


def write_synthetic(
    folder: Path,
    rows: int,
    regions_per_row: float = 3.0,
    seed: int = 0,
    rows_per_file: int = 10_000,
    *,
    embed_images: bool = False,
    fingerprint: str = "synthetic",
) -> Path:
    """A finished dataset of `rows` rows, which `validate` accepts; the same bytes for the same arguments.

    1 % of the rows have an error, 3 % name nothing, the others have 0 .. 2 x `regions_per_row` regions, so that on
    average there are `regions_per_row` less 4 %. A few words are much more frequent than the others; some captions
    are long, some rows have two. Masks are blobs, some with holes, some of several parts, from a fixed stock for each
    of six image sizes. Images are not written, except into the rows with `embed_images`: plain JPEGs of the right
    size.
    """
    data = folder / "data"
    data.mkdir(parents=True)
    images = [_jpeg(width, height) for width, height in SIZES_WH] if embed_images else []
    for number, start in enumerate(range(0, rows, rows_per_file)):
        rng = np.random.default_rng((seed, number))
        records = _records(rng, start, min(rows_per_file, rows - start), regions_per_row, images)
        table = records_to_rows(records, ["image"] if embed_images else [])
        pq.write_table(table, data / f"{number:05d}.parquet", **PARQUET_SETTINGS)
    total = count(folder)
    write_text(folder / "README.md", "# A synthetic dataset\n")
    write_manifest(
        folder, total, rows_per_file=rows_per_file, embed_images=embed_images, fingerprint=fingerprint
    )
    return folder


def count(folder: Path) -> Tally:
    """The counts of a dataset's shards; writes its categories."""
    shards = found_in(folder / "data", "*.parquet")
    with rows_of(shards) as rows:
        write_categories(rows, folder / "categories.parquet")
        return rows.tally(len(shards))


def write_manifest(
    folder: Path,
    total: Tally,
    *,
    rows_per_file: int = 1000,
    embed_images: bool = False,
    image_root: Path | None = None,
    fingerprint: str = "synthetic",
) -> None:
    """`dataset.json` of a dataset whose shards are counted, as if a run with the default settings had made it here."""
    root = folder / "images" if image_root is None else image_root
    output = {"path": str(folder), "rows_per_file": rows_per_file, "embed_images": embed_images}
    source = {"kind": "jsonl", "path": str(folder / "captions.jsonl"), "image_root": str(root)}
    values = {"input": source, "model": {"name": "demo"}, "output": output}
    config = RunConfig.model_validate(values).model_dump(mode="json")
    run = {"schema_version": SCHEMA_VERSION, "model_fingerprint": fingerprint, "calibration": None}
    manifest = {
        "format": "phrasebox",
        "phrasebox_version": __version__,
        **run,
        "config": config,
        "counts": {"read": total.rows, **total.counts(), "skipped_by_reason": {}},
        "wall_time_s": 0.0,
        "stages": {},
        "run": {**run, "config": {}},
    }
    shards = map(read_shard_file, found_in(folder / "data", "*.parquet"))
    write_text(folder / "dataset.json", manifest_text({**sign(manifest), SHARDS: list_entries(shards)}))


@cache
def stock() -> list[Region]:
    """Regions without a phrase, `MASKS_PER_SIZE` for each of the sizes in turn."""
    masks = [
        mask for number, (width, height) in enumerate(SIZES_WH) for mask in _masks(width, height, number)
    ]
    unknown = {"phrase_index": 0, "score": 0.0, "similarity": 0.0}
    return [
        Region(box_xywh_px=rle_box_xywh_px(mask), mask=mask, area_px=rle_area_px(mask), **unknown)  # type: ignore[arg-type]
        for mask in masks
    ]


def _masks(width: int, height: int, seed: int) -> Iterator[Rle]:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    for number in range(MASKS_PER_SIZE):
        inside = _blob(rng, x, y, width, height)
        if number % 6 == 1:  # of several parts
            inside |= _blob(rng, x, y, width, height)
        if number % 6 == 2:  # with a hole
            inside &= np.hypot(x - x[inside].mean(), y - y[inside].mean()) > 5
        if number % 24 == 3:
            inside = np.zeros_like(inside)
            inside[rng.integers(height), rng.integers(width)] = True
        if number % 24 == 4:
            inside[:] = True
        inside[height // 2, width // 2] |= not inside.any()
        yield encode_mask(inside)


def _blob(rng: Any, x: Any, y: Any, width: int, height: int) -> Any:
    """bool (height, width): an ellipse with a wavy edge."""
    x0, y0 = rng.uniform(0.1, 0.9, 2) * (width, height)
    a, b = rng.uniform(0.1, 1, 2) * 0.3 * (width, height) + 2
    dx = (x - x0) / a
    dy = (y - y0) / b
    wave = 1 + 0.2 * np.sin(rng.integers(2, 9) * np.arctan2(dy, dx) + rng.uniform(0, 6))
    return np.hypot(dx, dy) < wave


def _jpeg(width: int, height: int) -> bytes:
    y, x = np.mgrid[:height, :width]
    rgb = np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], axis=2).astype(np.uint8)
    return image_bytes(Image.fromarray(rgb), "JPEG", quality=60)


def _records(rng: Any, start: int, rows: int, mean: float, images: Sequence[bytes]) -> Iterator[Record]:
    """Records of one shard; images: one for each of the sizes, or none."""
    size_number = rng.integers(len(SIZES_WH), size=rows)
    kind = rng.random(rows)
    failed = kind < 0.01
    nameless = (kind >= 0.01) & (kind < 0.04)
    regions = rng.integers(0, round(2 * mean), size=rows, endpoint=True)
    regions[failed | nameless] = 0
    texts = [
        _captions(rng, regions_of_row, nameless[row]) for row, regions_of_row in enumerate(regions.tolist())
    ]
    reasons = [REASONS[number] for number in rng.integers(len(REASONS), size=rows)]
    total = int(regions.sum())
    masks = iter(
        (
            MASKS_PER_SIZE * np.repeat(size_number, regions) + rng.integers(MASKS_PER_SIZE, size=total)
        ).tolist()
    )
    similarities = iter(rng.normal(0.24, 0.04, total).clip(-1, 1).tolist())
    scores = iter(np.round(rng.beta(2, 2.5, total), 4).tolist())
    for row, (captions, placed, count) in enumerate(texts):
        name = f"s{start + row:09d}"
        size = int(size_number[row])
        image = ImageRef(
            file_name=f"{(start + row) // 1000:05d}/{name}.jpg", content=images[size] if images else None
        )
        sample = Sample(sample_id=name, source=name, captions=tuple(captions), image=image)
        if failed[row]:
            yield Record(
                sample=sample, error=RowError(reason=reasons[row], detail=f"synthetic fault of {name}")
            )
            continue
        phrases = {one: number for number, one in enumerate(dict.fromkeys(placed))}
        regions_of_row = [
            replace(
                stock()[next(masks)],
                phrase_index=phrases[one],
                score=next(scores),
                similarity=next(similarities),
            )
            for one in placed
        ]
        if count > len(phrases):
            at = captions[0].rindex("thing")
            phrases["thing", "thing", 0, at, at + 5] = len(phrases)
        width, height = SIZES_WH[size]
        names = ("text", "head", "caption_index", "start", "end")
        phrases_of_row = tuple(Phrase(**dict(zip(names, one, strict=True))) for one in phrases)
        yield Record(
            sample=sample,
            width_px=width,
            height_px=height,
            phrases=phrases_of_row,
            regions=tuple(regions_of_row),
        )


Placed = tuple[str, str, int, int, int]
"""Phrase, head, caption index, start, end."""


def _captions(rng: Any, regions: int, nameless: bool) -> tuple[list[str], list[Placed], int]:
    """Captions, the phrase of each region, and the number of phrases. Some phrases have two regions, some none."""
    if nameless:
        return [NO_PHRASES[int(rng.integers(len(NO_PHRASES)))]], [], 0
    draws = iter(rng.random(6 * regions + 12).tolist())
    captions: list[str] = []
    placed: list[Placed] = []
    count = 0
    while True:
        text = _pick(OPENINGS, next(draws))
        while len(placed) < regions:
            words, phrase, head, plural = _phrase(next(draws), next(draws), next(draws))
            start = len(text)
            text += words
            count += 1
            times = 2 if plural and regions - len(placed) > 1 else 1
            placed += [(phrase, head, len(captions), start, len(text))] * times
            if len(placed) < regions:
                text += _pick(LINKS, next(draws))
            if count % 4 == 0 and not captions and next(draws) < 0.5:
                break
        if not regions:
            count += 1
            text += "some thing"
        captions.append(text.removesuffix(" ") + ("" if text.endswith(" ") else "."))
        if len(placed) >= regions:
            return captions, placed, count


def _phrase(first: float, second: float, third: float) -> tuple[str, str, str, bool]:
    """Words as in a caption, normalised phrase, head, plural. The cube makes the first words the frequent ones."""
    if third < 0.12:
        noun = _pick(PLURALS, first**2)
        phrase = f"{_pick(NUMBERS, second).removeprefix('a ')} {noun}"
        return f"{_pick(NUMBERS, second)} {noun}", phrase, noun.removesuffix("s"), True
    noun = _pick(NOUNS, first**3)
    colour = _pick(COLOURS, second)
    kind = _pick(KINDS, (second * 7919) % 1)
    # One phrase in twenty is one of 20,000 rare ones, the long tail of a real vocabulary.
    rare = f"{int(second * 1e9) % 20_000}" if third > 0.95 else ""
    words = " ".join(word for word in (kind, colour, noun, rare) if word)
    determiner = "The " if third < 0.3 else "a "
    return determiner + words, words, noun, False


def _pick(words: tuple[str, ...], draw: float) -> str:
    return words[int(draw * len(words))]
