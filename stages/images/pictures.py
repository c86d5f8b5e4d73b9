"""Pictures a person can look at: heat maps over an image, regions over an image with the caption below."""

from __future__ import annotations

import colorsys
import textwrap
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from stages.contract.masks import decode_mask, mask_box_xywh_px
from stages.contract.records import HeatMap, Rle
from stages.images.decode import DecodeLimits, decode_resized

Rgb = NDArray[np.uint8]

_TEXT_PX = 15
_LINE_PX = 20
_PAPER = (250, 250, 248)
_INK = (30, 30, 30)


def heat_map_overlay(rgb: Rgb, heat_map: HeatMap) -> Rgb:
    """The image (H, W, 3) under its heat map, min-maxed and resized bilinearly; blue is cold, red is hot."""
    height, width = rgb.shape[:2]
    values = heat_map.values - heat_map.values.min()
    peak = float(values.max())
    unit = values / peak if peak > 0 else values
    unit = cv2.resize(unit, (width, height), interpolation=cv2.INTER_LINEAR)
    colours = cv2.applyColorMap((unit * 255).astype(np.uint8), cv2.COLORMAP_TURBO)[..., ::-1]
    share = 0.25 + 0.4 * unit[..., None]
    mixed: Rgb = (rgb * (1 - share) + colours * share).astype(np.uint8)
    return mixed


def regions_overlay(rgb: Rgb, annotations: Sequence[dict[str, Any]], captions: Sequence[str] = ()) -> Rgb:
    """The image with each annotation's mask, box, phrase and score in a colour of its own, captions below.

    annotations   rows of the dataset's `annotations` column, in pixels of this image
    """
    picture = rgb.astype(np.float32)
    colours = [_colour(number) for number in range(len(annotations))]
    for annotation, colour in zip(annotations, colours, strict=True):
        coded = annotation["segmentation"]
        mask = decode_mask(Rle(size_hw=tuple(coded["size"]), counts=coded["counts"]))
        picture[mask] = picture[mask] * 0.6 + np.array(colour, np.float32) * 0.4
    image = Image.fromarray(picture.astype(np.uint8))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(_TEXT_PX)
    for annotation, colour in zip(annotations, colours, strict=True):
        x, y, w, h = annotation["bbox"]
        draw.rectangle((x, y, x + w - 1, y + h - 1), outline=colour, width=2)
        label = f"{annotation['phrase']} {annotation['score']:.2f}"
        left, top, right, bottom = draw.textbbox((0, 0), label, font=font)
        at_x = max(0.0, min(x, image.width - (right - left) - 6))
        at_y = y - (bottom - top) - 8 if y > bottom - top + 8 else y
        draw.rectangle((at_x, at_y, at_x + right - left + 6, at_y + bottom - top + 8), fill=colour)
        draw.text((at_x + 3, at_y + 3 - top / 2), label, fill=(0, 0, 0), font=font)
    return _with_text(image, captions)


