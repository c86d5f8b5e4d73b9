"""Calibrations of earlier formats, read as those of today: the steps of their files.

To raise the format, add the step from the one before here, and a calibration of the new format to `tests/stored`, where
those of all formats stay.
"""

from __future__ import annotations

import re
from typing import Any, Final

from pydantic_core import from_json

from phrasebox.stages.contract.errors import ConfigError
from phrasebox.stages.contract.values import Json
from phrasebox.stages.contract.versions import StoredFormat

FORMAT: Final = "phrasebox calibration 3"
"""What the key `format` of a calibration of today says."""

CALIBRATION: Final[StoredFormat[Json]] = StoredFormat(
    name="calibration format",
    current=3,
    oldest=3,  # those before were fitted to other features, and are in no release
    remedy="phrasebox calibrate makes it again",
)

_FORMAT: Final = re.compile(r"phrasebox calibration ([0-9]{1,6})")


def lift_calibration(content: str | bytes, path: object) -> Any:
    """Return the values of a calibration's file, lifted to `FORMAT` where an older phrasebox has written them.

    Values that are no calibration are returned as they are. Raise ConfigError, which names the file, for a newer format
    or one that is no longer read, and ValueError for what is no JSON.
    """
    values = from_json(content)
    match = _FORMAT.fullmatch(str(values.get("format"))) if isinstance(values, dict) else None
    if match is None:
        return values
    version = int(match[1])
    if fault := CALIBRATION.find_fault(version):
        raise ConfigError(f"{path}: {fault}", key="regions.calibration")
    return {**CALIBRATION.lift(values, version), "format": FORMAT}
