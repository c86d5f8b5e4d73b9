"""Is the phrase in the image at all? A logistic regression on what the one forward pass has already computed.

A cosine depends on the phrase ("man" is near every photograph) as much as on the image, and so is looked at beside the
usual one for the phrase (stages/README.md):

    similarity   c = cos(image, phrase)
    usual        m = t . mu, the phrase's mean cosine over other images
    spread       s = sqrt(t' Sigma t), its standard deviation over other images
    deviation    (c - m) / s
    local        the highest cosine of the phrase and a patch alone (MaskCLIP's value path, `stages.explainers.dense`;
                 without residual and MLP where there is a class token)

with the phrase's unit embedding t, and mean mu and covariance Sigma of the unit image embeddings of the images that the
regression was fitted on. Sigma is kept as its `RANK` strongest directions and the mean variance of the others. None of
it depends on the other phrases or images of a run. `phrasebox calibrate` fits it.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

FEATURES: Final = ("similarity", "usual", "spread", "deviation", "local")
RANK: Final = 64  # directions of the covariance that are kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Signals:
    """The answer of one forward pass about an image's phrases: unit embeddings of the image (E,) and of the phrases
    (P, E), cosines of both (P,), and the highest cosine of a phrase and a patch (P,); all float32."""

    embedding: NDArray[np.float32]
    texts: NDArray[np.float32]
    cosines: NDArray[np.float32]
    local: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class ImageStatistics:
    """Mean and covariance of image embeddings."""

    mean: Floats  # (E,)
    directions: Floats  # (k, E), each of the length of its standard deviation
    rest: float  # variance in every other direction

    @classmethod
    def of(cls, embeddings: NDArray[np.float32]) -> Self:
        """Return the statistics of unit image embeddings (n, E), n >= 2, rounded to the 16 bits that are stored."""
        mean = embeddings.mean(axis=0, dtype=np.float64)
        _, lengths, axes = np.linalg.svd(embeddings - mean, full_matrices=False)
        variances = lengths**2 / len(embeddings)
        kept = min(RANK, len(variances))
        others = embeddings.shape[1] - kept
        return cls(
            mean=_rounded(mean),
            directions=_rounded(axes[:kept] * np.sqrt(variances[:kept, None])),
            rest=float(variances[kept:].sum() / others) if others else 0.0,
        )

    def features(self, texts: NDArray[np.float32], cosines: NDArray[Any], local: NDArray[Any]) -> Floats:
        """Return the FEATURES (n, 5) of phrases, given unit embeddings (n, E) and `Signals.cosines` and `.local`."""
        wide = texts.astype(np.float64)
        inside = wide @ self.directions.T
        # The rest counts once for each direction that is not kept, as far as the text points there.
        lengths = np.linalg.norm(self.directions, axis=1)
        shares = np.divide(inside, lengths, out=np.zeros_like(inside), where=lengths > 0)
        outside = np.maximum(0.0, 1.0 - np.square(shares).sum(axis=1))
        spread = np.sqrt(np.maximum(np.square(inside).sum(axis=1) + self.rest * outside, 1e-12))
        usual, similarity = wide @ self.mean, cosines.astype(np.float64)
        return np.stack([similarity, usual, spread, (similarity - usual) / spread, local], axis=1)

    def distance(self, embeddings: NDArray[np.float32]) -> float:
        """Mean over images, unit embeddings (n, E), and kept directions of the squared distance from the mean.

        It is in variances: 1 for the images of the fit, somewhat more for others of their kind, which have not chosen
        the directions.
        """
        variances = np.square(self.directions).sum(axis=1, keepdims=True)
        directions = (self.directions / np.where(variances > 0, variances, 1))[variances[:, 0] > 0]
        return float(np.square((embeddings - self.mean) @ directions.T).mean())

    def plain(self) -> dict[str, Any]:
        """Return plain values, with arrays as base64 of 16-bit floats."""
        return {"mean": _packed(self.mean), "directions": _packed(self.directions), "rest": self.rest}

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of `plain`. Raise ValueError, KeyError or TypeError for other values."""
        mean = _unpacked(values["mean"])
        directions = _unpacked(values["directions"]).reshape(-1, mean.size)
        rest = float(values["rest"])
        if not (np.isfinite(mean).all() and np.isfinite(directions).all() and math.isfinite(rest) and rest >= 0):
            raise ValueError("expected finite image statistics")
        return cls(mean=mean, directions=directions, rest=rest)


