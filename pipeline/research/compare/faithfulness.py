"""Insertion and deletion: does an image lose its phrase where the heat map is hot, and does the hot part alone keep it?

Pixels change in the order of their heat. Deletion hides the hottest pixels first: the faster the phrase's score falls,
the smaller is the area under its curve. Insertion begins with nothing visible and shows the hottest pixels first: the
faster the score rises, the larger is the area. Two protocols, by name:

rise      Petsiuk, Das, Saenko, "RISE" (BMVC 2018, arXiv 1806.07421), `CausalMetric`. Deletion hides behind the mean
          colour of the model's normalisation, which is 0 there; insertion begins with a blurred image. Both continue to
          the whole image, in steps of 224 pixels; the score is the probability of a class.
authors   Zhao et al., Grad-ECLIP (ICML 2024, arXiv 2502.18816). Deletion hides behind pixels of random colours,
          insertion begins with a black image. Both stop at half of the pixels, in steps of one in 200, and the score is
          read at every tenth step: the accuracy over ImageNet's classes.

Deviations: the score is the model's own probability of the phrase (`phrase_probability`), not that of a class. If the
logits have no bias, it is a probability among a set of phrases. The curves are read at fewer shares (`PROTOCOLS`),
because every point costs a forward pass; the shares are closer together at the steep beginning of the curves.
`CurveProtocol.shares` in the papers' steps restores the papers' curves. Pixels of equal heat, such as all pixels where
a map is 0, change in the order from the hot part of the map outwards.

The area is the trapezoidal one, divided by the range of the shares: 0 .. 1 for a probability, whatever the protocol.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.special import expit, softmax

from pipeline.evaluate.matching import draw_map
from stages.contract.records import HeatMap
from stages.explainers.perturbation.masked import baseline_image, blur_image, masked_embeddings
from stages.shared.model.clip import ClipModel, TextCache

Floats = NDArray[np.float64]

TIE_BLUR: Final = 0.1
"""Standard deviation of the blur that orders pixels of equal heat, as a share of the image's shorter side."""

BLUR_SHARE: Final = 5 / 224
"""Standard deviation of the blur that insertion begins with, as a share of the shorter side: 5 px of 224 as in RISE's
code. RISE blurs less, because its kernel of 11 px cuts the Gaussian off at one deviation."""

MASKS_PER_STEP: Final = {"cpu": 8, "cuda": 64}
"""Masked images in one forward pass. On CPUs more are slower, because their activations no longer fit the caches."""

