"""How styles write a box, which lies within its image: functions of a region and its `Frame`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Literal

from phrasebox.pipeline.dataset.rows import Annotation, mask_of
from phrasebox.stages.contract.geometry import Box, xywh_to_xyxy
from phrasebox.stages.contract.masks import innermost_pixel

_QWEN_CELL_PX: Final = 28
_KOSMOS_CELLS: Final = 32  # along a side
_PALIGEMMA_BINS: Final = 1024
_FLORENCE_BINS: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """The size of an image, and what the trainer makes of it.

    Attributes:
        width: Width in px.
        height: Height in px.
        min_pixels: Least pixels of the image after Qwen2.5-VL's resizing.
        max_pixels: Most pixels of the image after it.
        padding: Whether LLaVA pads the image to a square.
    """

    width: int
    height: int
    min_pixels: int
    max_pixels: int
    padding: Literal["square", "none"]

    def shares(self, region: Annotation) -> Box:
        """Return the edges x0, y0, x1, y1 of a box as shares 0 .. 1 of the image's sides."""
        x0, y0, x1, y1 = xywh_to_xyxy(region["bbox"])
        return x0 / self.width, y0 / self.height, x1 / self.width, y1 / self.height


BoxWriter = Callable[[Annotation, Frame], str]


def write_mark(region: Annotation, frame: Frame) -> str:
    """Return the mark that ms-swift replaces by a box of the record."""
    return "<bbox>"


def write_thousandths(region: Annotation, frame: Frame) -> str:
    """Return [x0, y0, x1, y1] in 0 .. 1000, as Qwen2-VL and Qwen3-VL write them.

    >>> frame = Frame(width=640, height=428, min_pixels=1, max_pixels=9, padding="none")
    >>> write_thousandths({"bbox": [146, 137, 469, 278]}, frame)
    '[228, 320, 961, 970]'
    """
    return _bracket(str(round(share * 1000)) for share in frame.shares(region))


def write_resized_pixels(region: Annotation, frame: Frame) -> str:
    """Return [x0, y0, x1, y1] in pixels of the image after Qwen2.5-VL's resizing.

    >>> frame = Frame(width=640, height=428, min_pixels=56 * 56, max_pixels=1003520, padding="none")
    >>> write_resized_pixels({"bbox": [146, 137, 469, 278]}, frame)
    '[147, 134, 619, 407]'
    """
    width, height = resize_for_qwen(frame)
    x0, y0, x1, y1 = xywh_to_xyxy(region["bbox"])
    scale_x = width / frame.width
    scale_y = height / frame.height
    edges = (x0 * scale_x, y0 * scale_y, x1 * scale_x, y1 * scale_y)
    last_pixels = (width - 1, height - 1) * 2
    return _bracket(str(min(round(edge), last)) for edge, last in zip(edges, last_pixels, strict=True))


def resize_for_qwen(frame: Frame) -> tuple[int, int]:
    """Return width and height after Qwen2.5-VL's resizing: multiples of 28 with few or enough pixels.

    As `smart_resize` of transformers' Qwen2VLImageProcessor.
    """
    sides = (frame.width, frame.height)
    width, height = (round(side / _QWEN_CELL_PX) * _QWEN_CELL_PX for side in sides)
    area = frame.width * frame.height
    if width * height > frame.max_pixels:
        shrink = math.sqrt(area / frame.max_pixels)
        width, height = (
            max(1, math.floor(side / shrink / _QWEN_CELL_PX)) * _QWEN_CELL_PX for side in sides
        )
    elif width * height < frame.min_pixels:
        growth = math.sqrt(frame.min_pixels / area)
        width, height = (math.ceil(side * growth / _QWEN_CELL_PX) * _QWEN_CELL_PX for side in sides)
    return width, height


def write_hundredths(region: Annotation, frame: Frame) -> str:
    """Return [x0, y0, x1, y1] as shares with two decimals, as LLaVA's data, of the padded square.

    >>> frame = Frame(width=100, height=50, min_pixels=1, max_pixels=9, padding="square")
    >>> write_hundredths({"bbox": [0, 0, 100, 50]}, frame)
    '[0.00, 0.25, 1.00, 0.75]'
    """
    if frame.padding == "none":
        return _bracket(f"{share:.2f}" for share in frame.shares(region))
    side = max(frame.width, frame.height)
    x0, y0, x1, y1 = xywh_to_xyxy(region["bbox"])
    left = (side - frame.width) // 2
    top = (side - frame.height) // 2
    return _bracket(f"{edge / side:.2f}" for edge in (x0 + left, y0 + top, x1 + left, y1 + top))


def write_paligemma(region: Annotation, frame: Frame) -> str:
    """Return four of PaliGemma's location tokens, y before x, as big_vision rounds them.

    >>> frame = Frame(width=100, height=50, min_pixels=1, max_pixels=9, padding="none")
    >>> write_paligemma({"bbox": [0, 25, 100, 25]}, frame)
    '<loc0512><loc0000><loc1023><loc1023>'
    """
    x0, y0, x1, y1 = frame.shares(region)
    return "".join(f"<loc{round(share * (_PALIGEMMA_BINS - 1)):04d}>" for share in (y0, x0, y1, x1))


def write_florence(region: Annotation, frame: Frame) -> str:
    """Return four of Florence-2's location tokens, x before y, as its processor counts them.

    >>> frame = Frame(width=640, height=424, min_pixels=1, max_pixels=9, padding="none")
    >>> write_florence({"bbox": [0, 242, 640, 182]}, frame)
    '<loc_0><loc_570><loc_999><loc_999>'
    """
    bins = (min(math.floor(share * _FLORENCE_BINS), _FLORENCE_BINS - 1) for share in frame.shares(region))
    return "".join(f"<loc_{number}>" for number in bins)


def write_kosmos(region: Annotation, frame: Frame) -> str:
    """Return the first and the last cell of a box in Kosmos-2's grid of 32 x 32.

    >>> frame = Frame(width=100, height=100, min_pixels=1, max_pixels=9, padding="none")
    >>> write_kosmos({"bbox": [0, 0, 100, 100]}, frame)
    '<patch_index_0000><patch_index_1023>'
    """
    x0, y0, x1, y1 = (share * _KOSMOS_CELLS for share in frame.shares(region))
    first = math.floor(y0) * _KOSMOS_CELLS + math.floor(x0)
    last = math.ceil(y1 - 1) * _KOSMOS_CELLS + math.ceil(x1 - 1)
    return f"<patch_index_{first:04d}><patch_index_{last:04d}>"


def write_point(region: Annotation, frame: Frame) -> str:
    """Return "x y" in percent of the sides, the innermost pixel of the mask, as Molmo's points."""
    x, y = innermost_pixel(mask_of(region))
    return f"{100 * (x + 0.5) / frame.width:.1f} {100 * (y + 0.5) / frame.height:.1f}"


def _bracket(numbers: Iterable[str]) -> str:
    return f"[{', '.join(numbers)}]"
