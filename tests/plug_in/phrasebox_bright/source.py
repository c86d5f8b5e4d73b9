"""A box in the middle of every image: a baseline that does not look at it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from phrasebox.extend import Record, Region, RegionSource, RegionSourceConfig, encode_mask, region_of_mask


class MiddleConfig(RegionSourceConfig):
    kind: Literal["middle"] = "middle"


class Middle(RegionSource[MiddleConfig]):
    config_type = MiddleConfig
    regions_come_from = "a box in the middle for every phrase"
    score_means = "nothing: all are equal"

    def with_regions(self, records: Sequence[Record]) -> list[Record]:
        return [replace(record, regions=tuple(self.boxes(record))) for record in records]

    def boxes(self, record: Record) -> list[Region]:
        left = record.width_px // 4
        top = record.height_px // 4
        pixels = np.zeros((record.height_px, record.width_px), np.bool_)
        pixels[top : record.height_px - top, left : record.width_px - left] = True
        mask = encode_mask(pixels)
        return [region_of_mask(index, mask, 0.5) for index in range(len(record.phrases))]
