"""Which split an image belongs to: by a hash of its name, so that it does not depend on any other image."""

from __future__ import annotations

import itertools
import re
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from stages.contract.errors import ConfigError
from stages.contract.records import stable_id

ALL: Final = "train"
"""Name of the only split where nothing is split: what loaders look for first."""

_NAME: Final = re.compile(r"[A-Za-z0-9_]{1,64}")
"""A name for files and folders on every system, and for a split of Hugging Face datasets."""

_IDS: Final = 2**53


@dataclass(frozen=True, slots=True, kw_only=True)
class Splits:
    """Shares of the images by name.

    shares  name -> share > 0, in order; their sum is 1

    Raises ConfigError for other shares, and for a name that is no plain file name.
    """

    shares: Mapping[str, float]

    def __post_init__(self) -> None:
        for name, share in self.shares.items():
            if not _NAME.fullmatch(name):
                raise ConfigError(f"--split: {name!r} cannot be the name of a split: letters, digits and _ only")
            if not 0 < share <= 1:
                raise ConfigError(f"--split: expected a share above 0 and up to 1 for {name}, got {share:g}")
        if len({name.lower() for name in self.shares}) < len(self.shares):
            raise ConfigError("--split: two names differ only by case, which some file systems cannot tell apart")
        total = sum(self.shares.values())
        if abs(total - 1) > 1e-6:
            raise ConfigError(f"--split: expected shares that sum to 1, got {total:g}")

    @property
    def names(self) -> tuple[str, ...]:
        """In the order given."""
        return tuple(self.shares)

    def of(self, image: str) -> str:
        """The split of an image, see `image_of`."""
        # A hash of its own: that of the name alone also orders and names things.
        place = (stable_id(f"split\n{image}") - 1) / (_IDS - 1)
        ends = list(itertools.accumulate(self.shares.values()))
        return self.names[min(bisect_right(ends, place), len(ends) - 1)]


def image_of(row: Mapping[str, Any]) -> str:
    """What tells a row's image from other images: its file name below the image root or in the tar, else the sample id.

    An input with a row for each caption has many rows for an image, and all of them go into one split. Images of equal
    names in different tars share a split too, which does no harm.
    """
    name: str = row["file_name"] or row["sample_id"]
    return name


def parse_splits(text: str) -> Splits:
    """Splits of "train=0.9,val=0.1"; "" is one split of all. Raises ConfigError."""
    if not text.strip():
        return Splits(shares={ALL: 1.0})
    shares: dict[str, float] = {}
    for part in text.split(","):
        name, equals, share = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise ConfigError(f"--split: expected NAME=SHARE,..., for example train=0.9,val=0.1; got {part!r}")
        if name in shares:
            raise ConfigError(f"--split: {name} is given twice")
        try:
            shares[name] = float(share)
        except ValueError as error:
            raise ConfigError(f"--split: the share of {name} is not a number: {share!r}") from error
    return Splits(shares=shares)
