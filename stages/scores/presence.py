"""Is the phrase in the image at all? A logistic regression on what the one forward pass has already computed.

A cosine depends on the phrase ("man" is near every photograph) as much as on the image, and so
is looked at beside the usual one for the phrase (docs/explanation/presence-and-score.md):

    similarity   c = cos(image, phrase)
    usual        m = t . mu, the phrase's mean cosine over other images
    spread       s = sqrt(t' Sigma t), its standard deviation over other images
    deviation    (c - m) / s
    local        the highest cosine of the phrase and a patch alone (MaskCLIP's value path,
                 `phrasebox.stages.explainers.dense`; without residual and MLP where there is a class token)

with the phrase's unit embedding t, and mean mu and covariance Sigma of the unit image embeddings
of the images that the regression was fitted on. Sigma is kept as its `RANK` strongest directions
and the mean variance of the others. This probability depends on no other phrase or image of a
run. `RegionMaker.presences_of` makes the row's `presence` of it: by the other phrases of the same
object, the caption, and the share of absent phrases. `phrasebox calibrate` fits it. Without a fit
presence is null; `phrasebox.pipeline.run.decisions` says when.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Final, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationInfo, field_validator

from phrasebox.stages.contract.values import Bools, Floats, Floats32
from phrasebox.stages.scores.fits import HalfFloats, Number, Regression, StoredModel
from phrasebox.stages.scores.logistic import LogisticModel

FEATURES: Final = ("similarity", "usual", "spread", "deviation", "local")
RANK: Final = 64  # directions of the covariance that are kept


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSignals:
    """The results of one forward pass for texts that an image is compared with.

    Attributes:
        embeddings: Unit embeddings of the texts (P, E).
        cosines: Cosines of image and texts (P,).
        local: Highest cosine of a text and a patch (P,).
    """

    embeddings: Floats32
    cosines: Floats32
    local: Floats32


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSignals:
    """The results of one forward pass for an image.

    Attributes:
        embedding: Unit embedding of the image (E,).
        phrases: Those of the different texts of its phrases.
        foreign: Those of phrases of other images.
        captions: Those of its captions.
    """

    embedding: Floats32
    phrases: TextSignals
    foreign: TextSignals
    captions: TextSignals

    @property
    def is_finite(self) -> bool:
        """Whether the model gave numbers for image and phrases: 16 bits may overflow."""
        parts = [self.embedding]
        for texts in (self.phrases, self.foreign):
            parts += [texts.cosines, texts.local]
        return all(bool(np.isfinite(part).all()) for part in parts)

    @property
    def is_foreign(self) -> Bools:
        """Which of the phrases, with the foreign ones behind the image's own, are foreign (P,)."""
        return np.repeat([False, True], [len(self.phrases.cosines), len(self.foreign.cosines)])


class ImageStatistics(StoredModel):
    """Mean and covariance of image embeddings.

    Attributes:
        mean: Mean embedding (E,).
        directions: The strongest directions (k, E), each as long as its standard deviation.
        rest: Variance in every other direction.
        count: Number of the images.
    """

    mean: HalfFloats
    directions: HalfFloats
    rest: Annotated[Number, Field(ge=0)]
    count: Annotated[int, Field(ge=2)]

    @field_validator("directions")
    @classmethod
    def _split_rows(cls, values: Floats, info: ValidationInfo) -> Floats:
        return values.reshape(-1, info.data["mean"].size) if "mean" in info.data else values

    @classmethod
    def of(cls, embeddings: NDArray[np.float32]) -> Self:
        """Return the statistics of unit image embeddings (n, E), n >= 2, rounded to the 16 bits that are stored."""
        mean = embeddings.mean(axis=0, dtype=np.float64)
        _, lengths, axes = np.linalg.svd(embeddings - mean, full_matrices=False)
        variances = lengths**2 / len(embeddings)
        rank = min(RANK, len(variances))
        remainder = embeddings.shape[1] - rank
        return cls(
            mean=_round_to_16_bits(mean),
            directions=_round_to_16_bits(axes[:rank] * np.sqrt(variances[:rank, None])),
            rest=float(variances[rank:].sum() / remainder) if remainder else 0.0,
            count=len(embeddings),
        )

    def features(self, texts: NDArray[np.float32], cosines: NDArray[Any], local: NDArray[Any]) -> Floats:
        """Return the FEATURES (n, 5) of phrases, given unit embeddings, cosines and local cosines, as `TextSignals`."""
        wide = texts.astype(np.float64)
        inside = wide @ self.directions.T
        # The rest counts once for each direction that is not stored, as far as the text points
        # there.
        lengths = np.linalg.norm(self.directions, axis=1)
        shares = np.divide(inside, lengths, out=np.zeros_like(inside), where=lengths > 0)
        outside = np.maximum(0.0, 1.0 - np.square(shares).sum(axis=1))
        spread = np.sqrt(np.maximum(np.square(inside).sum(axis=1) + self.rest * outside, 1e-12))
        usual = wide @ self.mean
        similarity = cosines.astype(np.float64)
        return np.stack([similarity, usual, spread, (similarity - usual) / spread, local], axis=1)

    def distance(self, embeddings: NDArray[np.float32]) -> float:
        """Return the mean squared distance of unit image embeddings (n, E) from the mean, over images and directions.

        It is in variances: 1 for the images of the fit, somewhat more for others of their kind,
        which have not chosen the directions.
        """
        variances = np.square(self.directions).sum(axis=1, keepdims=True)
        directions = (self.directions / np.where(variances > 0, variances, 1))[variances[:, 0] > 0]
        return float(np.square((embeddings - self.mean) @ directions.T).mean())


