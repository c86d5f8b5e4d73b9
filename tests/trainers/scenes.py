"""32 tiny images with regions of every kind, and what a loader has to make of them."""

from pathlib import Path

import numpy as np
from PIL import Image

from phrasebox.stages.contract.records import Record
from tests.build.records import HEIGHT, WIDTH, image_bytes, mask
from tests.pipeline.export.datasets import Maker, demo_fingerprint, finished

IMAGES = 32
BOY = (2, 3, 10, 20)
DOG = (20, 4, 8, 7)
DOGS = ((18, 15, 7, 8), (29, 16, 9, 10))
PIEBALD = "black/white cat"

Names = dict[tuple[str, tuple[int, int, int, int]], int]
"""(Name, box x0, y0, x1, y1 px) -> how often it is there."""


def corners(box_xywh: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    x, y, w, h = box_xywh
    return x, y, x + w, y + h


OBJECTS = sorted(
    [("boy", corners(BOY)), ("dog", corners(DOG)), *(("two dogs", corners(box)) for box in DOGS)]
)
"""Of every image, by objects: the boy is also called a child."""

MENTIONS = sorted([*OBJECTS, ("young child", corners(BOY))])
"""The same with every phrase of every caption."""


def noise(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    return image_bytes(Image.fromarray(pixels))


def record(make: Maker, number: int) -> Record:
    """The fourth of the images has a cat of two parts instead of a dog that is absent."""
    fields = {"score": 0.75, "presence": 0.9}
    captions = ("A boy with a dog", "a young child and two dogs", f"a {PIEBALD}")
    entries = [
        ("A boy", BOY, 0, {**fields, "group": 0, "score": 0.875}),
        ("young child", BOY, 1, {**fields, "group": 0}),
        ("dog", DOG, 0, {**fields, "group": 1}),
        *(("two dogs", box, 1, {**fields, "group": 2}) for box in DOGS),
    ]
    absent = [(PIEBALD, 2)]
    if number % 4 == 0:
        absent = []
        entries.append((PIEBALD, mask((2, 24, 5, 4), (12, 25, 6, 4)), 2, {**fields, "group": 3}))
    content = {"file_name": f"{number:03}.png", "image_bytes": noise(number)}
    return make.record(str(number + 1), captions, *entries, absent=absent, **content)


CATS = IMAGES // 4
CAT = (PIEBALD, (2, 24, 18, 29))


def write_scenes(folder: Path) -> Path:
    make = Maker()
    rows = [record(make, number) for number in range(IMAGES)]
    return finished(folder, rows, fingerprint=demo_fingerprint())


def expected(*, per: str = "group") -> list[tuple[str, tuple[int, int, int, int]]]:
    """Every (name, box) of all images, sorted."""
    return sorted((OBJECTS if per == "group" else MENTIONS) * IMAGES + [CAT] * CATS)
