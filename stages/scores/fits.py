"""What is fitted once and stored as JSON: a regression's standardised weights by feature, and arrays in base64."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator, model_validator

Floats = NDArray[np.float64]

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]

NumberT = TypeVar("NumberT", float, Floats)


def _decode(values: object) -> Floats:
    """Return the array of 16-bit floats in base64; an array stays. Raise ValueError for other or infinite values."""
    if isinstance(values, str):
        values = np.frombuffer(base64.b64decode(values, validate=True), "<f2")
    if not isinstance(values, np.ndarray) or not np.isfinite(values).all():
        raise ValueError("expected finite 16-bit floats in base64")
    return values.astype(np.float64)


def _encode(values: Floats) -> str:
    return base64.b64encode(values.astype("<f2").tobytes()).decode("ascii")


HalfFloats = Annotated[Floats, PlainValidator(_decode), PlainSerializer(_encode)]
"""An array of finite numbers, which JSON holds as base64 of 16-bit floats, row after row."""


_CERTAIN: Final = 1e-6  # probabilities have six decimals, and the log odds of 0 and 1 have no bounds


def log_odds(probability: float) -> float:
    """Return the log odds of a probability; those of 0 and 1 are those of the nearest value with six decimals.

    >>> log_odds(0.5)
    0.0
    """
    inside = min(max(probability, _CERTAIN), 1.0 - _CERTAIN)
    return math.log(inside / (1.0 - inside))


class StoredModel(BaseModel):
    """A part of a calibration. Numbers are finite; other keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)


class Regression(StoredModel):
    """Weights of standardised features.

    Attributes:
        names: The features that a class knows. A fit may have weights of some alone.
        weight, mean, scale: By feature. No scale is 0.
    """

    names: ClassVar[tuple[str, ...]]

    weight: dict[str, Number]
    mean: dict[str, Number]
    scale: dict[str, Number]

    @model_validator(mode="after")
    def _check_features(self) -> Self:
        unknown = self.weight.keys() - set(self.names)
        if unknown:
            raise ValueError(f"unknown features {', '.join(sorted(unknown))}")
        if not self.weight.keys() <= self.mean.keys() & self.scale.keys():
            raise ValueError("expected a mean and a scale of each feature")
        if not all(self.scale.values()):
            raise ValueError("expected scales that are not 0")
        return self

    def weigh(self, features: Mapping[str, NumberT], bias: float) -> NumberT:
        """Return bias + sum of weight * (feature - mean) / scale."""
        total: Any = bias
        for name, weight in self.weight.items():
            total = total + weight * (features[name] - self.mean[name]) / self.scale[name]
        weighed: NumberT = total
        return weighed

    def logistic(self, features: Mapping[str, float], bias: float) -> float:
        """Return the probability whose log odds are `weigh`, 0 .. 1, with six decimals."""
        total = self.weigh(features, bias)
        return round(1.0 / (1.0 + math.exp(-max(-60.0, min(60.0, total)))), 6)
