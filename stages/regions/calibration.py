"""From evidence to the share of regions with such evidence that are right.

A calibration is a logistic regression on the evidence of one region. It holds for the model and the settings of
explain and regions with which it was fitted, and says so itself; `stages/dataset/evaluate/fit.py` fits one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from stages.contract.errors import ConfigError
from stages.regions.score import Evidence

FEATURES: Final[dict[str, Callable[[Evidence], float]]] = {
    "energy": lambda evidence: evidence.energy,
    "mean_inside": lambda evidence: evidence.mean_inside,
    "mean_outside": lambda evidence: evidence.mean_outside,
    "threshold": lambda evidence: evidence.threshold,
    "peak": lambda evidence: evidence.peak,
    "log_area": lambda evidence: math.log(evidence.area),
    "log_area_squared": lambda evidence: math.log(evidence.area) ** 2,
    "similarity": lambda evidence: evidence.similarity,
}
"""Name -> what a calibration looks at. log_area_squared: very small and very large regions are both doubtful."""

_FORMAT: Final = "phrasebox calibration 1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Probability of a region to be right: 1 / (1 + exp(-(bias + sum of weight * (feature - mean) / scale))).

    mean, scale, weight   by name of `FEATURES`
    made_with             model fingerprint, explain and regions settings that it holds for; plain values
    made_from             where it was fitted, for people
    """

    bias: float
    mean: Mapping[str, float]
    scale: Mapping[str, float]
    weight: Mapping[str, float]
    made_with: Mapping[str, Any]
    made_from: Mapping[str, Any]

    def probability(self, evidence: Evidence) -> float:
        """0 .. 1, rounded to six decimals as all scores are."""
        total = self.bias
        for name, weight in self.weight.items():
            total += weight * (FEATURES[name](evidence) - self.mean[name]) / self.scale[name]
        return round(1.0 / (1.0 + math.exp(-max(-60.0, min(60.0, total)))), 6)

    def to_json(self) -> str:
        """What `read_calibration` reads."""
        values = {
            "format": _FORMAT,
            "bias": self.bias,
            **{key: dict(getattr(self, key)) for key in ("mean", "scale", "weight", "made_with", "made_from")},
        }
        return json.dumps(values, indent=1) + "\n"


def read_calibration(path: Path) -> Calibration:
    """Raises ConfigError if the file is missing or is not a calibration."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"regions.calibration: cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"regions.calibration: {path} is not JSON: {error}") from error
    try:
        if values.pop("format") != _FORMAT:
            raise ValueError(f"expected the format {_FORMAT!r}")
        unknown = set(values["weight"]) - set(FEATURES)
        if unknown:
            raise ValueError(f"unknown features {', '.join(sorted(unknown))}")
        calibration = Calibration(**values)
        numbers = [calibration.bias]
        for name in calibration.weight:
            numbers += [calibration.weight[name], calibration.mean[name], calibration.scale[name]]
        if not all(math.isfinite(number) for number in numbers) or not all(calibration.scale.values()):
            raise ValueError("expected finite numbers and scales that are not 0")
    except KeyError as error:
        raise ConfigError(f"regions.calibration: {path} is not a calibration: it lacks {error}") from error
    except (TypeError, AttributeError, ValueError) as error:
        raise ConfigError(f"regions.calibration: {path} is not a calibration: {error}") from error
    return calibration