class Presence(Regression):
    """The probability that a phrase is in an image, a logistic regression on `FEATURES`.

    Attributes:
        bias: Bias of the regression.
        absent_share: Share of absent phrases in the fit, which the probability takes for usual.
        images: Statistics of the images of the fit, which the features need.
        corrected_on: Statistics of other images, on which answers of people have corrected the fit.
    """

    names: ClassVar[tuple[str, ...]] = FEATURES

    bias: Number
    absent_share: Annotated[Number, Field(gt=0, lt=1)] = 0.5
    images: ImageStatistics
    corrected_on: ImageStatistics | None = None

    def probabilities(
        self, texts: NDArray[np.float32], cosines: NDArray[Any], local: NDArray[Any]
    ) -> list[float | None]:
        """Return values 0 .. 1, rounded to six decimals as scores are; arguments as in `ImageStatistics.features`.

        None where a cosine is not finite: nothing is known of the image then.
        """
        columns = dict(zip(FEATURES, self.images.features(texts, cosines, local).T, strict=True))
        total = np.zeros(len(texts)) + self.weigh(columns, self.bias)
        probabilities = 1.0 / (1.0 + np.exp(-total.clip(-60.0, 60.0)))
        finite = np.isfinite(cosines) & np.isfinite(local)
        rounded = zip(probabilities.round(6).tolist(), finite.tolist(), strict=True)
        return [probability if is_finite else None for probability, is_finite in rounded]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipFeatures:
    """The `FEATURES` of phrases by a CLIP, to fit `Presence` to.

    Attributes:
        images: Statistics of the phrases' images.
        values: Features of the phrases (n, 5).
    """

    images: ImageStatistics
    values: Floats

    @classmethod
    def of(cls, signals: Sequence[ImageSignals]) -> Self:
        """Return the features of the phrases of images, one image after the other, as `ImageSignals.is_foreign`."""
        images = ImageStatistics.of(np.stack([image.embedding for image in signals]))
        return cls(images=images, values=np.concatenate([_features_in(images, image) for image in signals]))

    def where(self, is_chosen: Bools) -> Self:
        """Return the features of some of the phrases, with statistics of all images."""
        return replace(self, values=self.values[is_chosen])

    @property
    def ranks(self) -> Floats:
        """The `deviation` (n,): the other features know texts that are said often."""
        return self.values[:, FEATURES.index("deviation")]

    def presence(self, regression: LogisticModel, absent_share: float) -> Presence:
        """Return a regression that was fitted to phrases, of which such a share is absent."""
        return Presence(
            images=self.images,
            bias=regression.bias,
            **regression.by_name(FEATURES),
            absent_share=absent_share,
        )


def _features_in(images: ImageStatistics, signals: ImageSignals) -> Floats:
    parts = (signals.phrases, signals.foreign)
    embeddings, cosines, local = (
        np.concatenate([getattr(part, name) for part in parts])
        for name in ("embeddings", "cosines", "local")
    )
    return images.features(embeddings, cosines, local)


def _round_to_16_bits(values: Floats) -> Floats:
    return values.astype(np.float16).astype(np.float64)
