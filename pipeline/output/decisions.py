"""What the first images of a run decide, once: a resumed run may look at other images.

run.json stores it, and `dataset.json` under `run`. Precision is a decision, too; it stands among the settings that
rows depend on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Generic, NamedTuple, Self, TypeVar

from phrasebox.stages.contract.values import Json

ValueT = TypeVar("ValueT")


class Decision(NamedTuple, Generic[ValueT]):
    """A decision that is made; its value may be that there is nothing."""

    value: ValueT


@dataclass(frozen=True, slots=True, kw_only=True)
class Decisions:
    """Decisions of a run; None where one is open.

    Attributes:
        shift: The difference of the images from those of the calibration, as plain values of a `DomainShift`.
        presence: SHA-256 of the calibration of presence that was fitted; the value None where none could be.
        absent_share: The share of absent phrases to expect, 0 .. 1.
        exponent: The power of the heat before maps are cut.
    """

    shift: Decision[Json | None] | None = None
    presence: Decision[str | None] | None = None
    absent_share: float | None = None
    exponent: float | None = None

    @classmethod
    def stored_in(cls, run: Json) -> Self:
        """Return the decisions in the plain values of a run."""
        return cls(
            shift=Decision(run[_SHIFT]) if _SHIFT in run else None,
            presence=Decision(run[_PRESENCE]) if _PRESENCE in run else None,
            absent_share=run.get(_ABSENT_SHARE),
            exponent=run.get(_EXPONENT),
        )

    @property
    def presence_digest(self) -> str | None:
        """SHA-256 of the calibration of presence that the rows were made with; None if the run has fitted none."""
        return None if self.presence is None else self.presence.value

    def to_json(self) -> Json:
        """Return those that are made, as plain values of a run."""
        values: Json = {}
        if self.shift is not None:
            values[_SHIFT] = self.shift.value
        if self.presence is not None:
            values[_PRESENCE] = self.presence.value
        if self.absent_share is not None:
            values[_ABSENT_SHARE] = self.absent_share
        if self.exponent is not None:
            values[_EXPONENT] = self.exponent
        return values

    def of_any_part(self) -> Json:
        """Return what all parts of one input agree on: machines differ in the last digits of what they compute."""
        shift = None if self.shift is None else self.shift.value
        return {
            _SHIFT: shift is not None and bool(shift["in_regions"]),
            _PRESENCE: self.presence_digest is not None,
            _ABSENT_SHARE: self.absent_share is not None,
            _EXPONENT: self.exponent is not None,
        }


_SHIFT: Final = "outside_domain"
_PRESENCE: Final = "presence"
_ABSENT_SHARE: Final = "absent_share"
_EXPONENT: Final = "exponent"