Filling = Literal["mean", "blur", "random", "black"]
"""The pixels of hidden parts: mean colour of the model's normalisation, the blurred image, random colours, or black."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CurveProtocol:
    """How a curve is drawn.

    Attributes:
        filling: The pixels of hidden parts.
        inserts: Whether the hottest pixels are shown first; otherwise they are hidden first.
        shares: Shares of changed pixels at each point of the curve, rising from 0.
    """

    filling: Filling
    inserts: bool
    shares: tuple[float, ...]


_TO_ALL: Final = (0.0, 0.05, 0.15, 0.35, 0.65, 1.0)
_TO_HALF: Final = (0.0, 0.05, 0.15, 0.3, 0.5)
_ENDS: Final = (0.0, 1.0)

PROTOCOLS: Final[dict[str, CurveProtocol]] = {
    "deletion_rise": CurveProtocol(filling="mean", inserts=False, shares=_TO_ALL),
    "insertion_rise": CurveProtocol(filling="blur", inserts=True, shares=_TO_ALL),
    "deletion_authors": CurveProtocol(filling="random", inserts=False, shares=_TO_HALF),
    "insertion_authors": CurveProtocol(filling="black", inserts=True, shares=_TO_HALF),
}
"""Name of the figure -> its protocol."""


def count_masks(maps: int) -> int:
    """Return the number of masked images in `measure_curves` of an image, by its number of maps."""
    shares = [share for protocol in PROTOCOLS.values() for share in protocol.shares]
    ends = sum(share in _ENDS for share in shares)
    return ends + maps * (len(shares) - ends)


def measure_curves(
    model: ClipModel,
    rgb: NDArray[np.uint8],
    heats: Mapping[str, HeatMap],
    texts: Sequence[str],
    seed: int,
    advance: Callable[[int], None] = lambda _: None,
) -> dict[str, dict[str, float]]:
    """Measure insertion and deletion of an image (height, width, 3) by several heat maps of the first text.

    `texts` are the phrase and the phrases among which its probability is computed; the seed decides the random colours.
    `advance` is called after each batch with the number of masked images that the model has embedded.

    Returns:
        Label -> for each of `PROTOCOLS` the area under the curve of the probability, and of the cosine (`..._cosine`).
    """
    text_vectors = text_embeddings(model, texts)
    step = _batch_masks(model)
    count = 0
    areas: dict[str, dict[str, float]] = {label: {} for label in heats}
    ranks = {label: rank_pixels(draw_map(heat_map, (rgb.shape[0], rgb.shape[1]))) for label, heat_map in heats.items()}
    for name, protocol in PROTOCOLS.items():
        filling = filling_pixels(model, rgb, protocol.filling, seed)
        masks = {label: visible_masks(pixel_ranks, protocol) for label, pixel_ranks in ranks.items()}
        # Where all or nothing is visible the image is the same by every map.
        ends = [point for point, share in enumerate(protocol.shares) if share in _ENDS]
        inner = [point for point in range(len(protocol.shares)) if point not in ends]
        first_masks = next(iter(masks.values()))
        batch = np.concatenate([first_masks[ends], *(label_masks[inner] for label_masks in masks.values())])
        parts = []
        for start in range(0, len(batch), step):
            parts.append(masked_cosines(model, rgb, batch[start : start + step], filling, text_vectors))
            count += len(parts[-1])
            advance(count)
        cosines = np.concatenate(parts)
        for label, label_cosines in zip(masks, np.split(cosines[len(ends) :], len(masks)), strict=True):
            curve = np.empty((len(protocol.shares), len(texts)))
            curve[ends] = cosines[: len(ends)]
            curve[inner] = label_cosines
            probabilities = phrase_probability(curve, 0, model.logit_scale, model.logit_bias)
            areas[label][name] = area_under(protocol.shares, probabilities)
            areas[label][f"{name}_cosine"] = area_under(protocol.shares, curve[:, 0])
    return areas


def rank_pixels(heat: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the rank of each pixel of a map (h, w) by heat: 0 for the hottest.

    Pixels of equal heat are in the order of the blurred map; pixels that are equal there, too, row by row.
    """
    sigma = TIE_BLUR * min(heat.shape)
    smooth = cv2.GaussianBlur(heat.astype(np.float64), (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
    order = np.lexsort((-smooth.ravel(), -heat.ravel().astype(np.float64)))
    places = np.empty(order.size, np.int64)
    places[order] = np.arange(order.size)
    return places.reshape(heat.shape)


def visible_masks(places: NDArray[np.int64], protocol: CurveProtocol) -> NDArray[np.bool_]:
    """Return the visible pixels at each point of a curve, (points, h, w), from their ranks (h, w) by `rank_pixels`."""
    is_changed = np.stack([places < round(share * places.size) for share in protocol.shares])
    return is_changed if protocol.inserts else ~is_changed


def phrase_probability(cosines: Floats, phrase: int, scale: float, bias: float | None) -> Floats:
    """Return the probability that a model gives a phrase by number: cosines (points, phrases) -> (points,), 0 .. 1.

    It is the phrase's share of the softmax over all, or with a bias (`ClipModel.logit_bias`) its own sigmoid.
    """
    logits = scale * cosines
    values: Floats = softmax(logits, axis=1)[:, phrase] if bias is None else expit(logits[:, phrase] + bias)
    return values


def area_under(shares: Sequence[float], scores: Floats) -> float:
    """Return the area under a curve (points,), divided by the range of its shares: the mean height of the curve."""
    return float(np.trapezoid(scores, shares)) / (shares[-1] - shares[0])


def filling_pixels(model: ClipModel, rgb: NDArray[np.uint8], name: Filling, seed: int) -> NDArray[np.float32]:
    """Return the pixels of the hidden parts of an image (height, width, 3), in 0-255.

    Random colours depend on the seed and the size alone.
    """
    if name == "random":
        return np.random.default_rng(seed).integers(0, 256, rgb.shape).astype(np.float32)
    image = torch.from_numpy(rgb)
    if name == "blur":
        pixels = blur_image(image.to(model.device, torch.float32), BLUR_SHARE * min(rgb.shape[:2]))
    else:
        pixels = baseline_image(model.tower, image, name)
    array: NDArray[np.float32] = pixels.cpu().numpy().astype(np.float32)
    return array


def _batch_masks(model: ClipModel) -> int:
    return MASKS_PER_STEP["cuda" if model.device.type == "cuda" else "cpu"]


def masked_cosines(
    model: ClipModel,
    rgb: NDArray[np.uint8],
    masks: NDArray[np.bool_],
    filling: NDArray[np.float32],
    texts: NDArray[np.float32],
) -> Floats:
    """Compute cosines (N, P) of an image (height, width, 3) under masks (N, height, width) and unit texts (P, E)."""
    step = _batch_masks(model)
    pixels, visible, baseline = (torch.from_numpy(array) for array in (rgb, masks, filling))
    embeddings = masked_embeddings(model.tower, pixels, visible, baseline, step)
    cosines: Floats = embeddings.double().cpu().numpy() @ texts.T.astype(np.float64)
    return cosines


@torch.no_grad()
def image_embeddings(model: ClipModel, rgb: NDArray[np.uint8]) -> Floats:
    """Compute unit embeddings (B, E) of images (B, height, width, 3) by the image tower alone."""
    embeddings: Floats = F.normalize(model.tower.encode(torch.from_numpy(rgb)).float(), dim=-1).double().cpu().numpy()
    return embeddings


def text_embeddings(model: ClipModel, texts: Sequence[str]) -> NDArray[np.float32]:
    """Compute unit embeddings (T, E) of texts."""
    embeddings: NDArray[np.float32] = TextCache(model)(texts).cpu().numpy()
    return embeddings