@dataclass(frozen=True, kw_only=True)
class Presence:
    """The probability that a phrase is in an image, a logistic regression on `FEATURES`.

    `weight` is that of (feature - mean) / scale, by name of the feature; no scale is 0.
    """

    images: ImageStatistics  # of the fit, which the features need
    bias: float
    weight: Mapping[str, float]
    mean: Mapping[str, float]
    scale: Mapping[str, float]
    absent_share: float = 0.5  # the share of absent phrases in the fit, which the probability takes for usual
    corrected_on: ImageStatistics | None = None  # other images, which answers of people have corrected the fit on

    def probabilities(self, texts: NDArray[np.float32], cosines: NDArray[Any], local: NDArray[Any]) -> list[float]:
        """Return values 0 .. 1, rounded to six decimals as scores are; arguments as in `ImageStatistics.features`.

        0 where a cosine is not finite.
        """
        columns = dict(zip(FEATURES, self.images.features(texts, cosines, local).T, strict=True))
        total = np.full(len(texts), self.bias)
        for name, weight in self.weight.items():
            total += weight * (columns[name] - self.mean[name]) / self.scale[name]
        probabilities = 1.0 / (1.0 + np.exp(-total.clip(-60.0, 60.0)))
        known = np.isfinite(cosines) & np.isfinite(local)
        rounded: list[float] = np.where(known, probabilities, 0.0).round(6).tolist()
        return rounded

    def plain(self) -> dict[str, Any]:
        """Return plain values for a calibration's file."""
        names = ("bias", "weight", "mean", "scale", "absent_share")
        corrected = {} if self.corrected_on is None else {"corrected_on": self.corrected_on.plain()}
        return {**{name: getattr(self, name) for name in names}, "images": self.images.plain(), **corrected}

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of `plain`. Raise ValueError, KeyError or TypeError for other values."""
        unknown = set(values["weight"]) - set(FEATURES)
        if unknown:
            raise ValueError(f"unknown features of presence {', '.join(sorted(unknown))}")
        weight, mean, scale = (
            {name: float(values[part][name]) for name in values["weight"]} for part in ("weight", "mean", "scale")
        )
        bias, share = float(values["bias"]), float(values["absent_share"])
        if not 0.0 < share < 1.0:
            raise ValueError(f"expected a share of absent phrases between 0 and 1, got {share}")
        numbers = [bias, *weight.values(), *mean.values(), *scale.values()]
        if not all(map(math.isfinite, numbers)) or not all(scale.values()):
            raise ValueError("expected finite numbers and scales that are not 0")
        corrected = values.get("corrected_on")
        return cls(
            images=ImageStatistics.from_plain(values["images"]),
            bias=bias,
            weight=weight,
            mean=mean,
            scale=scale,
            absent_share=share,
            corrected_on=None if corrected is None else ImageStatistics.from_plain(corrected),
        )


def features_of(images: ImageStatistics, signals: Sequence[Signals]) -> Floats:
    """Return the features of all phrases of all images: (phrases, len(FEATURES))."""
    parts = [images.features(each.texts, each.cosines, each.local) for each in signals]
    return np.concatenate(parts) if parts else np.empty((0, len(FEATURES)))


def _rounded(values: Floats) -> Floats:
    return values.astype(np.float16).astype(np.float64)


def _packed(values: Floats) -> str:
    return base64.b64encode(values.astype("<f2").tobytes()).decode("ascii")


def _unpacked(text: str) -> Floats:
    return np.frombuffer(base64.b64decode(text, validate=True), "<f2").astype(np.float64)
