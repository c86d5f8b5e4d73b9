"""A dataset as photographs with five captions give it: an image of forty regions of ten things, among others."""

from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from playwright.sync_api import Locator

from stages.contract.masks import encode_mask, rle_area_px, rle_box_xywh_px
from tests.build.datasets import Json, change_manifest
from tests.synthetic import write_synthetic

THINGS = ("dog", "cat", "cow", "man", "car", "hat", "cup", "boy", "bus", "owl")
WORDS = ("big", "old", "very small and quite remarkable", "red")
IMAGES = 40
REGIONS = 40
CAPTIONS = 5


# Thing, word and caption of each region by number; each caption says eight phrases.
PHRASES = [(number % 10, number // 10, number // (REGIONS // CAPTIONS)) for number in range(REGIONS)]
# Half of the scores are below 0.5, and every third thing has only low ones.
SCORES = [
    0.2 + 0.02 * word if thing % 3 == 2 else 0.35 + 0.1 * word + 0.02 * thing for thing, word, _ in PHRASES
]


def write_crowd(folder: Path) -> Path:
    """The dataset; its first row is the crowd. Scores count as calibrated."""
    write_synthetic(folder, IMAGES, 6, embed_images=True)
    (path,) = (folder / "data").glob("*.parquet")
    table = pq.read_table(path)
    rows = table.to_pylist()
    like = next(one for row in rows for one in row["annotations"])
    row = next(row for row in rows if (row["width"], row["height"]) == (640, 480) and row["error"] is None)
    rows.remove(row)
    captions = [""] * CAPTIONS
    annotations = []
    for number, ((thing, word, caption), score) in enumerate(zip(PHRASES, SCORES, strict=True)):
        phrase = f"{WORDS[word]} {THINGS[thing]}"
        start = len(captions[caption]) + 2
        captions[caption] += f"a {phrase}, "
        x = 64 + 128 * (thing % 5) + 9 * word
        y = 110 + 240 * (thing // 5) + 12 * word
        mask = cv2.ellipse(
            np.zeros((480, 640), np.uint8), (x, y), (58 - 4 * word, 90 - 8 * word), 0, 0, 360, 1, -1
        )
        rle = encode_mask(mask.astype(bool))
        fields: Json = {
            "id": number + 1,
            "phrase": phrase,
            "head": THINGS[thing],
            "bbox": list(rle_box_xywh_px(rle)),
            "area": float(rle_area_px(rle)),
            "segmentation": {"size": list(rle.size_hw), "counts": rle.counts},
            "caption_index": caption,
            "span": [start, start + len(phrase)],
            "score": score,
            "presence": 0.9,
            "group": thing,
        }
        annotations.append({**like, **fields})
    captions[0] += "no ghost"
    span = [len(captions[0]) - len("ghost"), len(captions[0])]
    absent = {
        "phrase": "ghost",
        "head": "ghost",
        "caption_index": 0,
        "span": span,
        "presence": 0.07,
        "similarity": 0.1,
    }
    row |= {
        "captions": captions,
        "annotations": annotations,
        "absent": [absent],
        "phrase_count": REGIONS + 1,
    }
    pq.write_table(pa.Table.from_pylist([row, *rows], table.schema), path)
    change_manifest(folder, calibration="0" * 64)
    return folder


def visible_regions(sample: Locator) -> dict[int, float]:
    """Numbers of the regions that can be seen, with their opacity."""
    opacities: dict[str, float] = sample.evaluate(
        """sample => Object.fromEntries([...sample.querySelectorAll('.region')]
            .map(region => [region.dataset.region, getComputedStyle(region), region.getBoundingClientRect()])
            .filter(([, style, box]) => style.display !== 'none' && style.opacity > 0 && box.width > 0)
            .map(([number, style]) => [number, Number(style.opacity)]))"""
    )
    return {int(number): opacity for number, opacity in opacities.items()}


def labels_without_overlap(sample: Locator) -> list[int]:
    """Numbers of the regions that stand out: fully drawn, while all others are nearly invisible."""
    visible = visible_regions(sample)
    out = [number for number, opacity in visible.items() if opacity == 1]
    assert all(opacity < 0.2 for number, opacity in visible.items() if number not in out)
    return sorted(out)


def labels_to_read(sample: Locator) -> list[str]:
    """Texts of the labels that can be seen. None lies under anything, over another, or across the image's border."""
    labels: list[Json] = sample.evaluate(
        """sample => {
            const svg = sample.querySelector('.picture svg'), picture = svg.getBoundingClientRect();
            for (const part of svg.querySelectorAll('.label, .box, .mask')) part.style.pointerEvents = 'all';
            const shown = [...svg.querySelectorAll('.label')].filter(one => getComputedStyle(one).display !== 'none');
            const boxes = shown.map(one => one.getBoundingClientRect());
            const labels = shown.map((label, at) => {
                const box = boxes[at];
                const points = [.1, .3, .5, .7, .9].map(share => [box.x + share * box.width, box.y + box.height / 2]);
                return {
                    text: label.textContent,
                    height: box.height,
                    free: points.every(([x, y]) => document.elementFromPoint(x, y) === label),
                    alone: boxes.every((other, to) => to === at || other.x >= box.right || box.x >= other.right
                        || other.y >= box.bottom || box.y >= other.bottom),
                    inside: box.x >= picture.x && box.right <= picture.right && box.y >= picture.y
                        && box.bottom <= picture.bottom,
                };
            });
            for (const part of svg.querySelectorAll('.label, .box, .mask')) part.style.pointerEvents = '';
            return labels;
        }"""
    )
    for label in labels:
        assert label == {**label, "free": True, "alone": True, "inside": True}
        assert label["height"] > 10
    return [label["text"] for label in labels]
