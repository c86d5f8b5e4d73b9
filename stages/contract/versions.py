"""Versions of what is stored: an older one is lifted to the one that is read, and a newer one is refused.

Whoever changes a format raises its version, adds the step that makes content of the version before content of the new
one, and adds a file of the new version to `tests/stored`. The formats are

datasets                  `stages/contract/schema_versions.py`, with the number in `schema.py`; rows are lifted by
                          `stages/files/lifted_shards.py`, dataset.json by `pipeline/dataset/stored_run.py`
calibrations              `stages/scores/calibration_versions.py`
answers of people         `Review.form` in `pipeline/dataset/reviews.py`
marks                     `Mark.form` in `pipeline/dataset/marks.py`

Runs that are resumed need no version of this kind: only the same minor version of phrasebox resumes them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

UPGRADE: Final = "a newer phrasebox has written it. Upgrade: pip install --upgrade phrasebox"

ContentT = TypeVar("ContentT")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFormat(Generic[ContentT]):
    """The versions of a stored format: whole numbers, which go up when older code would misread what is written.

    Attributes:
        name: What people call its version, as "schema version".
        current: The version that is written.
        oldest: The oldest version that is read.
        remedy: How to get anew what is older than that, or says no version.
        steps: Version -> what makes content of it content of the next version. A version without a
            step is read as the next one is: only fields with defaults were added.

    >>> palette: StoredFormat[list[str]] = StoredFormat(
    ...     name="palette", current=2, remedy="draw it again", steps={1: lambda names: [name.lower() for name in names]}
    ... )
    >>> palette.find_fault(1), palette.lift(["Red"], 1)
    ('', ['red'])
    >>> palette.find_fault(0)
    'palette 0, this phrasebox reads 1 to 2: draw it again'
    """

    name: str
    current: int
    oldest: int = 1
    remedy: str
    steps: Mapping[int, Callable[[ContentT], ContentT]] = field(default_factory=dict)

    def find_fault(self, version: object, written_by: str = "") -> str:
        """Return why content of a version is not read, and what to do; "" if it is read.

        written_by: The version of phrasebox that has written it, if that is known.
        """
        number = version if isinstance(version, int) and not isinstance(version, bool) else -1
        if self.oldest <= number <= self.current:
            return ""
        numbers = f"{self.oldest} to {self.current}" if self.oldest < self.current else f"{self.current}"
        writer = f" of phrasebox {written_by}" if written_by else ""
        advice = UPGRADE if number > self.current else self.remedy
        return f"{self.name} {version}{writer}, this phrasebox reads {numbers}: {advice}"

    def lift(self, content: ContentT, version: int) -> ContentT:
        """Return content of a version that is read as content of the current one."""
        for number in range(version, self.current):
            if number in self.steps:
                content = self.steps[number](content)
        return content
