"""Insertion and deletion: does an image lose its phrase where the heat map is hot, and does the hot part alone keep it?

Rgb change in the order of their heat. Deletion hides the hottest pixels first: the faster the
phrase's score falls, the smaller is the area under its curve. Insertion begins with nothing visible
and shows the hottest pixels first: the faster the score rises, the larger is the area.

Both are those of Petsiuk, Das, Saenko, "RISE" (BMVC 2018, arXiv 1806.07421), `CausalMetric`.
Deletion hides behind the mean colour of the model's normalisation, which is 0 there; insertion
begins with a blurred image. Both continue to the whole image, in steps of 224 pixels; the score is
the probability of a class.

Deviations: the score is the model's own probability of the phrase (`phrase_probability`), not that
of a class. If the logits have no bias, it is a probability among a set of phrases. The curves are
read at fewer shares (`SHARES`), because every point costs a forward pass; the shares are closer
together at the steep beginning of the curves. Rgb of equal heat, such as all pixels where a map
is 0, change in the order from the hot part of the map outwards.

The area is the trapezoidal one: 0 .. 1 for a probability.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Literal

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from scipy.special import expit, softmax

from phrasebox.pipeline.evaluate.matching import draw_map
from phrasebox.stages.contract.records import HeatMap
from phrasebox.stages.contract.values import Bools, Floats, Floats32, Integers, Rgb
from phrasebox.stages.explainers.masked import baseline_image, masked_embeddings
from phrasebox.stages.model.clip import ClipModel
from phrasebox.stages.model.text_cache import TextCache

TIE_BLUR: Final = 0.1
"""Standard deviation of the blur that orders pixels of equal heat, as a share of the image's
shorter side."""

BLUR_SHARE: Final = 5 / 224
"""Standard deviation of the blur that insertion begins with, as a share of the shorter side: 5
px of 224 as in RISE's code. RISE blurs less, because its kernel of 11 px cuts the Gaussian off
at one deviation."""

SHARES: Final = (0.0, 0.05, 0.15, 0.35, 0.65, 1.0)
"""Shares of changed pixels at each point of a curve."""

FILLINGS: Final[dict[str, Literal["mean", "blur"]]] = {"deletion_rise": "mean", "insertion_rise": "blur"}
"""Name of the curve -> the pixels of hidden parts."""


def measure_curves(
    model: ClipModel, rgb: Rgb, heats: Mapping[str, HeatMap], texts: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Measure insertion and deletion of an image (height, width, 3) by several heat maps of the first text.

    `texts` are the phrase and the phrases among which its probability is computed.

    Returns:
        Label -> for each of `FILLINGS` the area under the curve of the probability, and of the
            cosine (`..._cosine`).
    """
    text_vectors = text_embeddings(model, texts)
    areas: dict[str, dict[str, float]] = {label: {} for label in heats}
    ranks = [rank_pixels(draw_map(heat_map, (rgb.shape[0], rgb.shape[1]))) for heat_map in heats.values()]
    changes = [changed_pixels(pixel_ranks) for pixel_ranks in ranks]
    inner = len(SHARES) - 2  # points between both ends, where all or nothing is visible, whatever the map
    for name, baseline in FILLINGS.items():
        masks = changes if name == "insertion_rise" else [~pixels for pixels in changes]
        batch = np.concatenate([masks[0][[0, -1]], *(map_masks[1:-1] for map_masks in masks)])
        cosines = masked_cosines(model, rgb, batch, filling_pixels(model, rgb, baseline), text_vectors)
        (first, last), *parts = np.split(cosines, range(2, len(batch), inner))
        for label, part in zip(heats, parts, strict=True):
            curve = np.vstack([first, part, last])
            probabilities = phrase_probability(curve, model.logit_scale, model.logit_bias)
            areas[label][name] = area_under(probabilities)
            areas[label][f"{name}_cosine"] = area_under(curve[:, 0])
    return areas


def rank_pixels(heat: Floats32) -> Integers:
    """Return the rank of each pixel of a map (h, w) by heat: 0 for the hottest.

    Rgb of equal heat are in the order of the blurred map; pixels that are equal there, too,
    row by row.
    """
    sigma = TIE_BLUR * min(heat.shape)
    smooth = cv2.GaussianBlur(heat.astype(np.float64), (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
    order = np.lexsort((-smooth.ravel(), -heat.ravel().astype(np.float64)))
    places = np.empty(order.size, np.int64)
    places[order] = np.arange(order.size)
    return places.reshape(heat.shape)


def changed_pixels(places: Integers) -> Bools:
    """Return the pixels that are changed at each of `SHARES`, (points, h, w), from their ranks (h, w)."""
    return np.stack([places < round(share * places.size) for share in SHARES])


def phrase_probability(cosines: Floats, scale: float, bias: float | None) -> Floats:
    """Return the probability that a model gives the first phrase: cosines (points, phrases) -> (points,), 0 .. 1.

    It is the phrase's share of the softmax over all, or with a bias (`ClipModel.logit_bias`) its
    own sigmoid.
    """
    logits = scale * cosines
    values: Floats = softmax(logits, axis=1)[:, 0] if bias is None else expit(logits[:, 0] + bias)
    return values


def area_under(scores: Floats) -> float:
    """Return the area under a curve (points,) over `SHARES`, from 0 to 1: the mean height of the curve."""
    return float(np.trapezoid(scores, SHARES))


def filling_pixels(model: ClipModel, rgb: Rgb, name: Literal["mean", "blur"]) -> Floats32:
    """Return the pixels of the hidden parts of an image (height, width, 3), in 0-255."""
    if name == "mean":
        mean: Floats32 = baseline_image(model.tower, torch.from_numpy(rgb)).cpu().numpy()
        return mean
    sigma_px = BLUR_SHARE * min(rgb.shape[:2])
    blurred: Floats32 = gaussian_filter(
        rgb.astype(np.float32), sigma_px, mode="nearest", truncate=3, axes=(0, 1)
    )
    return blurred


def masked_cosines(
    model: ClipModel,
    rgb: Rgb,
    masks: Bools,
    filling: Floats32,
    texts: Floats32,
) -> Floats:
    """Compute cosines (N, P) of an image (height, width, 3) under masks (N, height, width) and unit texts (P, E)."""
    pixels, visible, baseline = (torch.from_numpy(array) for array in (rgb, masks, filling))
    embeddings = masked_embeddings(model.tower, pixels, visible, baseline)
    cosines: Floats = embeddings.double().cpu().numpy() @ texts.T.astype(np.float64)
    return cosines


@torch.no_grad()
def image_embeddings(model: ClipModel, rgb: Rgb) -> Floats:
    """Compute unit embeddings (B, E) of images (B, height, width, 3) by the image tower alone."""
    embeddings: Floats = (
        F.normalize(model.tower.encode(torch.from_numpy(rgb)).float(), dim=-1).double().cpu().numpy()
    )
    return embeddings


def text_embeddings(model: ClipModel, texts: Sequence[str]) -> Floats32:
    """Compute unit embeddings (T, E) of texts."""
    embeddings: Floats32 = TextCache(model)(texts).cpu().numpy()
    return embeddings
