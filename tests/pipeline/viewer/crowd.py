"""A dataset as photographs with five captions give it: an image of forty regions of ten things."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from playwright.sync_api import Locator

from tests.build.datasets import Json
from tests.pipeline.export.datasets import Maker, finished

THINGS = ("dog", "cat", "cow", "man", "car", "hat", "cup", "boy", "bus", "owl")
WORDS = ("big", "old", "very small and quite remarkable", "red")
REGIONS = 40
CAPTIONS = 5


# Thing, word and caption of each region by number; each caption says eight phrases.
PHRASES = [(number % 10, number // 10, number // (REGIONS // CAPTIONS)) for number in range(REGIONS)]
# Half of the scores are below 0.5, and every third thing has only low ones.
SCORES = [
    0.2 + 0.02 * word if object_ % 3 == 2 else 0.35 + 0.1 * word + 0.02 * object_
    for object_, word, _ in PHRASES
]


def write_crowd(folder: Path) -> Path:
    """The dataset, which has only this row."""
    captions = [""] * CAPTIONS
    entries = []
    for (object_, word, caption), score in zip(PHRASES, SCORES, strict=True):
        phrase = f"{WORDS[word]} {THINGS[object_]}"
        captions[caption] += f"a {phrase}, "
        place = (64 + 128 * (object_ % 5) + 9 * word, 110 + 240 * (object_ // 5) + 12 * word)
        axes = (58 - 4 * word, 90 - 8 * word)
        mask = cv2.ellipse(np.zeros((480, 640), np.uint8), place, axes, 0, 0, 360, 1, -1)
        entries.append((phrase, mask.astype(bool), caption, {"score": score, "group": object_}))
    captions[0] += "no ghost"
    crowd = Maker().record("crowd", tuple(captions), *entries, absent=[("ghost", 0)])
    return finished(folder, [replace(crowd, width_px=640, height_px=480)])


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