def mask_path(rle: Rle, most_px: int = 640) -> str:
    """A mask as SVG path data in pixels of its image, holes included (fill rule "evenodd"); "" if it is empty.

    Long outlines are simplified, by about half a pixel.

    most_px   the outline is drawn on a grid of at most so many pixels a side; larger masks are averaged down

    Raises ValueError for a damaged code.
    """
    mask = decode_mask(rle)
    left, top, width, height = (int(value) for value in mask_box_xywh_px(mask))
    if not width:
        return ""
    inside = mask[top : top + height, left : left + width].astype(np.uint8)
    scale = min(1.0, most_px / max(height, width))
    if scale < 1:
        size = max(1, round(width * scale)), max(1, round(height * scale))
        shares = cv2.resize(inside * np.uint8(255), size, interpolation=cv2.INTER_AREA)
        inside = (shares >= min(128, shares.max())).astype(np.uint8)  # a mask of thin lines stays visible
    # Contours run through pixel centres: at twice the size their coordinates tell the pixels' corners.
    doubled = np.repeat(np.repeat(inside, 2, axis=0), 2, axis=1)
    rings, _ = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    to_px = np.array([width / inside.shape[1], height / inside.shape[0]])
    parts = []
    for ring in rings:
        simple = cv2.approxPolyDP(ring, 1.0, True) if len(ring) > 8 else ring
        # odd coordinates lie right of or below the corner
        corners = np.round((simple.reshape(-1, 2) + 1) // 2 * to_px + (left, top), 1)
        parts.append("M" + "L".join(f"{x:g} {y:g}" for x, y in corners) + "Z")
    return "".join(parts)


def thumbnail(content: bytes, side_px: int, limits: DecodeLimits) -> bytes:
    """A JPEG of an encoded image, upright, with a longer side of at most `side_px`; never enlarged.

    Raises RowFault: bad_image or image_too_large.
    """

    def size(width: int, height: int) -> tuple[int, int]:
        scale = min(1.0, side_px / max(width, height))
        return max(1, round(width * scale)), max(1, round(height * scale))

    decoded = decode_resized(content, limits, size, interpolation="bilinear", shrink_jpeg=True)
    return _encoded(Image.fromarray(decoded.rgb), "JPEG", quality=88)


def heat_map_png(heat_map: HeatMap, side_px: int = 512) -> bytes:
    """A PNG of a heat map to lay over its image, min-maxed: blue is cold, red is hot; the hotter, the less clear.

    side_px   of the longer side, in the shape of the grid: stretch it to the image
    """
    grid_h, grid_w = heat_map.values.shape
    scale = side_px / max(grid_h, grid_w)
    values = heat_map.values - heat_map.values.min()
    peak = float(values.max())
    unit = values / peak if peak > 0 else values
    unit = cv2.resize(unit, (round(grid_w * scale), round(grid_h * scale)), interpolation=cv2.INTER_LINEAR)
    colours = cv2.applyColorMap((unit * 255).astype(np.uint8), cv2.COLORMAP_TURBO)[..., ::-1]
    opacity = (255 * (0.25 + 0.5 * unit)).astype(np.uint8)
    return _encoded(Image.fromarray(np.dstack([colours, opacity])), "PNG")


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def row(pictures: Sequence[Rgb], titles: Sequence[str]) -> Rgb:
    """Pictures of one height side by side, a title under each."""
    return np.concatenate(
        [_with_text(Image.fromarray(picture), [title]) for picture, title in zip(pictures, titles, strict=True)],
        axis=1,
    )


def sheet(pictures: Sequence[Rgb], columns: int) -> Rgb:
    """Pictures of any size on one sheet, `columns` in a row."""
    gap = 8
    width = max(picture.shape[1] for picture in pictures) + gap
    rows = [pictures[i : i + columns] for i in range(0, len(pictures), columns)]
    heights = [max(picture.shape[0] for picture in entry) + gap for entry in rows]
    paper = np.full((sum(heights) + gap, width * columns + gap, 3), _PAPER, np.uint8)
    top = gap
    for entry, height in zip(rows, heights, strict=True):
        for number, picture in enumerate(entry):
            left = gap + number * width
            paper[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
        top += height
    return paper


def _colour(number: int) -> tuple[int, int, int]:
    """Bright colours whose hues stay far apart: steps of the golden ratio."""
    r, g, b = colorsys.hsv_to_rgb((0.08 + number * 0.618034) % 1.0, 0.65, 1.0)
    return int(r * 255), int(g * 255), int(b * 255)


def _with_text(image: Image.Image, texts: Sequence[str]) -> Rgb:
    """The image with lines of text below, wrapped to its width."""
    lines = [line for text in texts for line in textwrap.wrap(_printable(text), max(10, image.width // 8)) or [""]]
    paper = Image.new("RGB", (image.width, image.height + _LINE_PX * len(lines) + (6 if lines else 0)), _PAPER)
    paper.paste(image, (0, 0))
    draw, font = ImageDraw.Draw(paper), ImageFont.load_default(_TEXT_PX)
    for number, line in enumerate(lines):
        draw.text((4, image.height + 3 + number * _LINE_PX), line, fill=_INK, font=font)
    return np.asarray(paper)


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)
